"""Every random number of a run comes from `seed`, and goes on where the run was stopped: dropout above all."""

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
"""GPT-2 drops a tenth of embeddings and residuals; varlen has no dropout of scores."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    theirs = weights(other)
    return all(torch.equal(tensor, theirs[name]) for name, tensor in weights(one).items())


def run_of(krill_train: Any, *words: str) -> Path:
    """The folder of a run that nothing disturbs."""
    before = set(krill_train.runs("gpt2"))
    assert krill_train(*DROPOUT, "resume=false", *words) == 0
    (folder,) = set(krill_train.runs("gpt2")) - before
    return Path(folder)


@pytest.fixture
def stopped(krill_train: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """stopped(3, "lr=1"): SIGTERM comes at the end of step 3, then the same command goes on; the folder."""

    def work(step: int, *words: str) -> Path:
        before = set(krill_train.runs("gpt2"))
        plain = ProgressReporter.on_step_end

        def signalled(self: ProgressReporter, args: Any, state: Any, control: Any, **rest: Any) -> None:
            plain(self, args, state, control, **rest)
            if state.global_step == step:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(ProgressReporter, "on_step_end", signalled)
            assert krill_train(*DROPOUT, *words) == 75
        assert krill_train(*DROPOUT, *words) == 0
        (folder,) = set(krill_train.runs("gpt2")) - before
        assert (read_status(folder) or {})["starts"] == 2
        return Path(folder)

    return work


@pytest.mark.parametrize(
    ("step", "workers"), [(3, 2), (4, 0)], ids=["at a validation that is cut, with workers", "between two"]
)
def test_dropout_goes_on_to_the_bit(
    krill_train: Any, stopped: Any, read_losses: Any, step: int, workers: int
) -> None:
    word = f"hardware.workers={workers}"
    whole = run_of(krill_train, word)
    folder = stopped(step, word)
    assert read_losses(folder) == read_losses(whole)
    assert same(folder, whole)


def test_dropout_is_there_and_follows_the_seed(krill_train: Any, read_losses: Any) -> None:
    words = ("steps=1", "lr=1e-9")
    loss = read_losses(run_of(krill_train, *words))
    assert read_losses(run_of(krill_train, *words)) == loss
    assert read_losses(run_of(krill_train, *words, "+model.config.resid_pdrop=0.0"))[0] != loss[0]


def test_how_often_it_validates_or_samples_does_not_change_what_is_dropped(krill_train: Any) -> None:
    whole = run_of(krill_train)
    assert same(run_of(krill_train, "eval_every=1", "sample_every=2", "log_every=3", "save_every=5"), whole)


def test_random_numpy_and_torch_are_seeded_before_the_model_and_before_the_first_step(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, ...]] = []
    plain = KrillTrainer.training_step

    def draw() -> None:
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))

    def built(*arguments: Any) -> Any:
        draw()
        return build_model(*arguments)

    def training_step(self: KrillTrainer, *arguments: Any) -> Any:
        draw()
        return plain(self, *arguments)

    monkeypatch.setattr("krill.training.run.build_model", built)
    monkeypatch.setattr(KrillTrainer, "training_step", training_step)
    for seed in (5, 5, 6):
        run_of(
            krill_train, "steps=1", f"seed={seed}"
        )  # each begins with the random state that the last one left
    first, again, other = drawn[:2], drawn[2:4], drawn[4:]
    assert first == again
    assert {number for place in first for number in place}.isdisjoint(sum(other, ()))
