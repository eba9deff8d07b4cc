"""The figures of metrics.jsonl against known answers, and what ends a training that has diverged."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainings import build_setup

from krill.config.schema import TrainConfig
from krill.errors import KrillError
from krill.runs.record import Record, read_metrics
from krill.training.callbacks import progress
from krill.training.callbacks.progress import ProgressReporter

NOTHING: Any = None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The time in seconds, as the test sets it."""
    now = {"s": 0.0}
    fake = SimpleNamespace(monotonic=lambda: now["s"])
    monkeypatch.setattr(progress, "time", fake)
    return now


@pytest.fixture
def meter(
    make_config: Callable[..., TrainConfig], prepared_data: Any, tmp_path: Path, clock: Any
) -> ProgressReporter:
    """2 rows of 64 tokens a step, one epoch."""
    setting = build_setup(
        make_config("epochs=1"), tmp_path, prepared_data.store, prepared_data.tokenizer.folder
    )
    meter = ProgressReporter(Record(tmp_path), setting)
    meter.on_train_begin(NOTHING, at(0), NOTHING)
    return meter


def at(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=100, logging_steps=30)


def log(meter: ProgressReporter, step: int, **values: float) -> None:
    if "loss" in values:
        pace = {"tokens_per_second": 128.0, "seconds_left": 100.0 - step}
        values = {"learning_rate": 0.1, "grad_norm": 1.0, **pace, **values}
    meter.on_log(NOTHING, at(step), NOTHING, values)


def test_tokens_and_epochs_of_a_step(meter: ProgressReporter, tmp_path: Path) -> None:
    rows = len(meter.setup.train_rows)
    assert rows % 2 == 1, "the last step of this text holds no empty row"
    last = -(-rows // 2)
    log(meter, 3, loss=3.0)
    log(meter, last, loss=2.5)
    third, end = read_metrics(tmp_path)
    assert third["tokens"] == 3 * 128
    assert third["epoch"] == pytest.approx(6 / rows, abs=1e-6)
    assert end["epoch"] == 1.0  # empty rows are no part of an epoch


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_training_ends_with_the_line_on_record(
    meter: ProgressReporter, tmp_path: Path, loss: float
) -> None:
    message = r"validation loss is \w+ at step 8: the training has diverged.* lower lr=0\.003"
    with pytest.raises(KrillError, match=message):
        log(meter, 8, eval_loss=loss, eval_bits_per_byte=loss)
    assert [line["step"] for line in read_metrics(tmp_path)] == [8]


def test_a_line_of_bad_steps_has_no_loss(meter: ProgressReporter, tmp_path: Path) -> None:
    log(meter, 7, loss=math.nan, grad_norm=math.inf, skipped=1)
    (line,) = read_metrics(tmp_path)
    assert (line["loss"], line["grad_norm"], line["skipped"], line["lr"]) == (None, None, 1, 0.1)


def test_without_a_terminal_a_line_now_and_then(
    meter: ProgressReporter, clock: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("krill").propagate = True
    with caplog.at_level(logging.INFO, "krill"):
        for step in range(1, 41):
            clock["s"] = float(step)
            log(meter, step, loss=3.0)
    assert [record.getMessage().split()[1] for record in caplog.records] == ["16/100", "32/100"]
    assert caplog.records[0].getMessage() == "step 16/100  loss 3.000  128 tokens/s  0:01:24 left"


def test_the_first_the_last_and_each_log_everyth_step_are_logged(meter: ProgressReporter) -> None:
    logged = []
    for step in (1, 2, 60, 99, 100):
        control = SimpleNamespace(should_log=False)
        meter.on_step_end(NOTHING, at(step), control)
        logged.append(control.should_log)
    assert logged == [True, False, True, False, True]
