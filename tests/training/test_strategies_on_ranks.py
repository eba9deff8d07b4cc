"""DDP, FSDP2, hybrid sharding and context parallelism on several ranks, against one process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from process_group import run_on_ranks
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel
from trainings import read_metrics_without_clock, score_model

from krill.config.schema import TrainConfig
from krill.runs.json_lines import read_evaluations, read_metrics
from krill.training import ranks
from krill.training import run as training_run
from krill.training.compute.fsdp import list_norms
from krill.training.run import run_training
from krill.training.trainer import KrillTrainer

pytestmark = pytest.mark.slow
Gradients = dict[str, dict[str, Tensor]]


@contextmanager
def recorded_gradients() -> Iterator[list[dict[str, Tensor]]]:
    """Yields a list that receives the whole gradients of each step, by parameter name."""
    steps: list[dict[str, Tensor]] = []
    original = KrillTrainer._clip_grad_norm

    def record(self: KrillTrainer, model: Any) -> Any:
        if isinstance(model, DistributedDataParallel):
            assert model.gradient_as_bucket_view
            assert not model.broadcast_buffers
        gradients = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        if self.config.hardware.sharding == "hsdp":
            meshes = {(gradient.device_mesh.shape, gradient.placements) for gradient in gradients.values()}
            assert meshes == {((2, 2), (Replicate(), Shard(0)))}
        steps.append(
            {
                name: (g.full_tensor() if isinstance(g, DTensor) else g).clone()
                for name, g in gradients.items()
            }
        )
        return original(self, model)

    with mock.patch.object(KrillTrainer, "_clip_grad_norm", record):
        yield steps


@contextmanager
def varied_norms() -> Iterator[None]:
    """Models begin with norm weights that are not 1, which bf16 would round."""
    original = training_run.build_model

    def build(*arguments: Any, **options: Any) -> Any:
        model = original(*arguments, **options)
        generator = torch.Generator().manual_seed(1)
        for norm in list_norms(model):
            for weight in norm.parameters():
                weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
        return model

    with mock.patch.object(training_run, "build_model", build):
        yield


def train_all(configs: dict[str, TrainConfig], folder: Path, store: Path, tokenizer: Path) -> Gradients:
    """Trains each of `configs` in the folder of its name; returns the gradients of their first steps.

    The run a-resumed resumes from the first checkpoint of the run a.
    """
    gradients = {}
    for name, config in configs.items():
        ranks.on_rank0(partial(prepare_folder, folder, name))
        with (
            recorded_gradients() as steps,
            varied_norms(),
            mock.patch.dict(os.environ),
        ):  # accelerate's FSDP plugin sets variables
            run_training(config, folder / name, store, tokenizer)
        AcceleratorState._reset_state(reset_partial_state=True)
        gradients[name] = steps[0]
    return gradients


def prepare_folder(folder: Path, name: str) -> None:
    original = folder / name.removesuffix("-resumed")
    (folder / name).mkdir(exist_ok=True)
    if original.name != name:
        shutil.copy(original / "metrics.jsonl", folder / name)
        shutil.copytree(
            original / "checkpoints" / "checkpoint-1", folder / name / "checkpoints" / "checkpoint-1"
        )


def train_on_ranks(*arguments: Any) -> Gradients:
    # A sum over ranks on the device makes the host wait; those of gloo, on the CPU, do not.
    with ranks.process_group("cpu"), mock.patch.object(Accelerator, "gather", side_effect=AssertionError):
        return train_all(*arguments)


@pytest.fixture
def train(prepared_data: Any, tmp_path: Path) -> Callable[..., Gradients]:
    """train({"a": config}, world_size=2): trains in tmp_path/a on that many ranks; returns the first gradients."""

    def run(configs: dict[str, TrainConfig], world_size: int = 1) -> Gradients:
        arguments = (configs, tmp_path, prepared_data.store, prepared_data.tokenizer.folder)
        if world_size == 1:
            return train_all(*arguments)
        return run_on_ranks(world_size, train_on_ranks, *arguments, folder=tmp_path)[0]

    return run


def read_losses(run: Path) -> list[float]:
    return [line[key] for line in read_metrics(run) for key in ("loss", "eval_loss") if key in line]


def compute_gradient_error(actual: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> float:
    """Returns the relative error of the gradients of the parameters with `name` in their names."""
    names = [key for key in expected if name in key]
    error = sum(float((actual[key] - expected[key]).square().sum()) for key in names)
    return (error / sum(float(expected[key].square().sum()) for key in names)) ** 0.5


SIXTEEN_ROWS = ("steps=2", "save_every=100", "optimizer=adamw", "batch.micro_batch_size=16")
BF16 = (
    *SIXTEEN_ROWS, "hardware.processes=2", "batch.micro_batch_size=1", "batch.gradient_accumulation_steps=8",
    "hardware.precision=bf16",
)  # fmt: skip
EVALUATED = ("evaluation.tasks=[text,english_pairs]", "evaluation.limit=1", "evaluation.text_tokens=300")
RESUMABLE = (
    "model.num_key_value_heads=2",
    "steps=2",
    "save_every=1",
    "eval_every=2",
    "optimizer=muon_keller",
)


def assert_scores_of_the_command(run: Path, tolerance: float = 1e-6) -> None:
    """Asserts that the scores after the last step are those that one process computes from the saved model."""
    scores = {key: value for key, value in read_evaluations(run)[-1].items() if "/" in key}
    assert scores == pytest.approx(score_model(run, run / "model", *EVALUATED), abs=tolerance), run.name


def test_two_ranks(make_config: Any, train: Any, tmp_path: Path) -> None:
    """FSDP2 in bf16 has the policy of CUDA: its gradients are those of 16 micro batches, summed and reduced."""
    expected = train({"one": make_config(*SIXTEEN_ROWS)})["one"]
    evaluated = (*EVALUATED, "evaluation.every=2", "evaluation.at_end=false")
    fsdp2 = (*BF16, "hardware.sharding=fsdp2")
    gradients = train(
        {
            "ddp": make_config(*BF16, *evaluated),
            "fsdp2": make_config(*fsdp2),
            "cut": make_config(
                *SIXTEEN_ROWS, "batch.micro_batch_size=8", "batch.gradient_accumulation_steps=2",
                "hardware.processes=2", "hardware.context_parallel=2", "hardware.gradient_checkpointing=true",
                *evaluated,
            ),
        },
        world_size=2,
    )  # fmt: skip
    losses = {name: read_losses(tmp_path / name) for name in ("one", *gradients)}
    assert losses["fsdp2"] == pytest.approx(losses["ddp"], abs=1e-3)
    for name in ("proj", "embed_tokens", "norm", ""):
        errors = {run: compute_gradient_error(gradients[run], expected, name) for run in gradients}
        assert errors["fsdp2"] <= 1.001 * errors["ddp"], name
        assert errors["cut"] <= 1e-5, name
    for name in ("ddp", "cut"):
        assert_scores_of_the_command(tmp_path / name)
    assert losses["cut"] == pytest.approx(losses["one"], rel=1e-5)


def test_four_ranks(make_config: Any, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of two ranks: hybrid sharding; rows cut in four (two heads of keys) with FSDP2, in two with DDP."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    train({"one": make_config(*RESUMABLE, "batch.micro_batch_size=4")})
    evaluated = (*EVALUATED, "evaluation.every=1", "evaluation.at_end=false")
    hsdp = make_config(*RESUMABLE, *evaluated, "batch.micro_batch_size=1", "hardware.sharding=hsdp")
    train(
        {
            "hsdp": hsdp,
            "hsdp-resumed": hsdp,
            "four": make_config(
                *RESUMABLE,
                "batch.micro_batch_size=4",
                "hardware.context_parallel=4",
                "hardware.sharding=fsdp2",
            ),
            "two": make_config(*RESUMABLE, "batch.micro_batch_size=2", "hardware.context_parallel=2"),
        },
        world_size=4,
    )
    expected = read_losses(tmp_path / "one")
    for name in ("hsdp", "four", "two"):
        assert read_losses(tmp_path / name) == pytest.approx(expected, rel=1e-5), name
    assert_scores_of_the_command(tmp_path / "hsdp")
    runs = [tmp_path / name for name in ("hsdp", "hsdp-resumed")]
    assert read_metrics_without_clock(runs[0]) == read_metrics_without_clock(runs[1])
    model, resumed = ((run / "model" / "model.safetensors").read_bytes() for run in runs)
    assert model == resumed
