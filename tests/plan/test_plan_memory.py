"""The memory of a plan is that of a real step, moment by moment; ranks, sharding and copies are counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from allocations import measure_moments
from compositions import load_config
from planned_models import make_gated, make_gpt2, make_setting
from torch.profiler import record_function

import krill.training.compute.attention  # noqa: F401  (registers varlen)
from krill.config.schema import ModelConfig
from krill.device_table import get_device
from krill.models.build import build_model
from krill.optim.build import build_optimizer
from krill.plan import memory as plan_memory_module
from krill.plan.architecture import Architecture
from krill.plan.describe import describe_architecture
from krill.plan.memory import MemoryPlan, compute_state_bytes, plan_memory
from krill.training.batch_shape import BatchShape
from krill.training.compute.head_loss import build_loss

WIDE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 16}
MEASURED: list[tuple[ModelConfig, dict[str, Any]]] = [
    (make_gated("llama", **WIDE), {}),
    (make_gated("llama", **WIDE), {"vocabulary": 4000}),
    (make_gated("llama", **WIDE), {"loss": "full", "vocabulary": 2000}),
    (make_gated("llama", **WIDE), {"gradient_checkpointing": True, "precision": "bf16"}),
    (make_gated("llama", **WIDE, tie_word_embeddings=False), {"accumulation": 2, "optimizer": "muon_moonlight"}),
    (make_gated("qwen3", **WIDE), {"precision": "bf16", "rows": 2, "optimizer": "muon_keller"}),
    (make_gated("qwen3", **WIDE), {"gradient_checkpointing": True, "vocabulary": 4000}),
    (make_gated("qwen3", **WIDE), {"loss": "full", "precision": "bf16", "vocabulary": 2000}),
    (make_gpt2(n_embd=96, n_layer=4), {}),
    (make_gpt2(n_embd=96, n_layer=4), {"loss": "full", "optimizer": "muon_pto"}),
    (make_gpt2(n_embd=96, n_layer=4), {"precision": "bf16", "accumulation": 2, "gradient_checkpointing": True}),
    (make_gated("llama", hidden_size=128, num_hidden_layers=2, head_dim=32), {"rows": 1, "optimizer": "muon_pto"}),
]  # fmt: skip
"""Models, and in what their step differs from the default."""


def measure_step(
    config: ModelConfig, options: dict[str, Any], sequence_len: int
) -> tuple[dict[str, int], int]:
    """Returns the peaks of the moments of a step, without weights and state, and the bytes of these two."""
    torch.manual_seed(0)
    rows, vocabulary = options.get("rows", 4), options.get("vocabulary", 320)
    model = build_model(config, vocabulary, 0, 1, 2, "varlen").train()
    if options.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable()
    loss = build_loss(model, options.get("loss", "chunked"), "cpu")
    optimizer = build_optimizer(
        model, load_config(f"optimizer={options.get('optimizer', 'adamw')}").optimizer
    )
    ids = torch.randint(3, vocabulary, (rows, sequence_len))
    inputs: dict[str, Any] = {
        "input_ids": ids, "labels": ids, "position_ids": torch.arange(sequence_len).expand(rows, -1),
        "document_lengths": [sequence_len] * rows, "use_cache": False, "num_items_in_batch": torch.tensor(9.0),
    }  # fmt: skip

    def step() -> None:
        for _ in range(options.get("accumulation", 1)):
            is_bf16 = options.get("precision") == "bf16"
            autocast = torch.autocast("cpu", torch.bfloat16, enabled=is_bf16)
            with record_function("mark forward"), loss.training_context(), autocast:
                value = model(**inputs).loss
            with record_function("mark backward"):
                value.backward()
            del value
        with record_function("mark optimizer"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        optimizer.zero_grad()

    step()
    fixed = sum(p.nbytes for p in model.parameters())
    fixed += sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    return measure_moments(step), fixed


@pytest.mark.parametrize("index", range(len(MEASURED)))
def test_peak_is_that_of_a_real_step(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors alone: the process is measured by benchmarks/plan_memory.py."""
    monkeypatch.setattr(plan_memory_module, "CPU_PROCESS_BYTES", 0)
    monkeypatch.setattr(plan_memory_module, "CPU_HEAP_SHARE", 0.0)
    monkeypatch.setattr(plan_memory_module, "CPU_KEPT_SHARE", 0.0)
    monkeypatch.setattr(plan_memory_module, "CPU_RECOMPUTED_SHARE", 0.0)
    monkeypatch.setattr(plan_memory_module, "CPU_UNFUSED_SHARE", 0.0)
    (config, options), sequence_len = MEASURED[index], 128
    measured, fixed = measure_step(config, options, sequence_len)
    setting = make_setting(
        batch=BatchShape(options.get("rows", 4), options.get("accumulation", 1)),
        **{key: options[key] for key in ("loss", "precision", "gradient_checkpointing") if key in options},
    )
    optimizer = f"optimizer={options.get('optimizer', 'adamw')}"
    run = load_config(optimizer, f"sequence_len={sequence_len}", "evaluation.at_end=false")
    plan = plan_memory(run, describe_architecture(config, options.get("vocabulary", 320)), setting)
    assert plan.peak["weights"] + plan.peak["optimizer"] == fixed
    assert 0.97 < plan.total / (fixed + max(measured.values())) < 1.07
    assert 0.99 < sum(plan.moments["optimizer"].values()) / (fixed + measured["optimizer"]) < 1.1


LLAMA = describe_architecture(make_gated("llama", **WIDE), 4096)


def plan(*overrides: str, **setting: Any) -> MemoryPlan:
    config = load_config("evaluation.at_end=false", "sequence_len=128", *overrides)
    return plan_memory(config, LLAMA, make_setting(**setting))


def test_the_peak_is_a_maximum_over_moments() -> None:
    memory = plan()
    assert set(memory.moments) == {"forward", "backward", "optimizer", "saving"}
    assert memory.total == max(sum(parts.values()) for parts in memory.moments.values())
    assert memory.total < sum(max(parts.get(name, 0) for parts in memory.moments.values()) for name in (
        "weights", "gradients", "optimizer", "activations", "logits", "buffers", "context",
    ))  # fmt: skip


def test_fsdp2_shares_weights_and_gathers_layers() -> None:
    h100 = get_device("h100")
    alone = plan(device=h100, precision="bf16")
    ranks = {"device": h100, "precision": "bf16", "world_size": 8, "shard_size": 8, "ranks_per_node": 8}
    sharded = plan(**ranks, batch=BatchShape(4, 1, 8))
    for part in ("weights", "optimizer"):
        assert sharded.peak[part] == -(-alone.peak[part] // 8)
    assert sharded.moments["optimizer"]["gradients"] == sharded.peak["weights"]
    assert sharded.moments["forward"]["communication"] > 0
    accumulated = plan(**ranks, batch=BatchShape(4, 2, 8))
    assert accumulated.moments["optimizer"]["gradients"] == 4 * LLAMA.parameters
    copies = 2 * sum(kind.count * kind.entries for kind in LLAMA.list_matrices())
    assert alone.moments["forward"]["activations"] - sharded.moments["forward"]["activations"] == copies


def test_ddp_keeps_its_buckets_and_muon_gathers_updates() -> None:
    alone, ranks = plan("optimizer=muon_moonlight"), plan(
        "optimizer=muon_moonlight", world_size=2, ranks_per_node=2, batch=BatchShape(4, 1, 2)
    )  # fmt: skip
    assert "gradients" not in alone.moments["forward"]
    assert ranks.moments["forward"]["gradients"] == 4 * LLAMA.parameters
    assert "communication" not in alone.moments["optimizer"]
    matrices = sum(kind.count * kind.entries for kind in LLAMA.list_matrices())
    assert ranks.moments["optimizer"]["communication"] > 2 * 4 * matrices
    assert "communication" not in plan("optimizer=adamw", world_size=2).moments["optimizer"]


def test_context_parallel_divides_the_activations() -> None:
    alone, halves = plan(), plan(world_size=2, context_parallel=2)
    assert halves.moments["forward"]["activations"] == alone.moments["forward"]["activations"] / 2


def test_eager_attention_keeps_the_weights_of_all_pairs() -> None:
    pairs = 4 * 4 * 128**2
    varlen, eager = (plan(attention=name).moments["forward"]["activations"] for name in ("varlen", "eager"))
    assert eager - varlen == 4 * pairs * (4 + 2 * 4)


def test_a_copy_that_is_written_in_the_background_is_counted_on_the_cpu() -> None:
    copied, on_gpu = (
        plan("save_in_background=true"),
        plan("save_in_background=true", device=get_device("a100")),
    )
    config = load_config("save_in_background=true")
    size = 4 * LLAMA.parameters + compute_state_bytes(config.optimizer, LLAMA)
    assert {parts["saving"] for parts in copied.moments.values()} == {size}
    assert "saving" not in on_gpu.peak


def count_allocated(parts: dict[str, int]) -> int:
    """Returns the bytes that a step allocates, without what exists between two steps."""
    return sum(size for part, size in parts.items() if part not in ("weights", "optimizer", "context"))


def test_the_context_is_a_part_of_its_own() -> None:
    small, large = plan(), plan(batch=BatchShape(1024, 1))
    assert small.peak["context"] == pytest.approx(520e6 + 0.47 * count_allocated(small.peak), abs=1)
    # most of what 131,072 tokens need is in tensors that do not fragment the heap
    assert large.peak["context"] < 520e6 + 0.2 * count_allocated(large.peak)
    on_gpu = plan(device=get_device("a100"))
    tensors = on_gpu.total - on_gpu.peak["context"]
    assert on_gpu.peak["context"] == pytest.approx(700e6 + 0.03 * tensors, abs=1)


@pytest.mark.parametrize(
    ("architecture", "moment", "share"),
    [
        (LLAMA, "forward", 0.3), (LLAMA, "backward", 0.3), (LLAMA, "optimizer", 0.0),
        (describe_architecture(make_gpt2(n_embd=96, n_layer=4), 4096), "optimizer", 0.6),
    ],
)  # fmt: skip
def test_checkpointing_fragments_the_heap_of_a_cpu(
    architecture: Architecture, moment: str, share: float
) -> None:
    config = load_config("evaluation.at_end=false", "sequence_len=128", "optimizer=adamw")
    setting = make_setting(gradient_checkpointing=True)
    parts = plan_memory(config, architecture, setting).moments[moment]
    kept = parts["context"] - 520e6 - 0.47 * count_allocated(parts)
    saved = 4 * architecture.compute_saved_bytes(4, 128, "fp32", "cpu").layer
    assert kept == pytest.approx(share * saved, abs=1)
