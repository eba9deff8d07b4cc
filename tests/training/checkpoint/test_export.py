"""transformers, and servers that load plain Llama or Qwen3 weights by name, read model/ and compute the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import flip_bit
from safetensors import safe_open
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from krill.errors import UsageError
from krill.models.model_folder import verify_model
from krill.runs import checkpoints

IDS = torch.tensor([[1, 70, 71, 90, 300, 17, 5, 200, 131], [1, 9, 8, 7, 6, 5, 4, 3, 2]])
STACKED_MODULES = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Weights that vLLM concatenates into one, in the order of their rows."""


class PlainWeights:
    """Loads a model as vLLM does: all numbers from config.json, weights by name, projections stacked.

    Source: vLLM, vllm/model_executor/models/llama.py and qwen3.py (load_weights, stacked_params_mapping).
    """

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        (self.architecture,) = self.config["architectures"]
        assert self.architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, weight in self._read(folder):
            assert weight.dtype == getattr(torch, self.config["dtype"])
            *_, module, _ = name.split(".")
            stack = STACKED_MODULES.get(module, module)
            parts.setdefault(name.replace(module, stack), {})[module] = weight
        self.weights = {
            name: torch.cat([of[part] for part in STACKED_MODULES if part in of] or [*of.values()])
            for name, of in parts.items()
        }
        self.unused = set(self.weights)

    def _read(self, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                names = list(tensors.keys())
                for name in names:
                    yield name, tensors.get_tensor(name)

    def get_weight(self, name: str) -> torch.Tensor:
        self.unused.discard(name)
        return self.weights[name].float()

    def compute_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Computes logits: (batch, length) int64 → (batch, length, vocabulary) float32."""
        embeddings = self.get_weight("model.embed_tokens.weight")
        assert len(embeddings) == self.config["vocab_size"]
        assert ids.shape[1] <= self.config["max_position_embeddings"]
        x = embeddings[ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = x + self._attention(f"{name}.self_attn", self._norm(f"{name}.input_layernorm", x))
            x = x + self._mlp(f"{name}.mlp", self._norm(f"{name}.post_attention_layernorm", x))
        head = embeddings if self.config["tie_word_embeddings"] else self.get_weight("lm_head.weight")
        return self._norm("model.norm", x) @ head.T

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        rms = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * rms * self.get_weight(f"{name}.weight")

    def _mlp(self, name: str, x: torch.Tensor) -> torch.Tensor:
        assert self.config["hidden_act"] == "silu"
        gate, up = (x @ self.get_weight(f"{name}.gate_up_proj.weight").T).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ self.get_weight(f"{name}.down_proj.weight").T

    def _attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        width = self.config["head_dim"]
        batch, length, _ = x.shape
        stacked = x @ self.get_weight(f"{name}.qkv_proj.weight").T
        q, k, v = (
            part.unflatten(-1, (-1, width)).transpose(1, 2)
            for part in stacked.split([heads * width, kv_heads * width, kv_heads * width], dim=-1)
        )
        if self.architecture == "Qwen3ForCausalLM":
            q, k = self._norm(f"{name}.q_norm", q), self._norm(f"{name}.k_norm", k)
        q, k = self._rotate(q), self._rotate(k)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        scores = (q @ k.transpose(-1, -2) / width**0.5).masked_fill(
            torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf
        )
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, heads * width)
        return mixed @ self.get_weight(f"{name}.o_proj.weight").T

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Applies RoPE in Llama's form, where the halves of a head are the two coordinates."""
        length, width = x.shape[-2:]
        theta = self.config["rope_parameters"]["rope_theta"]
        assert self.config["rope_parameters"]["rope_type"] == "default"
        rates = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
        first, second = x.chunk(2, dim=-1)
        return torch.cat(
            [
                first * angles.cos() - second * angles.sin(),
                second * angles.cos() + first * angles.sin(),
            ],
            dim=-1,
        )


TRAINING = ("steps=2", "save_every=2", "lr=0.05")


def train_model(krill_train: Any, *extra_overrides: str) -> Path:
    assert krill_train(*TRAINING, *extra_overrides) == 0
    run: Path = krill_train.runs("m")[-1]
    return run / "model"


LLAMA = (
    "model=llama_pico", "name=m", "model.num_attention_heads=4", "model.num_key_value_heads=2",
    "model.rope_theta=777", "model.tie_word_embeddings=false",
)  # fmt: skip
QWEN = ("model=qwen3_pico", "name=m", "model.num_key_value_heads=1", "model.head_dim=8")


@pytest.mark.parametrize("model_overrides", [LLAMA, QWEN], ids=["llama", "qwen3"])
def test_loader_of_plain_weights_computes_the_same_logits(
    model_overrides: tuple[str, ...], reference_run: Callable[..., Path]
) -> None:
    folder = reference_run(*TRAINING, *model_overrides) / "model"
    plain = PlainWeights(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(
            plain.compute_logits(IDS), model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4
        )
    assert plain.unused == set()


def test_config_json_has_the_keys_that_loaders_read(reference_run: Callable[..., Path]) -> None:
    folder = reference_run(*TRAINING, *LLAMA) / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 777
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["max_position_embeddings"] == 64
    assert config["model_type"] == "llama"
    assert config["use_cache"] is True
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    )  # fmt: skip
    assert config["vocab_size"] == len(tokenizer)


def test_all_files_have_the_mode_of_the_umask(reference_run: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    files = [path for path in reference_run(*TRAINING, *LLAMA).rglob("*") if path.is_file()]
    assert len([path for path in files if path.name == "model.safetensors"]) > 1
    other = {path.name for path in files if path.stat().st_mode != (tmp_path / "new").stat().st_mode}
    assert other == set()


def test_damage_of_the_trained_model_is_found_before_it_is_used(
    reference_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = shutil.copytree(reference_run(*TRAINING, *LLAMA), tmp_path / "run")
    (run / "model" / "README.md").write_text("edited")
    verify_model(run / "model", "model=run")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (run / "model" / name).read_bytes()
        flip_bit(run / "model" / name)
        with pytest.raises(
            UsageError, match=f"model.from=run: .*model/{name} was changed since it was saved"
        ):
            verify_model(run / "model", "model.from=run")
        (run / "model" / name).write_bytes(content)
    verify_model(run / "model", "model=run")


def test_model_that_is_a_link_is_refused_before_training(
    train_in: Callable[..., Path], make_config: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"run/model is a symbolic link.*remove the link"):
        train_in(make_config(), "run")


def test_export_dtype_applies_to_the_model_and_not_to_checkpoints(krill_train: Any) -> None:
    fp32_folder = train_model(krill_train, *LLAMA)
    bf16_folder = train_model(krill_train, *LLAMA, "export_dtype=bf16")
    assert bf16_folder.parent != fp32_folder.parent, "another result needs another run"
    config = json.loads((bf16_folder / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert "exported as bf16" in (bf16_folder / "README.md").read_text()
    bf16_model, fp32_model = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in (bf16_folder, fp32_folder)
    )
    assert (bf16_model.dtype, fp32_model.dtype) == (torch.bfloat16, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            bf16_model(input_ids=IDS).logits.float(), fp32_model(input_ids=IDS).logits, rtol=0.05, atol=0.05
        )
    for (name, actual), expected in zip(bf16_model.named_parameters(), fp32_model.parameters(), strict=True):
        assert torch.equal(actual, expected.bfloat16()), name
    (checkpoint,) = checkpoints.list_checkpoints(bf16_folder.parent / "checkpoints")
    for folder in (checkpoint, bf16_folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.model_max_length == 64, "the model reads no more"
        assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        names = list(tensors.keys())
        assert {tensors.get_tensor(name).dtype for name in names} == {torch.float32}
