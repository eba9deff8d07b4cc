"""Counts match measurements: parameters, FLOPs by torch's counter, bytes that autograd saves."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from compositions import load_config
from torch.utils.flop_counter import FlopCounterMode

from krill.config.schema import AutoModelConfig, ModelConfig, TransformerConfig
from krill.models import cost
from krill.models.build import build_meta_model, build_model
from krill.models.cost import (
    compute_mean_attention_span,
    compute_training_flops,
    get_parameter_counts,
    measure_saved_bytes,
)

ROWS, TOKENS, VOCABULARY = 2, 24, 90


def make_gated_config(family: str, **changes: Any) -> TransformerConfig:
    values: dict[str, Any] = {
        "name": "small", "family": family, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": None, "max_position_embeddings": 64,
        "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "initializer_range": 0.02,
    }  # fmt: skip
    return TransformerConfig.model_validate(values | changes)


def make_auto_config(model_type: str, **keys: Any) -> AutoModelConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    return AutoModelConfig(
        name="any", family="auto", model_type=model_type, max_position_embeddings=64, config=sizes | keys
    )


MODELS: dict[str, ModelConfig] = {
    "llama": make_gated_config("llama"),
    "llama untied": make_gated_config("llama", tie_word_embeddings=False),
    "llama without shared heads": make_gated_config("llama", num_key_value_heads=4),
    "qwen3": make_gated_config("qwen3", head_dim=24),
    "qwen3 untied": make_gated_config("qwen3", tie_word_embeddings=False),
    "gpt2": make_auto_config("gpt2", attn_pdrop=0.0),
    "gpt_neox": make_auto_config("gpt_neox", intermediate_size=48),
    "mistral": make_auto_config("mistral", intermediate_size=48, num_key_value_heads=2, sliding_window=8),
}


def build_small_model(config: ModelConfig, attention: str = "eager") -> Any:
    torch.manual_seed(0)
    return build_model(config, VOCABULARY, 0, 1, 2, attention)


def run_forward_backward(model: Any) -> None:
    ids = torch.randint(3, VOCABULARY, (ROWS, TOKENS))
    model(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_match_the_built_model(name: str) -> None:
    model = build_small_model(MODELS[name])
    counts = get_parameter_counts(build_meta_model(MODELS[name], VOCABULARY))
    assert counts == get_parameter_counts(model)
    assert counts.total == model.num_parameters() == len(torch.cat([p.flatten() for p in model.parameters()]))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    positions = 64 * 32 if name == "gpt2" else 0
    assert counts.embeddings == VOCABULARY * 32 + positions
    vectors = sum(p.numel() for p in model.parameters() if p.ndim < 2)
    lookups = 0 if tied else VOCABULARY * 32  # a tied embedding is looked up and multiplied with
    assert counts.matmul == counts.total - vectors - positions - lookups


@pytest.mark.parametrize("name", MODELS)
def test_flops_match_the_counter_of_torch(name: str) -> None:
    """Eager attention computes all T pairs of each token, including those that a window masks."""
    with FlopCounterMode(display=False) as counter:
        run_forward_backward(build_small_model(MODELS[name]))
    estimate = compute_training_flops(
        build_meta_model(MODELS[name], VOCABULARY), TOKENS, attended_tokens=TOKENS
    )
    masked = 3 * 12 * 32 * (TOKENS - 8) if name == "mistral" else 0
    assert counter.get_total_flops() == ROWS * TOKENS * (estimate + masked)


def test_flops_match_the_formula() -> None:
    weights = get_parameter_counts(build_meta_model(MODELS["qwen3"], VOCABULARY)).matmul
    attention = 12 * 3 * 4 * 24  # layers, heads, head_dim
    model = build_meta_model(MODELS["qwen3"], VOCABULARY)
    assert compute_training_flops(model, TOKENS) == 6 * weights + attention * (TOKENS + 1) / 2
    assert compute_training_flops(model, TOKENS, attended_tokens=5) == 6 * weights + attention * 5


def test_only_the_selected_experts_are_counted_per_token() -> None:
    keys = {"intermediate_size": 48, "moe_intermediate_size": 16, "num_key_value_heads": 2}
    one, two = (
        get_parameter_counts(
            build_meta_model(
                make_auto_config("qwen3_moe", num_experts=4, num_experts_per_tok=n, **keys), VOCABULARY
            )
        )
        for n in (1, 2)
    )
    assert one.total == two.total
    assert two.matmul - one.matmul == 3 * 3 * 32 * 16  # layers, matrices of an expert


@pytest.mark.parametrize(
    ("lengths", "window", "expected"),
    [([4], None, 2.5), ([4, 2], None, 13 / 6), ([4], 2, 7 / 4), ([1, 1, 1], None, 1.0), ([3], 9, 2.0)],
)
def test_mean_attention_span(lengths: list[int], window: int | None, expected: float) -> None:
    spans = [min(index + 1, window or index + 1) for length in lengths for index in range(length)]
    assert compute_mean_attention_span(lengths, window) == sum(spans) / len(spans) == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_saved_bytes_match_the_tensors_saved_by_autograd(name: str, precision: str) -> None:
    """Compares with a real pass; Flash Attention saves the same tensors on the CPU as on CUDA."""
    model = build_small_model(MODELS[name], "sdpa").train()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved_bytes: dict[int, int] = {}
    tensors = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved_bytes[storage._cdata] = storage.nbytes()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor),
    ):
        out = model(input_ids=torch.randint(3, VOCABULARY, (ROWS, TOKENS)))
    del out
    measured = measure_saved_bytes(build_meta_model(MODELS[name], VOCABULARY), ROWS, TOKENS, precision)
    assert measured == pytest.approx(sum(saved_bytes.values()), rel=0.1)


def test_memory_of_a_model_with_experts_is_estimated_in_both_precisions() -> None:
    config = make_auto_config(
        "qwen3_moe", num_key_value_heads=2, intermediate_size=48, moe_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2,
    )  # fmt: skip
    saved = [
        measure_saved_bytes(build_meta_model(config, VOCABULARY), ROWS, TOKENS, precision)
        for precision in ("fp32", "bf16")
    ]
    assert saved[0] == 2 * saved[1] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_estimate_frees_the_tensors_that_it_measured(precision: str) -> None:
    def count_graphs() -> int:
        gc.collect()
        return sum(type(item).__name__ == "FlashAttentionStubBackward" for item in gc.get_objects())

    before = count_graphs()
    measure_saved_bytes(build_meta_model(MODELS["llama"], VOCABULARY), ROWS, TOKENS, precision)
    assert count_graphs() == before


PUBLISHED = {
    "llama_125m": (49_152, 134_515_008),  # SmolLM2 135M
    "llama_350m": (49_152, 361_821_120),  # SmolLM2 360M
    "llama_1b": (128_256, 1_235_814_400),  # Llama 3.2 1B
    "llama_3b": (128_256, 3_212_749_824),  # Llama 3.2 3B
    "qwen3_0.6b": (151_936, 596_049_920),
    "qwen3_1.7b": (151_936, 1_720_574_976),
    "qwen3_4b": (151_936, 4_022_468_096),
}
"""Vocabulary size and number of parameters of the published model."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    vocabulary, expected = PUBLISHED[name]
    model = load_config(f"model={name}").model
    assert get_parameter_counts(build_meta_model(model, vocabulary)).total == expected


def test_counting_does_not_change_the_configuration() -> None:
    model = build_meta_model(MODELS["llama"], VOCABULARY)
    before = copy.deepcopy(model.config.to_dict())
    compute_training_flops(model, TOKENS)
    assert model.config.to_dict() | {"dtype": None} == before | {"dtype": None}
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 9])
def test_equal_layers_are_counted_once_and_exactly(
    family: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def estimate() -> tuple[Any, ...]:
        model = build_meta_model(make_gated_config(family, num_hidden_layers=layers), VOCABULARY)
        memory = [
            measure_saved_bytes(model, rows, tokens, precision)
            for rows, tokens, precision in ((2, 24, "fp32"), (3, 16, "bf16"))
        ]
        flops = [compute_training_flops(model, 24, attended) for attended in (None, 7.3)]
        assert model.config.num_hidden_layers == layers
        return (*memory, *flops)

    quick = estimate()
    monkeypatch.setattr(cost, "EQUAL_LAYER_MODELS", ())
    assert quick == estimate()


def test_many_equal_layers_do_not_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_meta_model(make_gated_config("llama", num_hidden_layers=40), VOCABULARY)
    runs = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: runs.append(1))
    compute_training_flops(model, 24)
    measure_saved_bytes(model, 2, 24)
    assert len(runs) == 1 + 2 + 3
