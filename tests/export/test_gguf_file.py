"""A GGUF file, read back: its tensors compute the logits of the model, its tokenizer gives the same ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from transformers import AutoModelForCausalLM

from krill.errors import UsageError
from krill.export.gguf_file import write_gguf_file
from krill.export.gguf_tensors import compute_rope_factors
from krill.export.source import ExportSource
from krill.tokenizer.artifact import TokenizerFolder

MakeRun = Callable[..., Path]
TEXTS = ["Return the words.", "한국어 문장은 ㅋㅋㅋ 12345", "  a\n\n b\t<think>'ll é½ 🙂", ""]
"""A literal <think> is the special token: transformers and llama.cpp both read it so."""


def export(run: Path, dtype: str = "f32") -> tuple[Any, GGUFReader]:
    """Returns the model of `run` in fp32, and its GGUF file."""
    path = run.parent / f"{run.name}-{dtype}.gguf"
    write_gguf_file(ExportSource.open(str(run), None), dtype, path)
    return AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32).eval(), GGUFReader(path)


def read_value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def read_tensors(reader: GGUFReader) -> dict[str, np.ndarray]:
    return {tensor.name: quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def compute_logits(reader: GGUFReader, ids: list[int]) -> np.ndarray:
    """Returns the logits (T, V) as llama.cpp computes them from the file: src/models/llama.cpp and qwen3.cpp."""
    arch = read_value(reader, "general.architecture")
    weights = read_tensors(reader)
    heads, kv_heads, width, eps, base, layers = (
        read_value(reader, f"{arch}.{key}")
        for key in (
            "attention.head_count", "attention.head_count_kv", "attention.key_length",
            "attention.layer_norm_rms_epsilon", "rope.freq_base", "block_count",
        )
    )  # fmt: skip

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weights[name]

    def rotate(x_THD: np.ndarray) -> np.ndarray:
        angles = np.arange(len(ids))[:, None, None] * base ** (-np.arange(0, width, 2) / width)
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = (x_THD[..., ::2], x_THD[..., 1::2]) if arch == "llama" else np.split(x_THD, 2, -1)
        turned = first * cos - second * sin, first * sin + second * cos
        return np.stack(turned, -1).reshape(x_THD.shape) if arch == "llama" else np.concatenate(turned, -1)

    x = weights["token_embd.weight"][ids].astype(np.float64)
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(layers):
        block = f"blk.{layer}"
        y = norm(x, f"{block}.attn_norm.weight")
        q, k, v = (
            (y @ weights[f"{block}.attn_{name}.weight"].T).reshape(len(ids), -1, width) for name in "qkv"
        )
        if arch == "qwen3":
            q, k = (
                norm(q, f"{block}.attn_q_norm.weight"),
                norm(k, f"{block}.attn_k_norm.weight"),
            )
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(one, heads // kv_heads, axis=1) for one in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(width) + mask
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", chances, v).reshape(len(ids), -1) @ (
            weights[f"{block}.attn_output.weight"].T
        )
        y = norm(x, f"{block}.ffn_norm.weight")
        gate = y @ weights[f"{block}.ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ weights[f"{block}.ffn_up.weight"].T)) @ (
            weights[f"{block}.ffn_down.weight"].T
        )
    return norm(x, "output_norm.weight") @ weights.get("output.weight", weights["token_embd.weight"]).T


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_the_tensors_compute_the_logits_of_the_model(make_run: MakeRun, family: str, is_tied: bool) -> None:
    model, reader = export(make_run(family, tie_word_embeddings=is_tied))
    ids = [0, 5, 77, 301, 12, 12, 8]
    expected = model(torch.tensor([ids])).logits[0].detach().numpy()
    np.testing.assert_allclose(compute_logits(reader, ids), expected, atol=2e-4)
    assert ("output.weight" in read_tensors(reader)) != is_tied


def test_the_rows_of_q_and_k_are_interleaved_for_llama_alone(make_run: MakeRun) -> None:
    for family in ("llama", "qwen3"):
        model, reader = export(make_run(family))
        source = model.model.layers[1].self_attn.k_proj.weight.detach().numpy()
        found = read_tensors(reader)["blk.1.attn_k.weight"]
        half = 8  # of a head of 16
        order = [
            head * 16 + (i // 2 + (i % 2) * half if family == "llama" else i)
            for head in range(2)
            for i in range(16)
        ]
        np.testing.assert_array_equal(found, source[order])


def test_names_shapes_and_dtypes(make_run: MakeRun) -> None:
    run = make_run("qwen3")
    for dtype, name in (("f32", "F32"), ("f16", "F16"), ("bf16", "BF16")):
        model, reader = export(run, dtype)
        layer = {
            "attn_norm": [32], "attn_q": [32, 64], "attn_k": [32, 32], "attn_v": [32, 32], "attn_output": [64, 32],
            "attn_q_norm": [16], "attn_k_norm": [16], "ffn_norm": [32], "ffn_gate": [32, 48], "ffn_up": [32, 48],
            "ffn_down": [48, 32],
        }  # fmt: skip
        shapes = {f"blk.{index}.{key}.weight": shape for index in (0, 1) for key, shape in layer.items()}
        shapes |= {"token_embd.weight": [32, 330], "output.weight": [32, 330], "output_norm.weight": [32]}
        assert {tensor.name: tensor.shape.tolist() for tensor in reader.tensors} == shapes
        dtypes = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        assert dtypes == {key: name if len(shape) == 2 else "F32" for key, shape in shapes.items()}
        torch_dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
        rounded = model.lm_head.weight.detach().to(torch_dtype).float().numpy()
        np.testing.assert_array_equal(read_tensors(reader)["output.weight"], rounded)


def test_the_settings_of_the_model(make_run: MakeRun) -> None:
    _, reader = export(make_run("llama"), "bf16")
    expected = {
        "general.architecture": "llama", "general.name": "llama", "general.type": "model", "general.file_type": 32,
        "llama.context_length": 64, "llama.embedding_length": 32, "llama.block_count": 2,
        "llama.feed_forward_length": 48, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16, "llama.attention.value_length": 16, "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 5e4, "llama.vocab_size": 330,
    }  # fmt: skip
    assert {key: read_value(reader, key) for key in expected} == expected
    assert read_value(reader, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)


def merge_pieces(letters: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding as it is defined: the merge of the lowest rank first, from the left."""
    parts = list(letters)
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]


def test_the_tokenizer_gives_the_same_ids(make_run: MakeRun, tokenizer: TokenizerFolder) -> None:
    _, reader = export(make_run())
    tokens, kinds, merges = (
        read_value(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")
    )
    ids = {token: index for index, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    backend = tokenizer.backend
    for text in TEXTS:
        plain = text.replace("<think>", "")
        pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(plain)]
        found = [ids[part] for piece in pieces for part in merge_pieces(piece, ranks)]
        assert found == backend.encode(plain, add_special_tokens=False).ids
    specials = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
    assert [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3] == [
        *specials, "<think>", "</think>",
    ]  # fmt: skip
    assert {kind for token, kind in zip(tokens, kinds, strict=True)} == {1, 3}


def test_the_special_tokens_and_flags_are_those_of_training(make_run: MakeRun) -> None:
    run = make_run()
    _, reader = export(run)
    keys = (
        "model",
        "pre",
        "bos_token_id",
        "eos_token_id",
        "padding_token_id",
        "add_bos_token",
        "add_eos_token",
    )
    assert [read_value(reader, f"tokenizer.ggml.{key}") for key in keys] == [
        "gpt2", "llama-bpe", 0, 1, 2, True, False,
    ]  # fmt: skip
    template = (run / "model" / "chat_template.jinja").read_text(encoding="utf-8")
    assert read_value(reader, "tokenizer.chat_template") == template


def test_rows_without_a_token_are_unused(make_run: MakeRun) -> None:
    _, reader = export(make_run(rows=336))
    tokens, kinds = (read_value(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    assert len(set(tokens)) == len(tokens) == 336
    assert kinds[330:] == [5] * 6
    assert read_tensors(reader)["token_embd.weight"].shape == (336, 32)


def test_a_weight_that_f16_cannot_hold_is_an_error(make_run: MakeRun) -> None:
    run = make_run()
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    model.lm_head.weight.data[3, 4] = 70_000
    model.save_pretrained(run / "model")
    with pytest.raises(UsageError, match=r"dtype=f16: lm_head\.weight has the value 7e\+04.*use dtype=bf16"):
        export(run, "f16")


def test_the_rope_of_llama_3_divides_low_frequencies(make_run: MakeRun) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_run("llama") / "model")
    assert compute_rope_factors(model) is None
    model.config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    factors = compute_rope_factors(type(model)(model.config))
    assert factors is not None
    wavelengths = 2 * math.pi * 5e4 ** (np.arange(0, 16, 2) / 16)
    smooth = (64 / wavelengths - 1) / 3
    expected = np.where(wavelengths < 16, 1, np.where(wavelengths > 64, 8, 1 / ((1 - smooth) / 8 + smooth)))
    np.testing.assert_allclose(factors.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("hidden_act", "gelu", "hidden_act=gelu"),
        ("attention_bias", True, "attention_bias=true"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, "rope_type=yarn"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    make_run: MakeRun, key: str, value: Any, reason: str
) -> None:
    from krill.export.gguf_file import convert_tokenizer

    source = ExportSource.open(str(make_run("qwen3")), None)
    setattr(source.config, key, value)
    with pytest.raises(UsageError, match=f"llama.cpp has no qwen3 model with {reason}; use format=hf"):
        convert_tokenizer(source)
