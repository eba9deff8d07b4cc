"""Tests of the position of q, k and v in fused weights: each is zeroed and the effect on attention is checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CodeGenConfig,
    DbrxConfig,
    FalconConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    GPTNeoXJapaneseConfig,
    MptConfig,
    OpenAIGPTConfig,
    PersimmonConfig,
    Phi3Config,
    PreTrainedModel,
)

from krill.errors import UsageError
from krill.optim.fused_layouts import FUSED_SPLITS, infer_layout

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
GPT = {"vocab_size": 40, "n_embd": 32, "n_layer": 1, "n_head": 4}
MODELS: dict[str, tuple[Any, str, str, int]] = {
    "phi3": (Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0), "qkv_proj", "o_proj", 2),
    "gpt2": (GPT2Config(**GPT), "c_attn", "c_proj", 2),
    "openai": (OpenAIGPTConfig(**GPT), "c_attn", "c_proj", 2),
    "mpt": (MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=40), "Wqkv", "out_proj", 2),
    "dbrx": (
        DbrxConfig(
            d_model=32, n_heads=4, n_layers=1, vocab_size=40,
            attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 100.0},
        ),
        "Wqkv", "out_proj", 2,
    ),
    "neox": (GPTNeoXConfig(**SMALL), "query_key_value", "dense", 2),
    "neox_japanese": (GPTNeoXJapaneseConfig(**SMALL), "query_key_value", "dense", 2),
    "bloom": (BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=4), "query_key_value", "dense", 2),
    "persimmon": (PersimmonConfig(**SMALL, qk_layernorm=False), "query_key_value", "dense", 2),
    "falcon": (FalconConfig(**SMALL, multi_query=False, alibi=False), "query_key_value", "dense", 2),
    "falcon_shared": (FalconConfig(**SMALL, multi_query=True, alibi=False), "query_key_value", "dense", 2),
    "falcon_groups": (
        FalconConfig(**SMALL, new_decoder_architecture=True, num_kv_heads=2, alibi=False),
        "query_key_value", "dense", 2,
    ),
    "bigcode": (GPTBigCodeConfig(**GPT, multi_query=False), "c_attn", "c_proj", 2),
    "bigcode_shared": (GPTBigCodeConfig(**GPT, multi_query=True), "c_attn", "c_proj", 2),
    "codegen": (CodeGenConfig(**GPT, rotary_dim=4), "qkv_proj", "out_proj", 1),
}  # fmt: skip
"""Configuration, fused module, output projection of the attention, and index of the part that is the value."""


def _build_model(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3) if p.ndim == 2 else p.fill_(float("bias" not in name))
    return model.eval()


def _find_module(model: nn.Module, last_name: str) -> tuple[str, Any]:
    return next((n, m) for n, m in model.named_modules() if n.endswith(f".{last_name}") and "mlp" not in n)


def _run_attention_without(config: Any, fused: str, out: str, part: int | None) -> Tensor:
    """Returns the input of the output projection when the weights of one part are zero."""
    model = _build_model(config)
    name, module = _find_module(model, fused)
    layout = infer_layout(name, module, tuple(module.weight.shape), model.config)
    projections = [p.clone() for p in layout.split(module.weight.detach()[None])]
    if part is not None:
        projections[part].zero_()
    module.weight.data = layout.join(projections)[0]
    captured: list[Tensor] = []
    _find_module(model, out)[1].register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=torch.arange(6)[None])
    return captured[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_query_key_and_value(name):
    config, fused, out, value = MODELS[name]
    query, key = (part for part in range(3) if part != value)
    assert _run_attention_without(config, fused, out, value).abs().max() == 0
    without_query, without_key = (_run_attention_without(config, fused, out, part) for part in (query, key))
    torch.testing.assert_close(without_query, without_key)  # scores are zero either way
    assert (without_query - _run_attention_without(config, fused, out, None)).abs().max() > 1e-3


def test_every_known_split_of_attention_is_tested():
    tested = {(config.model_type, fused) for config, fused, *_ in MODELS.values()}
    assert tested == {key for key in FUSED_SPLITS if key[1] != "gate_up_proj"}


def _infer_layout(name: str, rows: int, config: Any) -> Any:
    return infer_layout(name, nn.Linear(8, rows), (rows, 8), config)


@pytest.mark.parametrize(
    "name", ["qkv", "Wqkv", "W_pack", "query_key_value", "gate_up_proj", "in_proj", "c_attn"]
)
def test_an_unknown_fused_weight_is_rejected_with_the_ways_to_resolve_it(name):
    with pytest.raises(UsageError, match=rf"layers\.0\.{name} \(24 × 8\).*adamw_modules=\[{name}\].*SPLITS"):
        _infer_layout(f"layers.0.{name}", 24, SimpleConfig("mine"))


def test_a_shape_that_does_not_fit_the_split_is_rejected():
    with pytest.raises(UsageError, match=r"1 × 12 \+ 12 rows are not the 30 of the weight"):
        _infer_layout("mlp.gate_up_proj", 30, SimpleConfig("glm", intermediate_size=12))


def test_a_custom_model_registers_its_split(monkeypatch):
    monkeypatch.setitem(FUSED_SPLITS, ("mine", "qkv"), lambda config: (1, (8, 8, 8)))
    assert _infer_layout("layers.0.qkv", 24, SimpleConfig("mine")).parts == (8, 8, 8)


class SimpleConfig:
    def __init__(self, model_type: str, **keys: Any):
        self.model_type = model_type
        vars(self).update(keys)
