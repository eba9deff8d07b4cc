"""What krill sets for DDP and FSDP2 beyond accelerate's defaults."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from process_group import run_on_ranks
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from krill.training.compute import compilation
from krill.training.compute.ddp import configure_ddp

IDS = torch.arange(24).view(2, 12)


def build_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def build_sharded_llama(compiler: CompileCounter | None) -> Any:
    model = build_llama()
    if compiler is not None:
        with patch.object(compilation, "BACKEND", compiler):
            compilation.compile_blocks(model)
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def train_compiled_blocks() -> dict[str, Any]:
    counter = CompileCounter()
    compiled, eager = build_sharded_llama(counter), build_sharded_llama(None)
    for _ in range(2):
        for model in (compiled, eager):
            model(input_ids=IDS, labels=IDS).loss.backward()
    errors = [
        float((p.grad - q.grad).full_tensor().abs().max())
        for p, q in zip(compiled.parameters(), eager.parameters(), strict=True)
    ]
    names = [name for name, _ in compiled.named_parameters()]
    frames = counter.frame_count
    compiled.eval()(input_ids=IDS[:, :5])
    return {
        "error": max(errors),
        "has_plain_names": names == [name for name, _ in eager.named_parameters()],
        "frames": frames,
        "frames_after_validation": counter.frame_count,
    }


def train_compiled_replica() -> dict[str, Any]:
    """Two steps of DDP, each with another row on each rank, the first micro batch without a reduction."""
    counter = CompileCounter()
    replicas = [DistributedDataParallel(build_llama(), gradient_as_bucket_view=True) for _ in range(2)]
    with patch.object(compilation, "BACKEND", counter):
        models = [compilation.compile_callable(replicas[0]), replicas[1]]
    for step in range(2):
        ids = IDS[dist.get_rank()][None] + step
        for model, replica in zip(models, replicas, strict=True):
            replica.zero_grad()
            with replica.no_sync():
                model(input_ids=ids, labels=ids).loss.backward()
            model(input_ids=ids, labels=ids).loss.backward()
    pairs = list(zip(*(replica.parameters() for replica in replicas), strict=True))
    total = torch.stack([p.grad.double().sum() for p, _ in pairs]).sum()
    totals = [torch.zeros_like(total) for _ in range(2)]
    dist.all_gather(totals, total)
    return {
        "error": max(float((p.grad - q.grad).abs().max()) for p, q in pairs),
        "is_reduced": bool(totals[0] == totals[1]),
        "frames": counter.frame_count,
    }


def train_compiled() -> list[dict[str, Any]]:
    results = [train_compiled_blocks()]
    torch.compiler.reset()
    return [*results, train_compiled_replica()]


@pytest.mark.slow
def test_model_of_two_ranks_is_compiled_once_for_training(tmp_path: Path) -> None:
    """FSDP2 layer by layer, DDP as a whole."""
    for sharded, replica in run_on_ranks(2, train_compiled, folder=tmp_path):
        assert sharded["error"] <= 1e-6
        assert sharded["has_plain_names"]
        assert 1 <= sharded["frames"] <= 3, "not at each pass"
        assert sharded["frames_after_validation"] == sharded["frames"]
        assert replica["error"] <= 1e-6
        assert replica["is_reduced"]
        assert 1 <= replica["frames"] <= 3, "not at each pass"


def test_buffers_are_broadcast_only_if_training_changes_them() -> None:
    for model, expected in ((nn.Linear(2, 2), False), (nn.BatchNorm1d(2), True)):
        options = SimpleNamespace(gradient_as_bucket_view=False, broadcast_buffers=None)
        trainer: Any = SimpleNamespace(model=model, accelerator=SimpleNamespace(ddp_handler=options))
        configure_ddp(trainer)
        assert options.gradient_as_bucket_view
        assert options.broadcast_buffers is expected
