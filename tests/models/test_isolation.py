"""Documents of a row are isolated in architectures other than Llama and Qwen3 too, or a backend is rejected."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from compositions import compose

import krill.training.compute.attention  # noqa: F401  (registers varlen)
from krill.config.schema import AutoModelConfig, CustomModelConfig, ModelConfig, TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.models.build import build_model
from krill.models.isolation import select_isolating_backend

LENGTHS = [24, 9, 31]
WIDTH = sum(LENGTHS)
BASE_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {**BASE_SIZES, "initializer_range": 0.2}
GATED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
WINDOWED = {**GATED, "sliding_window": 8}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {**SIZES, **NO_DROPOUT}),
    "gpt_neox": ("gpt_neox", {**SIZES, "intermediate_size": 48}),
    "opt": ("opt", {**BASE_SIZES, "init_std": 0.2, "word_embed_proj_dim": 32, "ffn_dim": 48, "dropout": 0.0}),
    "olmo2": ("olmo2", GATED),
    "qwen2": ("qwen2", GATED),
    "qwen2 with windows": ("qwen2", {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3_moe": ("qwen3_moe", {**GATED, "num_experts": 4, "num_experts_per_tok": 2,
                                "moe_intermediate_size": 16}),
    "gemma2": ("gemma2", {**WINDOWED, "head_dim": 8, "attn_logit_softcapping": 2.0}),
    "gemma2 without cap": ("gemma2", {**WINDOWED, "head_dim": 8, "attn_logit_softcapping": None}),
    "gemma3": ("gemma3_text", {**WINDOWED, "head_dim": 8, "num_hidden_layers": 6}),
    "mistral": ("mistral", WINDOWED),
    "qwen3 with windows": ("qwen3", {**WINDOWED, "head_dim": 8, "use_sliding_window": True,
                                     "max_window_layers": 1}),
    "phi3": ("phi3", {**GATED, "original_max_position_embeddings": WIDTH}),
    "phi3 with windows": ("phi3", {**WINDOWED, "original_max_position_embeddings": WIDTH}),
}  # fmt: skip

SUPPORTED_BACKENDS: dict[str, set[str]] = {name: {"varlen", "sdpa", "eager"} for name in ARCHITECTURES} | {
    "opt": {"varlen"},  # transformers does not pass position ids to its mask
    "gemma2": {"eager"},
    "gemma2 without cap": {"varlen", "eager"},
}
"""The backends that compute each architecture exactly."""


def make_auto_config(model_type: str, **keys: Any) -> AutoModelConfig:
    return AutoModelConfig(
        name="any", family="auto", model_type=model_type, max_position_embeddings=WIDTH, config=keys
    )


def load_preset(name: str, *overrides: str) -> ModelConfig:
    return validate_config(TrainConfig, compose("train", f"model={name}", *overrides)).model


def build_small_model(name: str, backend: str) -> Any:
    model_type, keys = ARCHITECTURES[name]
    torch.manual_seed(0)
    return build_model(
        make_auto_config(model_type, **keys), 50, bos_id=0, eos_id=1, pad_id=2, attention=backend
    )


def make_row() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 50, (1, WIDTH), generator=generator)


@torch.no_grad()
def compute_row_logits(name: str, backend: str, **boundaries: Any) -> tuple[torch.Tensor, ...]:
    """Computes the logits of each document in the row."""
    logits = build_small_model(name, backend).train()(input_ids=make_row(), **boundaries).logits
    return logits[0].split(LENGTHS)  # type: ignore[no-any-return]


@cache
@torch.no_grad()
def compute_separate_logits(name: str) -> tuple[torch.Tensor, ...]:
    """Computes the logits of each document by itself, with eager attention."""
    model = build_small_model(name, "eager").train()
    return tuple(model(input_ids=document).logits[0] for document in make_row().split(LENGTHS, dim=1))


def measure_leak(name: str, backend: str, **boundaries: Any) -> float:
    """Returns the largest difference between the logits of documents in a row and of separate documents."""
    row, separate = compute_row_logits(name, backend, **boundaries), compute_separate_logits(name)
    return max((one - other).abs().max().item() for one, other in zip(row, separate, strict=True))


def make_boundaries(backend: str) -> dict[str, Any]:
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"position_ids": positions} | ({"document_lengths": LENGTHS} if backend == "varlen" else {})


@pytest.mark.parametrize("backend", ["varlen", "sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_documents_are_isolated_or_the_backend_is_rejected(name: str, backend: str) -> None:
    model_type, keys = ARCHITECTURES[name]
    if backend in SUPPORTED_BACKENDS[name]:
        assert select_isolating_backend(make_auto_config(model_type, **keys), backend, backend, "cpu") == (
            backend,
            None,
        )
        assert measure_leak(name, backend, **make_boundaries(backend)) <= 1e-5
    else:
        with pytest.raises(UsageError, match=r"Use hardware\.attention=auto"):
            select_isolating_backend(make_auto_config(model_type, **keys), backend, backend, "cpu")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_documents_leak_without_boundaries(name: str) -> None:
    assert measure_leak(name, "eager") > 1e-2


def test_varlen_would_ignore_a_softcap() -> None:
    assert measure_leak("gemma2", "varlen", **make_boundaries("varlen")) > 1e-2


def test_opt_would_leak_with_a_rejected_backend() -> None:
    assert measure_leak("opt", "sdpa", **make_boundaries("sdpa")) > 1e-2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_auto_selects_the_first_supported_backend(name: str) -> None:
    model_type, keys = ARCHITECTURES[name]
    backend, reason = select_isolating_backend(make_auto_config(model_type, **keys), "auto", "varlen", "cpu")
    assert (reason is None) is (backend == "varlen")
    assert backend == next(b for b in ("varlen", "sdpa", "eager") if b in SUPPORTED_BACKENDS[name])


def test_attention_dropout_is_never_ignored() -> None:
    config_with_dropout = make_auto_config("gpt2", **SIZES)
    assert select_isolating_backend(config_with_dropout, "auto", "varlen", "cpu") == ("varlen", None)
    assert select_isolating_backend(config_with_dropout, "auto", "varlen", "cuda")[0] == "sdpa"
    with pytest.raises(UsageError, match=r"varlen: does not support dropout.*hardware\.attention=auto"):
        select_isolating_backend(config_with_dropout, "varlen", "varlen", "cuda")


FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
CUDA_OBJECTIONS: dict[str, tuple[AutoModelConfig, dict[str, str | None]]] = {
    "plain": (make_auto_config("qwen2", **GATED), {"flex": None, **dict.fromkeys(FLASH)}),
    "windows": (make_auto_config("mistral", **WINDOWED), {"flex": None, **dict.fromkeys(FLASH)}),
    "cap": (
        make_auto_config("gemma2", **ARCHITECTURES["gemma2"][1]),
        {"flex": None, FLASH[0]: None, **dict.fromkeys(FLASH[1:], "softcapping")},
    ),
    "dropout": (
        make_auto_config("qwen2", **GATED, attention_dropout=0.1),
        {"flex": "dropout", FLASH[0]: None, **dict.fromkeys(FLASH[1:], "dropout")},
    ),
    "wide heads": (
        make_auto_config("qwen3", **{**GATED, "head_dim": 264}),
        {"flex": None, **dict.fromkeys(FLASH[:2], "256"), FLASH[2]: "128"},
    ),
    "no mask": (
        make_auto_config("opt", **ARCHITECTURES["opt"][1]),
        {"flex": "position_ids", **dict.fromkeys(FLASH)},
    ),
}
"""Configuration, and the objection of each CUDA backend to it."""


@pytest.mark.parametrize("name", CUDA_OBJECTIONS)
def test_cuda_backends_object_to_unsupported_features(name: str) -> None:
    model, objections = CUDA_OBJECTIONS[name]
    for backend, objection in objections.items():
        if objection is None:
            assert select_isolating_backend(model, backend, backend, "cuda") == (backend, None)
        else:
            with pytest.raises(UsageError, match=objection):
                select_isolating_backend(model, backend, backend, "cuda")


@pytest.mark.parametrize("backend", FLASH[1:])
def test_auto_falls_back_to_torch_where_other_kernels_are_not_exact(backend: str) -> None:
    plain = make_auto_config("qwen2", **GATED)
    assert select_isolating_backend(plain, "auto", backend, "cuda") == (backend, None)
    wide = make_auto_config("qwen3", **{**GATED, "head_dim": 192})
    expected = ("varlen", "supports heads of at most 128, not 192") if "4" in backend else (backend, None)
    assert select_isolating_backend(wide, "auto", backend, "cuda") == expected
    preset = load_preset("llama_pico", "model.head_dim=192")
    assert select_isolating_backend(preset, "auto", backend, "cuda") == expected


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bloom", "AttentionInterface"),
        ("gptj", "AttentionInterface"),
        ("mamba", "its state carries over"),
        ("qwen3_next", "its state carries over"),
        ("bert", "tokens attend to later ones"),
        ("gpt_oss", "attention sinks"),
    ],
)
def test_architectures_that_cannot_isolate_are_rejected(model_type: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        select_isolating_backend(make_auto_config(model_type, num_hidden_layers=4), "auto", "varlen", "cpu")


def test_the_error_names_the_key_that_chooses_the_architecture(tmp_path: Path) -> None:
    model = "BloomForCausalLM(BloomConfig(vocab_size=vocab_size, hidden_size=16, n_head=2))"
    (tmp_path / "own.py").write_text(
        "from transformers import BloomConfig, BloomForCausalLM\n\n"
        f"def build(vocab_size, **_):\n    return {model}\n"
    )
    config = CustomModelConfig(
        name="own", family="custom", max_position_embeddings=32, build=f"{tmp_path}/own.py:build", options={}
    )
    with pytest.raises(UsageError, match=r"AttentionInterface\. Use another model\.build$"):
        select_isolating_backend(config, "auto", "varlen", "cpu")
