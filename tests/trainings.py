"""Compares finished runs and lists what they wrote, for tests that train."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from compositions import compose

from krill.config.schema import EvaluateConfig, TrainConfig
from krill.config.validation import validate_config
from krill.data.inputs import RunInputs
from krill.data.store import Store
from krill.evaluation.model_evaluation import ModelEvaluation
from krill.evaluation.score_metrics import list_metrics
from krill.inference.load import ModelFiles
from krill.plan.dry_run import plan_run
from krill.runs import checkpoints
from krill.runs.json_lines import read_metrics
from krill.training.compute.setup import resolve_compute_setup
from krill.training.setup import RunSetup, build_run_setup

CLOCK_METRICS = ("tokens_per_second", "mfu", "data_wait", "memory_gb", "seconds_left", "evaluation_seconds")

TWO_RANKS = ("hardware.processes=2", "batch.micro_batch_size=4")


def read_metrics_without_clock(run: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl without the values that depend on a clock."""
    return [
        {key: value for key, value in line.items() if key not in CLOCK_METRICS} for line in read_metrics(run)
    ]


def list_checkpoint_steps(run: Path) -> list[int]:
    """Returns the steps of the complete checkpoints of a run."""
    return [checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(run / "checkpoints")]


def assert_same_result(run: Path, expected: Path, has_same_trainer_state: bool = True) -> None:
    """Asserts that two runs ended with the same weights, bit for bit, and the same lines of metrics, each once.

    `has_same_trainer_state`: False if only one of their last checkpoints was saved before the last validation.
    """
    for name in ("model/model.safetensors", "sample.txt"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    assert read_metrics_without_clock(run) == read_metrics_without_clock(expected)
    last, expected_last = (
        checkpoints.list_checkpoints(folder / "checkpoints")[-1] for folder in (run, expected)
    )
    assert (last / "model.safetensors").read_bytes() == (expected_last / "model.safetensors").read_bytes()
    if has_same_trainer_state:
        assert read_trainer_state_without_clock(last) == read_trainer_state_without_clock(expected_last)


def read_trainer_state_without_clock(checkpoint: Path) -> dict[str, Any]:
    """Returns trainer_state.json without the intervals, which may change, and the values that depend on a clock."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    history = [
        {key: value for key, value in line.items() if key not in CLOCK_METRICS}
        for line in state["log_history"]
    ]
    return {key: state[key] for key in ("epoch", "global_step", "max_steps")} | {"log_history": history}


def plan_lines(config: TrainConfig, outputs: Path) -> list[str]:
    """Returns the lines that krill-train dry_run=true prints for `config`, with all paths in `outputs`."""
    return plan_run(config, RunInputs(config.data, config.tokenizer, outputs))


def build_setup(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> RunSetup:
    """Returns the setup of a run as krill-train resolves it in this process."""
    return build_run_setup(config, folder, store, tokenizer, resolve_compute_setup(config))


def score_model(run: Path, folder: Path, *overrides: str) -> dict[str, float]:
    """Returns the scores that krill-evaluate gives the model in `folder`, which a run has trained on the CPU."""
    status = json.loads((run / "status.json").read_text())
    config = validate_config(EvaluateConfig, compose("evaluate", "model.path=unused", *overrides)).evaluation
    with tempfile.TemporaryDirectory() as output:
        evaluation = ModelEvaluation(
            config, ModelFiles.locate(str(folder)), Store.open(Path(status["data"]["folder"])), Path(output),
            torch.device("cpu"), "auto",
        )  # fmt: skip
        return list_metrics(evaluation.run())
