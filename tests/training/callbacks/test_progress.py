"""Tests the progress reporter: lines of metrics.jsonl, log lines, and the error for a diverged training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainings import build_setup

from krill import terminal
from krill.config.schema import TrainConfig
from krill.data.order import row_at
from krill.data.packing import Rows, pack
from krill.errors import KrillError
from krill.runs.json_lines import read_metrics
from krill.runs.record import Record
from krill.training import run
from krill.training.batches import RowCollator, TokenCounter
from krill.training.callbacks import progress
from krill.training.callbacks.progress import ProgressReporter
from krill.training.callbacks.signals import StopOnSignal

UNUSED: Any = None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The fake time in seconds, which the test sets."""
    now = {"s": 0.0}
    fake_time = SimpleNamespace(monotonic=lambda: now["s"])
    monkeypatch.setattr(progress, "time", fake_time)
    return now


@pytest.fixture
def reporter(
    make_config: Callable[..., TrainConfig], prepared_data: Any, tmp_path: Path, clock: Any
) -> ProgressReporter:
    """A reporter of a run with 2 rows of 64 tokens per step, for one epoch."""
    setup = build_setup(
        make_config("epochs=1"), tmp_path, prepared_data.store, prepared_data.tokenizer.folder
    )
    reporter = ProgressReporter(Record(tmp_path), setup)
    reporter.on_train_begin(UNUSED, state_at(0), UNUSED)
    return reporter


def state_at(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=100, logging_steps=30)


def log(reporter: ProgressReporter, step: int, **values: float) -> None:
    if "loss" in values:
        throughput = {"tokens_per_second": 128.0, "seconds_left": 100.0 - step}
        values = {"learning_rate": 0.1, "grad_norm": 1.0, **throughput, **values}
    reporter.on_log(UNUSED, state_at(step), UNUSED, values)


def test_lines_have_tokens_and_epochs(reporter: ProgressReporter, tmp_path: Path) -> None:
    rows = len(reporter.setup.train_rows)
    assert rows % 2 == 1, "the last step must contain an empty row"
    last_step = -(-rows // 2)
    log(reporter, 3, loss=3.0)
    log(reporter, last_step, loss=2.5)
    third, last_line = read_metrics(tmp_path)
    assert third["tokens"] == sum(
        count_tokens(reporter.setup.train_rows, row_at(0, 0, p, rows)) for p in range(6)
    )
    assert last_line["tokens"] == reporter.setup.store.train.tokens < last_step * 128
    assert third["epoch"] == pytest.approx(6 / rows, abs=1e-6)
    assert last_line["epoch"] == 1.0  # empty rows are not counted


def count_tokens(rows: Rows, row: int) -> int:
    """Returns the tokens of a row, without padding."""
    return int((rows.get_row(row).input_ids != rows.stream.pad_id).sum())


def test_two_epochs_have_twice_the_tokens_of_one(reporter: ProgressReporter) -> None:
    rows = reporter.setup.train_rows
    counter = TokenCounter(rows, seed=3)
    assert counter.count(2 * len(rows)) == 2 * rows.tokens
    position = len(rows) + 5
    expected = rows.tokens + sum(count_tokens(rows, row_at(3, 1, p, len(rows))) for p in range(5))
    assert [counter.count(position), TokenCounter(rows, 3).count(position)] == [expected, expected]  # resumed
    full_rows = pack(reporter.setup.store.train, 8, "wrapped")
    assert TokenCounter(full_rows, 0).count(len(full_rows)) == full_rows.tokens


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_validation_is_recorded_and_raises(
    reporter: ProgressReporter, tmp_path: Path, loss: float
) -> None:
    message = r"validation loss is \w+ at step 8: the training has diverged.* set lr= below 0\.003"
    with pytest.raises(KrillError, match=message):
        log(reporter, 8, eval_loss=loss, eval_bits_per_byte=loss)
    assert [line["step"] for line in read_metrics(tmp_path)] == [8]


def test_a_line_with_only_bad_steps_has_no_loss(reporter: ProgressReporter, tmp_path: Path) -> None:
    log(reporter, 7, loss=math.nan, grad_norm=math.inf, skipped=1)
    (line,) = read_metrics(tmp_path)
    assert (line["loss"], line["grad_norm"], line["skipped"], line["lr"]) == (None, None, 1, 0.1)


def test_without_a_terminal_a_line_is_logged_every_15_seconds(
    reporter: ProgressReporter, clock: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("krill").propagate = True
    with caplog.at_level(logging.INFO, "krill"):
        for step in range(1, 41):
            clock["s"] = float(step)
            log(reporter, step, loss=3.0)
    assert [record.getMessage().split()[1] for record in caplog.records] == ["16/100", "32/100"]
    assert caplog.records[0].getMessage() == "step 16/100  loss 3.000  128 tokens/s  0:01:24 left"


def test_a_terminal_has_a_bar_for_the_validation(
    reporter: ProgressReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter.on_prediction_step(UNUSED, UNUSED, UNUSED)
    assert reporter.bar is None  # not a terminal
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    assert reporter.setup.validation_rows is not None
    batches = -(-len(reporter.setup.validation_rows) // 2)
    with reporter:
        reporter.on_train_begin(UNUSED, state_at(0), UNUSED)
        for _ in range(2):
            for _ in range(batches):
                reporter.on_prediction_step(UNUSED, UNUSED, UNUSED)
            assert reporter.bar is not None
            training, validation = reporter.bar.tasks
            assert (training.total, validation.total, validation.completed) == (100, batches, batches)
            reporter.on_evaluate(UNUSED, UNUSED, UNUSED)
            assert len(reporter.bar.tasks) == 1
        reporter.on_train_end(UNUSED, UNUSED, UNUSED)
        reporter.on_prediction_step(UNUSED, UNUSED, UNUSED)
        assert [task.description for task in reporter.bar.tasks] == ["validation"]
        reporter.on_evaluate(UNUSED, UNUSED, UNUSED)
        assert reporter.bar is None


def test_the_bar_of_a_validation_counts_its_batches(
    make_config: Callable[..., TrainConfig],
    prepared_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training splits 3 rows per step into passes of 1 row; a validation has batches of 2."""
    setup = build_setup(
        make_config("batch.tokens=192"), tmp_path, prepared_data.store, prepared_data.tokenizer.folder
    )
    assert setup.batch_shape.micro_batch_size == 1
    collator = RowCollator(setup.attention_backend, setup.device)
    validation_set = run._build_validation_set(setup, collator, StopOnSignal())
    assert validation_set is not None
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    with ProgressReporter(Record(tmp_path), setup) as reporter:
        reporter.on_prediction_step(UNUSED, UNUSED, UNUSED)
        assert reporter.bar is not None
        assert reporter.bar.tasks[0].total == len(list(validation_set.load_batches()))


def test_first_last_and_every_log_everyth_step_are_logged(reporter: ProgressReporter) -> None:
    logged = []
    for step in (1, 2, 60, 99, 100):
        control = SimpleNamespace(should_log=False)
        reporter.on_step_end(UNUSED, state_at(step), control)
        logged.append(control.should_log)
    assert logged == [True, False, True, False, True]
