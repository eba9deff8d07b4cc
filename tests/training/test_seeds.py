"""Tests that `seed` determines every random number of a run, dropout above all, also when the run resumes."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from krill.models.build import build_model
from krill.runs.record import read_status
from krill.training.callbacks.progress import ProgressReporter
from krill.training.trainer import KrillTrainer

DROPOUT = (
    "model=auto", "model.model_type=gpt2", "sequence_len=64", "+model.config.n_layer=2", "+model.config.n_head=2",
    "+model.config.n_embd=32", "+model.config.attn_pdrop=0.0", "steps=6", "save_every=2", "eval_every=3",
)  # fmt: skip
"""GPT-2 with its dropout of 0.1 for embeddings and residuals; varlen attention has no dropout."""


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def has_same_weights(run: Path, other: Path) -> bool:
    other_weights = read_weights(other)
    return all(torch.equal(tensor, other_weights[name]) for name, tensor in read_weights(run).items())


def train_uninterrupted(krill_train: Any, *overrides: str) -> Path:
    """Trains without interruption; returns the folder of the run."""
    before = set(krill_train.runs("gpt2"))
    assert krill_train(*DROPOUT, "resume=false", *overrides) == 0
    (folder,) = set(krill_train.runs("gpt2")) - before
    return Path(folder)


@pytest.fixture
def train_interrupted(krill_train: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """train_interrupted(3, "lr=1"): sends SIGTERM at the end of step 3, resumes, returns the folder of the run."""

    def train(step: int, *overrides: str) -> Path:
        before = set(krill_train.runs("gpt2"))
        original = ProgressReporter.on_step_end

        def on_step_end(self: ProgressReporter, args: Any, state: Any, control: Any, **rest: Any) -> None:
            original(self, args, state, control, **rest)
            if state.global_step == step:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(ProgressReporter, "on_step_end", on_step_end)
            assert krill_train(*DROPOUT, *overrides) == 75
        assert krill_train(*DROPOUT, *overrides) == 0
        (folder,) = set(krill_train.runs("gpt2")) - before
        assert (read_status(folder) or {})["starts"] == 2
        return Path(folder)

    return train


@pytest.mark.parametrize(
    ("step", "workers"),
    [(3, 2), (4, 0)],
    ids=["during a validation, with workers", "between two validations"],
)
def test_dropout_resumes_bit_for_bit(
    krill_train: Any, train_interrupted: Any, read_losses: Any, step: int, workers: int
) -> None:
    override = f"hardware.workers={workers}"
    uninterrupted = train_uninterrupted(krill_train, override)
    folder = train_interrupted(step, override)
    assert read_losses(folder) == read_losses(uninterrupted)
    assert has_same_weights(folder, uninterrupted)


def test_dropout_is_active_and_follows_the_seed(krill_train: Any, read_losses: Any) -> None:
    overrides = ("steps=1", "lr=1e-9")
    loss = read_losses(train_uninterrupted(krill_train, *overrides))
    assert read_losses(train_uninterrupted(krill_train, *overrides)) == loss
    assert (
        read_losses(train_uninterrupted(krill_train, *overrides, "+model.config.resid_pdrop=0.0"))[0]
        != loss[0]
    )


def test_validations_and_samples_do_not_change_dropout(krill_train: Any) -> None:
    uninterrupted = train_uninterrupted(krill_train)
    assert has_same_weights(
        train_uninterrupted(krill_train, "eval_every=1", "sample_every=2", "log_every=3", "save_every=5"),
        uninterrupted,
    )


def test_random_numpy_and_torch_are_seeded_before_model_and_training(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[tuple[float, ...]] = []
    original = KrillTrainer.training_step

    def draw_numbers() -> None:
        numbers.append((random.random(), float(np.random.rand()), float(torch.rand(()))))

    def draw_and_build_model(*args: Any) -> Any:
        draw_numbers()
        return build_model(*args)

    def training_step(self: KrillTrainer, *args: Any) -> Any:
        draw_numbers()
        return original(self, *args)

    monkeypatch.setattr("krill.training.run.build_model", draw_and_build_model)
    monkeypatch.setattr(KrillTrainer, "training_step", training_step)
    for seed in (5, 5, 6):
        # Each run starts with the random state that the previous one left.
        train_uninterrupted(krill_train, "steps=1", f"seed={seed}")
    first, again, other = numbers[:2], numbers[2:4], numbers[4:]
    assert first == again
    assert {number for drawn in first for number in drawn}.isdisjoint(sum(other, ()))
