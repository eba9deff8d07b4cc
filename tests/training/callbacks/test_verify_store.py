"""Tests that a run stops when its token store is corrupt or belongs to another tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from faults import flip_bit

from krill.data.store import Store
from krill.runs import checkpoints
from krill.runs.record import read_status
from krill.training.callbacks import verify_store


@pytest.fixture
def store(krill_train: Any, prepared_data: Any) -> Path:
    """A copy of the token store of the runs, which the test may corrupt."""
    folder: Path = krill_train.outputs / "data"
    folder.unlink()
    return Path(shutil.copytree(prepared_data.store, folder / prepared_data.store.name))


def flip_bit_of_largest_shard(store: Path) -> Path:
    file = max(store.glob("train-*"), key=lambda path: path.stat().st_size)
    flip_bit(file)
    return file


def test_a_corrupt_store_ends_the_run_before_the_first_step(
    krill_train: Any, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = flip_bit_of_largest_shard(store)
    assert krill_train("output=run") == 1
    error = capsys.readouterr().err
    assert f"{file.name} has changed since it was written" in error
    run = krill_train.outputs / "run"
    assert (read_status(run) or {})["state"] == "failed"
    assert not (run / "metrics.jsonl").read_text()
    assert file.exists(), "the corrupt file is not removed"


def test_corruption_found_during_training_ends_the_run(
    krill_train: Any, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_bit_of_largest_shard(store)
    original, steps = verify_store.StoreVerifier.on_step_end, []

    def on_step_end(
        self: verify_store.StoreVerifier, args: Any, state: Any, control: Any, **rest: Any
    ) -> None:
        steps.append(state.global_step)
        if state.global_step == 3:
            self._verify()
        original(self, args, state, control, **rest)

    monkeypatch.setattr(verify_store.StoreVerifier, "on_train_begin", lambda *_, **__: None)
    monkeypatch.setattr(verify_store.StoreVerifier, "on_step_end", on_step_end)
    assert krill_train("output=run") == 1
    assert "has changed since it was written" in capsys.readouterr().err
    assert steps == [1, 2, 3]
    run = krill_train.outputs / "run"
    assert [checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(run / "checkpoints")] == [2]
    assert not (run / "model").exists()


def test_a_store_of_another_tokenizer_is_refused(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Store.open.__func__  # type: ignore[attr-defined]

    def open_with_another_tokenizer(folder: Path) -> Store:
        opened_store = original(Store, folder)
        opened_store.tokenizer_signature = "0" * 64
        return opened_store

    monkeypatch.setattr("krill.training.setup.Store.open", staticmethod(open_with_another_tokenizer))
    assert krill_train() == 2
    assert "was encoded with another tokenizer" in capsys.readouterr().err
