"""Samples on the way: written at their steps, once each, and the training does not notice."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from faults import train_and_signal
from trainings import assert_same_result


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_they_are_written_and_change_nothing(krill_train: Any) -> None:
    assert krill_train("steps=6") == 0
    assert krill_train("steps=6", "sample_every=2", "sample_prompt=the quick", "resume=false") == 0
    without, run = krill_train.runs()
    assert [line["step"] for line in samples(run)] == [2, 4, 6]
    assert all(line["text"].startswith("the quick") for line in samples(run))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (without, run)]
    assert weights[0] == weights[1]
    assert not (without / "samples.jsonl").exists()


def test_a_run_that_goes_on_has_each_of_them_once(krill_train: Any) -> None:
    words = ("steps=6", "sample_every=1", "save_every=100")
    assert krill_train(*words) == 0
    (whole,) = krill_train.runs()
    assert train_and_signal(krill_train, signal.SIGTERM, 4, *words) == 75
    stopped = krill_train.runs()[-1]
    with open(stopped / "samples.jsonl", "a") as file:
        file.write('{"step": 5, "text": "of a process that was killed"}\n{"step": 6, "te')
    assert krill_train(*words) == 0
    assert samples(stopped) == samples(whole)
    assert_same_result(stopped, whole)
