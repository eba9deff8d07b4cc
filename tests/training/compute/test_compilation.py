"""Compiled training equals eager training and compiles once; hardware.compile=auto, and errors of torch.compile.

Runs here are on the CPU with the document boundaries of CUDA, a stub of Flash Attention, and a backend of
torch.compile that generates no code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from flash_attention_stubs import install_stubs
from packed_documents import CUDA, LAYERS, build_packed_batch, build_tiny_model
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from krill.config.schema import TrainConfig
from krill.data.packing import Rows
from krill.errors import KrillError, UsageError
from krill.resources import release_memory
from krill.runs.json_lines import read_metrics
from krill.training import trainer as trainer_module
from krill.training.compute import attention, backends, compilation, fsdp, liger
from krill.training.compute.compilation import (
    MIN_PASSES,
    compile_blocks,
    explain_compile_errors,
    select_compile,
)

Train, Configure = Callable[..., Path], Callable[..., TrainConfig]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts the compiled graphs, and fails when one is compiled again."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compilation, "BACKEND", counter)
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])  # pytest would format all of it
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield counter
    torch.compiler.reset()


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes runs on the CPU compile, and pass documents to attention as on CUDA."""
    build = attention.build_boundary_kwargs
    monkeypatch.setattr(
        attention, "build_boundary_kwargs", lambda backend, lengths, sequence_len, _: build(
            backend, lengths, sequence_len, CUDA
        ),
    )  # fmt: skip
    monkeypatch.setattr(liger, "check_kernels", lambda *_: None)
    install_stubs(monkeypatch)


def test_compiled_run_equals_an_eager_one_and_compiles_once(
    train_in: Train, make_config: Configure, as_on_cuda: None, graphs: CompileCounterWithBackend,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Ten steps of two passes, each with other documents, and a validation."""
    overrides = (
        "steps=10", "batch.gradient_accumulation_steps=2", "save_every=10", "model.num_hidden_layers=1",
    )  # fmt: skip
    eager = train_in(make_config(*overrides, "hardware.compile=false"), "eager")
    assert graphs.frame_count == 0
    with caplog.at_level("INFO", "krill"):
        compiled = train_in(make_config(*overrides, "hardware.compile=true"), "compiled")
    assert graphs.frame_count == 2  # the model in training, and the errors of the loss
    assert "loss chunked, z-loss 0.03, compiled" in caplog.text
    values = [
        [line[key] for line in read_metrics(run) for key in ("loss", "grad_norm", "eval_loss") if key in line]
        for run in (compiled, eager)
    ]
    assert len(values[0]) == 21
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    for weights in ("model/model.safetensors", "checkpoints/checkpoint-10/model.safetensors"):
        assert load_file(compiled / weights).keys() == load_file(eager / weights).keys()


def test_compiled_blocks_equal_eager_ones_and_share_a_graph(
    make_rows: Callable[..., Rows], graphs: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward with recomputed activations, and an eager validation."""
    install_stubs(monkeypatch)
    model, expected = build_tiny_model("llama", "varlen"), build_tiny_model("llama", "varlen")
    names = list(model.state_dict())
    assert compile_blocks(model.train()) == LAYERS
    liger._enable_gradient_checkpointing(model)
    for size in (1, 2):
        _, inputs = build_packed_batch(make_rows, 2, "varlen", CUDA)
        inputs["cu_seq_lens_q"][1:3] -= size
        for each in (model, expected):
            each.zero_grad()
            each(**inputs).loss.backward()
        for actual, other in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, other.grad)
    assert graphs.frame_count == 1
    assert list(model.state_dict()) == names
    with torch.no_grad():
        logits = model.eval()(input_ids=inputs["input_ids"][:1, :9]).logits
        torch.testing.assert_close(logits, expected.eval()(input_ids=inputs["input_ids"][:1, :9]).logits)
    assert graphs.frame_count == 1


def test_compiled_blocks_with_norms_in_fp32_share_a_graph(
    make_rows: Callable[..., Rows],
    graphs: CompileCounterWithBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The norm weights, which FSDP2 gathers with the embedding's, leave the layers without hooks."""
    install_stubs(monkeypatch)
    model = build_tiny_model("qwen3", "varlen")
    assert compile_blocks(model.train()) == LAYERS
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        plugin = SimpleNamespace(ignored_modules=None)
        accelerator = SimpleNamespace(parallelism_config=None, state=SimpleNamespace(fsdp_plugin=plugin))
        fsdp.shard_in_fp32(
            SimpleNamespace(
                model=model, accelerator=accelerator, args=SimpleNamespace(bf16=True), is_fsdp_enabled=True
            )
        )
        norms = {weight for norm in plugin.ignored_modules for weight in norm.parameters()}
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for block in (*model.model.layers, model):
            fully_shard(block, mp_policy=policy, ignored_params=norms)
        for size in (1, 2):
            _, inputs = build_packed_batch(make_rows, 2, "varlen", CUDA)
            inputs["cu_seq_lens_q"][1:3] -= size
            with torch.autocast("cpu", torch.bfloat16):
                model(**inputs).loss.backward()
        assert len(norms) == 4 * LAYERS + 1
        assert all(
            isinstance(weight.grad, DTensor) and weight.grad.dtype == torch.float32 for weight in norms
        )
        assert graphs.frame_count == 1
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("is_sharded", "expected"), [(False, ["model"]), (True, ["blocks"])])
def test_trainer_compiles_the_model_or_the_blocks_that_fsdp2_shards(
    is_sharded: bool, expected: list[str], train_in: Train, make_config: Configure, as_on_cuda: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls: list[str] = []

    def compute_losses(trainer: trainer_module.KrillTrainer, **_: Any) -> None:
        for batch in list(trainer.get_train_dataloader())[:2]:
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        raise StopIteration

    for name, stub in {
        "configure_fsdp": lambda trainer, _: setattr(trainer, "is_fsdp_enabled", is_sharded),
        "compile_blocks": lambda model: calls.append("blocks"),
        "compile_callable": lambda model: calls.append("model") or model,
    }.items():
        monkeypatch.setattr(trainer_module, name, stub)
    monkeypatch.setattr(trainer_module.KrillTrainer, "train", compute_losses)
    with pytest.raises(StopIteration):
        train_in(make_config("hardware.compile=true", "hardware.loss=full"))
    assert calls == expected


# --- the choice --------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a GPU and everything that torch.compile needs."""
    monkeypatch.setattr(compilation, "get_compute_capability", lambda: (8, 0))
    monkeypatch.setattr(compilation, "find_spec", lambda name: name)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: name)


def test_auto_compiles_runs_that_repay_it(gpu: None) -> None:
    assert select_compile("auto", "cuda", MIN_PASSES) == (True, "2,000 passes repay it")
    assert select_compile("auto", "cuda", MIN_PASSES - 1) == (False, "1,999 passes do not repay it, 2,000 do")
    assert select_compile("auto", "cpu", MIN_PASSES) == (False, "needs a CUDA device")
    assert select_compile(True, "cuda", 1) == (True, None)
    assert select_compile(False, "cuda", MIN_PASSES) == (False, None)


@pytest.mark.parametrize(
    ("name", "stub", "obstacle"),
    [
        ("find_spec", lambda name: None, "the package triton"),
        ("get_compute_capability", lambda: (6, 1), "a GPU of compute capability 7.0"),
        ("shutil", SimpleNamespace(which=lambda name: None), "a C compiler"),
    ],
)
def test_auto_does_not_compile_where_it_would_fail(
    name: str, stub: Any, obstacle: str, gpu: None, make_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, name, stub)
    is_compiled, reason = select_compile("auto", "cuda", MIN_PASSES)
    assert not is_compiled
    assert obstacle in str(reason)
    with pytest.raises(UsageError, match=rf"hardware\.compile=true needs {obstacle}.*hardware\.compile=auto"):
        backends.check_kernels(make_config("hardware.compile=true").hardware, "cuda")


def test_header_shows_the_choice_and_the_reason(
    make_config: Configure, train_in: Train, gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(compilation, "MIN_PASSES", 4)
    monkeypatch.setattr(compilation, "find_compile_obstacle", lambda device: None)
    monkeypatch.setattr("krill.training.trainer.compile_callable", lambda model: model)
    monkeypatch.setattr("krill.training.compute.head_loss.compile_callable", lambda function: function)
    with caplog.at_level("INFO", "krill"):
        train_in(make_config("batch.gradient_accumulation_steps=2", "steps=2"))
    assert "loss chunked, z-loss 0.03, compiled (auto: 4 passes repay it)" in caplog.text


# --- errors ------------------------------------------------------------------------------------------------


def test_failed_compilation_names_the_remedy() -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no compiler for this")

    with (
        pytest.raises(KrillError, match=r"torch.compile failed \(.*no compiler.*use hardware\.compile=false"),
        explain_compile_errors(True),
    ):
        torch.compile(lambda x: x + 1, backend=fail)(torch.ones(2))
    with pytest.raises(ZeroDivisionError), explain_compile_errors(True):
        raise ZeroDivisionError


def test_lack_of_memory_while_compiling_is_retried_like_any_other() -> None:
    def allocate(graph: Any, inputs: list[Any]) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(torch.OutOfMemoryError, match="2 GiB"), explain_compile_errors(True):
        torch.compile(lambda x: x - 1, backend=allocate)(torch.ones(2))


def test_smaller_micro_batch_is_compiled_for_its_own_size() -> None:
    sizes: list[Any] = []

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        examples = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
        sizes.append([size for tensor in examples for size in getattr(tensor, "shape", "symbol")])
        return graph

    double = torch.compile(lambda x: x * 2, backend=compile_graph)
    double(torch.ones(8))
    release_memory()
    double(torch.ones(4))
    assert sizes == [[8], [4]]
    assert all(type(size) is int for (size,) in sizes)
    torch.compiler.reset()
