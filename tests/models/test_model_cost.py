"""Estimated costs match measurements: parameters, FLOPs by torch's counter, bytes of a real step."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any

import pytest
import torch
from compositions import compose
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from krill.config.schema import AutoModelConfig, ModelConfig, TrainConfig, TransformerConfig
from krill.config.validation import validate_config
from krill.models import cost
from krill.models.build import build_meta_model, build_model
from krill.models.cost import (
    compute_mean_attention_span,
    compute_state_bytes,
    compute_training_flops,
    estimate_training_memory,
    get_parameter_counts,
)
from krill.optim.build import build_optimizer
from krill.optim.groups import build_param_groups
from krill.training.compute.cross_entropy import CHUNK
from krill.training.compute.head_loss import build_loss
from krill.training.compute.liger import apply_kernels

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


@cache
def load_config(*overrides: str) -> TrainConfig:
    return validate_config(TrainConfig, compose("train", *overrides))


@pytest.mark.parametrize(
    "overrides",
    [("optimizer=adamw",), ("optimizer=muon_moonlight",), ("optimizer=muon_keller", "optimizer.normuon=true")],
    ids=["adamw", "muon", "normuon"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["llama", "llama untied", "gpt2"])
def test_fixed_memory_matches_a_real_step(name: str, overrides: tuple[str, ...]) -> None:
    config = load_config(*overrides).optimizer
    model = build_small_model(MODELS[name])
    optimizer = build_optimizer(model, config)
    run_forward_backward(model)
    optimizer.step()
    meta_model = build_meta_model(MODELS[name], VOCABULARY)
    memory = estimate_training_memory(meta_model, build_param_groups(meta_model, config), ROWS, TOKENS)
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters())
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    assert memory.optimizer == sum(tensor.nbytes for tensor in tensors)
    assert memory.optimizer == sum(map(compute_state_bytes, build_param_groups(model, config)))
    assert memory.total == memory.fixed + memory.activations + memory.logits


@pytest.mark.parametrize("setting", ["fp32", "bf16", "fsdp2"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_activations_match_the_tensors_saved_by_autograd(name: str, setting: str) -> None:
    """Compares with a real pass; Flash Attention saves the same tensors on the CPU as on CUDA.

    FSDP2 in bf16 gathers the matrices of the layers in bf16.
    """
    model = build_small_model(MODELS[name], "sdpa").train()
    if setting == "fsdp2":
        blocks = [each for each in model.modules() if type(each).__name__ in model._no_split_modules]
        for weight in (weight for block in blocks for weight in block.parameters() if weight.ndim == 2):
            weight.data = weight.data.to(torch.bfloat16)
    precision = "fp32" if setting == "fp32" else "bf16"
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
    meta_model = build_meta_model(MODELS[name], VOCABULARY)
    memory = estimate_training_memory(
        meta_model, [], ROWS, TOKENS, precision, has_weight_copies=setting == "bf16"
    )
    assert memory.activations == pytest.approx(sum(saved_bytes.values()), rel=0.1)


def test_memory_of_a_model_with_experts_is_estimated_in_both_precisions() -> None:
    config = make_auto_config(
        "qwen3_moe", num_key_value_heads=2, intermediate_size=48, moe_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2,
    )  # fmt: skip
    memories = [
        estimate_training_memory(build_meta_model(config, VOCABULARY), [], ROWS, TOKENS, precision)
        for precision in ("fp32", "bf16")
    ]
    assert memories[0].activations == 2 * memories[1].activations > 0


def test_logits_match_the_formula() -> None:
    def estimate(chunk: int | None, precision: str = "fp32") -> int:
        model = build_meta_model(MODELS["llama"], VOCABULARY)
        return estimate_training_memory(model, [], ROWS, TOKENS, precision, logits_chunk_tokens=chunk).logits

    assert estimate(None) == ROWS * TOKENS * VOCABULARY * 12
    assert estimate(None, "bf16") == ROWS * TOKENS * VOCABULARY * 14
    assert estimate(TOKENS) == TOKENS * VOCABULARY * 8 + (VOCABULARY + ROWS * TOKENS) * 32 * 4
    assert estimate(10**6) == estimate(ROWS * TOKENS)  # no chunk is larger than the batch


def measure_peak_bytes(work: Callable[[], None]) -> int:
    """Returns the peak of the bytes that torch's allocator hands out during `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    profiler_internals: Any = profiler.profiler
    events = [event for event in profiler_internals.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(sizes))


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [320, 4096])
@pytest.mark.parametrize("loss", ["full", "chunked"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_estimated_peak_matches_a_real_step(vocabulary: int, loss: str, checkpointing: bool) -> None:
    """Runs on the CPU in fp32; weights and gradients are allocated before."""
    rows, tokens = 4, 256
    config = load_config("model.num_hidden_layers=3", f"hardware.gradient_checkpointing={checkpointing}")
    model = build_model(config.model, vocabulary, 0, 1, 2, "sdpa").train()
    head_loss = build_loss(model, loss, "cpu")
    apply_kernels(model, config.hardware, "cpu")
    ids = torch.randint(3, vocabulary, (rows, tokens))

    def step() -> None:
        with head_loss.training_context():
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    memory = estimate_training_memory(
        build_meta_model(config.model, vocabulary), [], rows, tokens,
        logits_chunk_tokens=CHUNK["cpu"] if loss == "chunked" else None, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    assert memory.activations + memory.logits == pytest.approx(measure_peak_bytes(step), rel=0.15)


def test_bf16_saves_smaller_activations_and_a_copy_of_the_weights() -> None:
    memories = {
        precision: estimate_training_memory(
            build_meta_model(MODELS["llama"], VOCABULARY), [], rows=64, sequence_len=64, precision=precision
        )
        for precision in ("fp32", "bf16")
    }
    assert 0.45 < memories["bf16"].activations / memories["fp32"].activations < 0.8
    assert memories["bf16"].fixed == memories["fp32"].fixed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_estimate_frees_the_tensors_that_it_measured(precision: str) -> None:
    def count_graphs() -> int:
        gc.collect()
        return sum(type(item).__name__ == "FlashAttentionStubBackward" for item in gc.get_objects())

    before = count_graphs()
    estimate_training_memory(build_meta_model(MODELS["llama"], VOCABULARY), [], ROWS, TOKENS, precision)
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
            estimate_training_memory(model, [], rows, tokens, precision, None, checkpointing)
            for rows, tokens, precision, checkpointing in ((2, 24, "fp32", False), (3, 16, "bf16", True))
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
    estimate_training_memory(model, [], 2, 24)
    assert len(runs) == 1 + 2 + 3
