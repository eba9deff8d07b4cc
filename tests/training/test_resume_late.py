"""Tests that resuming at step one million reads as few rows as resuming at step two."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krill.data.packing import Rows
from krill.training import batches
from krill.training.callbacks.progress import ProgressReporter

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "resume_time.py"
LATE = 1_000_000


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """stop_at(3): runs end at step 3."""
    original = ProgressReporter.on_step_end

    def set_last_step(step: int) -> None:
        def on_step_end(self: ProgressReporter, args: Any, state: Any, control: Any, **rest: Any) -> None:
            original(self, args, state, control, **rest)
            control.should_training_stop |= state.global_step == step

        monkeypatch.setattr(ProgressReporter, "on_step_end", on_step_end)

    return set_last_step


def test_the_first_resumed_step_reads_as_many_rows_late_as_early(
    train_in: Callable[..., Path], make_config: Callable[..., Any], stop_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spec = importlib.util.spec_from_file_location("resume_time", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    # No validation at the end, which reads rows too, and no tasks, which a run of so many steps could afford.
    monkeypatch.setattr("krill.training.run.collect_final_metrics", lambda *_: {})
    for name in ("save_final_model", "log_summary"):
        monkeypatch.setattr(f"krill.training.run.{name}", lambda *_: None)
    monkeypatch.setattr("krill.training.run.compute_validation_baselines", lambda *_: None)

    config = make_config(f"steps={LATE + 5}", "save_every=2", "evaluation.at_end=false")
    stop_at(2)
    early = train_in(config, "early")
    shutil.copytree(early, early.with_name("late"))
    script.move_checkpoint(early.with_name("late"), LATE)

    calls: Counter[str] = Counter()
    for owner, name in ((batches, "row_at"), (Rows, "get_row")):
        original = getattr(owner, name)

        def counted(*args: Any, original: Any = original, name: str = name) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(owner, name, counted)
    counts = []
    for folder, step in (("early", 2), ("late", LATE)):
        calls.clear()
        stop_at(step + 1)
        train_in(config, folder)
        counts.append(dict(calls))
    # Of the three calls of row_at one counts the tokens of the step.
    assert counts[0] == counts[1] == {"row_at": 3, "get_row": 2}
