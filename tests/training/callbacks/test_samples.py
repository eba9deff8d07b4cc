"""Tests samples during training: written once at their steps, without effect on the training."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from faults import train_and_signal
from trainings import assert_same_result


def read_samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_samples_are_written_and_change_no_result(krill_train: Any) -> None:
    assert krill_train("steps=6") == 0
    assert krill_train("steps=6", "sample_every=2", "sample_prompt=the quick", "resume=false") == 0
    without, run = krill_train.runs()
    assert [line["step"] for line in read_samples(run)] == [2, 4, 6]
    assert all(line["text"].startswith("the quick") for line in read_samples(run))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (without, run)]
    assert weights[0] == weights[1]
    assert not (without / "samples.jsonl").exists()


def test_a_resumed_run_has_each_sample_once(krill_train: Any) -> None:
    overrides = ("steps=6", "sample_every=1", "save_every=100")
    assert krill_train(*overrides) == 0
    (uninterrupted,) = krill_train.runs()
    assert train_and_signal(krill_train, signal.SIGTERM, 4, *overrides) == 75
    interrupted = krill_train.runs()[-1]
    with open(interrupted / "samples.jsonl", "a") as file:
        file.write('{"step": 5, "text": "written by a killed process"}\n{"step": 6, "te')
    assert krill_train(*overrides) == 0
    assert read_samples(interrupted) == read_samples(uninterrupted)
    assert_same_result(interrupted, uninterrupted)
