"""Documents of a row are apart in architectures other than Llama and Qwen3 too, or the architecture is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import krill.training.compute.attention  # noqa: F401  (registers varlen)
from krill.config.schema import AutoModelConfig
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
    "opt": {"varlen"},  # transformers gives its mask no position ids
    "gemma2": {"eager"},
    "gemma2 without cap": {"varlen", "eager"},
}
"""The backends that compute each architecture as it is."""


def make_auto_config(model_type: str, **keys: Any) -> AutoModelConfig:
    return AutoModelConfig(
        name="any", family="auto", model_type=model_type, max_position_embeddings=WIDTH, config=keys
    )


def build_small_model(name: str, backend: str) -> Any:
    model_type, keys = ARCHITECTURES[name]
    torch.manual_seed(0)
    return build_model(
        make_auto_config(model_type, **keys), 50, bos_id=0, eos_id=1, pad_id=2, attention=backend
    )


def compute_logits(name: str, backend: str, ids: torch.Tensor, **boundaries: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = build_small_model(name, backend).train()(input_ids=ids, **boundaries).logits
    return found


def make_row() -> torch.Tensor:
    chance = torch.Generator().manual_seed(1)
    return torch.randint(3, 50, (1, WIDTH), generator=chance)


def measure_leak(name: str, backend: str, **boundaries: Any) -> float:
    """Largest difference between the logits of documents in a row and those of each alone, computed eagerly."""
    ids = make_row()
    together = compute_logits(name, backend, ids, **boundaries)[0].split(LENGTHS)
    alone = [compute_logits(name, "eager", document)[0] for document in ids.split(LENGTHS, dim=1)]
    return max((one - other).abs().max().item() for one, other in zip(together, alone, strict=True))


def make_boundaries(backend: str) -> dict[str, Any]:
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"position_ids": positions} | ({"document_lengths": LENGTHS} if backend == "varlen" else {})


@pytest.mark.parametrize("backend", ["varlen", "sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_documents_are_as_if_alone_or_the_backend_is_refused(name: str, backend: str) -> None:
    model_type, keys = ARCHITECTURES[name]
    if backend in SUPPORTED_BACKENDS[name]:
        assert select_isolating_backend(make_auto_config(model_type, **keys), backend, backend, "cpu") == (
            backend,
            None,
        )
        assert measure_leak(name, backend, **make_boundaries(backend)) <= 1e-5
    else:
        with pytest.raises(UsageError, match=r"Write hardware\.attention=auto"):
            select_isolating_backend(make_auto_config(model_type, **keys), backend, backend, "cpu")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_boundaries_the_test_above_would_fail(name: str) -> None:
    assert measure_leak(name, "eager") > 1e-2


def test_a_cap_that_varlen_has_not_would_be_left_out() -> None:
    assert measure_leak("gemma2", "varlen", **make_boundaries("varlen")) > 1e-2


def test_opt_would_leak_where_it_is_refused() -> None:
    assert measure_leak("opt", "sdpa", **make_boundaries("sdpa")) > 1e-2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_auto_takes_one_that_can(name: str) -> None:
    model_type, keys = ARCHITECTURES[name]
    taken, why = select_isolating_backend(make_auto_config(model_type, **keys), "auto", "varlen", "cpu")
    assert (why is None) is (taken == "varlen")
    assert taken == next(
        backend for backend in ("varlen", "sdpa", "eager") if backend in SUPPORTED_BACKENDS[name]
    )


def test_dropout_of_scores_is_not_left_out_silently() -> None:
    dropping = make_auto_config("gpt2", **SIZES)
    assert select_isolating_backend(dropping, "auto", "varlen", "cpu") == ("varlen", None)
    assert select_isolating_backend(dropping, "auto", "varlen", "cuda")[0] == "sdpa"
    with pytest.raises(UsageError, match=r"varlen: has no dropout.*hardware\.attention=auto"):
        select_isolating_backend(dropping, "varlen", "varlen", "cuda")


FLASH = ("flash_attention_2", "flash_attention_3")
CUDA_OBJECTIONS: dict[str, tuple[AutoModelConfig, dict[str, str | None]]] = {
    "plain": (make_auto_config("qwen2", **GATED), {"flex": None, **dict.fromkeys(FLASH)}),
    "windows": (make_auto_config("mistral", **WINDOWED), {"flex": None, **dict.fromkeys(FLASH)}),
    "cap": (make_auto_config("gemma2", **ARCHITECTURES["gemma2"][1]), {"flex": None, **dict.fromkeys(FLASH)}),
    "dropout": (
        make_auto_config("qwen2", **GATED, attention_dropout=0.1),
        {"flex": "dropout", FLASH[0]: None, FLASH[1]: "dropout"},
    ),
    "wide heads": (
        make_auto_config("qwen3", **{**GATED, "head_dim": 264}),
        {"flex": None, **dict.fromkeys(FLASH, "256")},
    ),
    "no mask": (
        make_auto_config("opt", **ARCHITECTURES["opt"][1]),
        {"flex": "position_ids", **dict.fromkeys(FLASH)},
    ),
}
"""What an architecture wants, and which backends of CUDA object, by what."""


@pytest.mark.parametrize("name", CUDA_OBJECTIONS)
def test_backends_of_cuda_object_to_what_they_lack(name: str) -> None:
    model, objections = CUDA_OBJECTIONS[name]
    for backend, objection in objections.items():
        if objection is None:
            assert select_isolating_backend(model, backend, backend, "cuda") == (backend, None)
        else:
            with pytest.raises(UsageError, match=objection):
                select_isolating_backend(model, backend, backend, "cuda")


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("bloom", "AttentionInterface"),
        ("gptj", "AttentionInterface"),
        ("mamba", "its state runs on"),
        ("qwen3_next", "its state runs on"),
        ("bert", "sees those after it"),
        ("gpt_oss", "attention sinks"),
    ],
)
def test_what_cannot_isolate_is_refused(model_type: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        select_isolating_backend(make_auto_config(model_type), "auto", "varlen", "cpu")
