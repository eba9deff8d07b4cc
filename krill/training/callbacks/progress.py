"""Reports progress: lines in metrics.jsonl, and a progress bar on a terminal or periodic log lines elsewhere."""

from __future__ import annotations

import logging
import math
import time
from datetime import timedelta
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.evaluation.score_metrics import format_metric, list_main_metrics
from krill.runs.json_lines import EVALUATION_SECONDS
from krill.runs.record import Record
from krill.terminal import start_progress_bar
from krill.training import ranks
from krill.training.callbacks.skip_step import (
    DIVERGED_MESSAGE,
    DivergenceError,
    suggest_divergence_remedy,
)
from krill.training.setup import RunSetup

log = logging.getLogger("krill")
LOG_INTERVAL_SECONDS = 15.0
TRAINER_LOG_KEYS = ("loss", "learning_rate", "grad_norm", "epoch")
"""Keys that transformers logs for a step; all other keys are krill's and keep their names in metrics.jsonl."""


def is_logging_step(step: int, state: TrainerState) -> bool:
    """Returns whether `step` gets a line of metrics: the first, the last, and every log_every-th step."""
    return step in (1, state.max_steps) or step % state.logging_steps == 0


class ProgressReporter(TrainerCallback):
    """Writes logged steps, validations and evaluations to metrics.jsonl and displays them."""

    def __init__(self, record: Record, setup: RunSetup):
        self.record, self.setup = record, setup
        self.last_log_time = 0.0
        self.bar: Progress | None = None
        self.validation_task: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.last_log_time = time.monotonic()
        if bar := self._open_bar():
            self.task = bar.add_task(
                "training", total=state.max_steps, completed=state.global_step, metrics=""
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_log |= is_logging_step(state.global_step, state)
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        rows = self.setup.validation_rows
        if rows is None or not (bar := self._open_bar()):
            return
        if self.validation_task is None:
            rows_per_batch = self.setup.config.batch.micro_batch_size * ranks.get_world_size()
            batches = -(-len(rows) // rows_per_batch)
            self.validation_task = bar.add_task("validation", total=batches, metrics="")
        bar.advance(self.validation_task)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.bar and self.validation_task is not None:
            self.bar.remove_task(self.validation_task)
            self.validation_task = None
        if self.bar and not self.bar.tasks:  # after the training
            self.close()

    def _open_bar(self) -> Progress | None:
        """Returns the progress bar, which is shown from now on; None without a terminal."""
        if self.bar is None and ranks.is_rank0():
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[metrics]}"))
            self.bar = start_progress_bar("{task.description}", *columns, TimeRemainingColumn())
        return self.bar

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        step = state.global_step
        position: dict[str, Any] = {
            "step": step,
            "epoch": round(self.setup.epochs_at(step), 6),
            "tokens": self.setup.tokens_at(step),
        }
        if "loss" in logs:
            others = {key: value for key, value in logs.items() if key not in TRAINER_LOG_KEYS}
            metrics = {"loss": logs["loss"], "lr": logs["learning_rate"], "grad_norm": logs.get("grad_norm")}
            self.record.append_metrics(position | _replace_non_finite({**metrics, **others}))
            self._display_step(state, logs)
        elif "eval_loss" in logs:
            metrics = {key: value for key, value in logs.items() if key.startswith("eval_")}
            self.record.append_metrics(position | metrics)
            self._raise_if_not_finite(logs["eval_loss"], step)
            self._print_line(
                f"step {step}/{state.max_steps}  validation loss {logs['eval_loss']:.4f} nats/token  "
                f"{logs['eval_bits_per_byte']:.4f} bits/byte"
            )
        elif EVALUATION_SECONDS in logs:
            scores = {key: value for key, value in logs.items() if "/" in key}
            self.record.append_metrics(position | scores | {EVALUATION_SECONDS: logs[EVALUATION_SECONDS]})
            texts = [format_metric(name, value) for name, value in list_main_metrics(scores).items()]
            self._print_line(f"step {step}/{state.max_steps}  {'  '.join(texts)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.close()

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the progress bar."""
        if self.bar:
            self.bar.stop()
            self.bar = self.validation_task = None

    def _raise_if_not_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the validation loss is {loss} at step {step}: {DIVERGED_MESSAGE}; "
                f"{suggest_divergence_remedy(self.setup.config.lr)}"
            )

    def _display_step(self, state: TrainerState, logs: dict[str, float]) -> None:
        metrics = f"loss {logs['loss']:.3f}  {logs['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in logs:
            metrics += f"  {100 * logs['mfu']:.0f} % MFU"
        if self.bar:
            self.bar.update(self.task, metrics=metrics)
        elif time.monotonic() - self.last_log_time > LOG_INTERVAL_SECONDS:
            self.last_log_time = time.monotonic()
            time_left = timedelta(seconds=round(logs["seconds_left"]))
            log.info("step %d/%d  %s  %s left", state.global_step, state.max_steps, metrics, time_left)

    def _print_line(self, line: str) -> None:
        if self.bar:
            self.bar.console.print(line, highlight=False)
            log.debug(line)
        else:
            log.info(line)


def _replace_non_finite(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """Returns `metrics` with None for NaN and infinity, e.g. the mean loss of a line without any good step."""
    return {
        key: value if value is not None and math.isfinite(value) else None for key, value in metrics.items()
    }
