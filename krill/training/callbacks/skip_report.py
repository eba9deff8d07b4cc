"""Reports each skipped step: why it was skipped, and which rows and documents it contained.

Writes a line of skipped.jsonl and logs a warning when the next line of metrics is written.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np

from krill.config.paths import relative_path
from krill.runs.json_lines import append_jsonl, truncate_jsonl
from krill.training.batches import map_segments_to_documents
from krill.training.callbacks.skip_step import BadStep
from krill.training.setup import RunSetup

log = logging.getLogger("krill")
MAX_LISTED = 8
"""The largest number of rows and of documents in a warning; the file lists all."""


class SkipReport:
    """Writes skipped.jsonl."""

    def __init__(self, setup: RunSetup, get_step_rows: Callable[[int], list[int]]):
        """`get_step_rows`: returns the rows of a step."""
        self.setup, self.get_step_rows = setup, get_step_rows
        self.file = setup.folder / "skipped.jsonl"

    def truncate(self, step: int) -> None:
        """Removes the lines after `step`, the last line of metrics before the resumed checkpoint."""
        truncate_jsonl(self.file, step)

    def report(self, bad_steps: list[BadStep]) -> None:
        """Writes and logs the bad steps."""
        for step in bad_steps:
            rows = self.get_step_rows(step.step)
            documents = self._find_documents(rows)
            line: dict[str, Any] = {
                "step": step.step, "reason": step.reason, "loss": step.loss, "grad_norm": step.grad_norm,
                "rows": rows, "documents": documents,
            }  # fmt: skip
            append_jsonl(self.file, line)
            log.warning(
                "step %d skipped: %s; its rows %s contain the documents %s of the training split",
                step.step, step.reason, _format_numbers(rows), _format_numbers(documents),
            )  # fmt: skip
        if bad_steps:
            log.warning(
                "skipped steps are listed in %s; to see a row: %s",
                relative_path(self.file),
                self._format_inspect_command(bad_steps[-1].step),
            )

    def _find_documents(self, rows: list[int]) -> list[int]:
        """Returns the indices of the documents in `rows`, sorted and unique."""
        packed = self.setup.train_rows
        documents = [
            map_segments_to_documents(packed, slice(packed.offsets[row], packed.offsets[row + 1]))
            for row in rows
        ]
        return np.unique(np.concatenate(documents)).tolist() if documents else []

    def _format_inspect_command(self, step: int) -> str:
        config, store = self.setup.config, relative_path(self.setup.store.folder)
        row = next(iter(self.get_step_rows(step)), 0)
        overrides = [
            f"store={store}",
            f"sequence_len={config.sequence_len}",
            f"packing={config.packing}",
            f"row={row}",
        ]
        return shlex.join(["krill-inspect", *overrides])


def _format_numbers(numbers: list[int]) -> str:
    """Formats the first MAX_LISTED numbers and the number of the others."""
    rest = f" and {len(numbers) - MAX_LISTED} more" if len(numbers) > MAX_LISTED else ""
    return ", ".join(map(str, numbers[:MAX_LISTED])) + rest
