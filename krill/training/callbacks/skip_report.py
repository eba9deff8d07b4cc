"""What a person is told of a step that the guard left out: why, and which rows and documents it held.

A line of skipped.jsonl, and a warning, when the line of metrics behind it is written.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np

from krill.runs.record import append_jsonl, relative_path, truncate_jsonl
from krill.training.batches import map_segments_to_documents
from krill.training.callbacks.skip_step import BadStep
from krill.training.setup import RunSetup

log = logging.getLogger("krill")
MAX_LISTED = 8
"""So many rows and documents are named on the screen; the file has all."""


class SkipReport:
    """Writes skipped.jsonl."""

    def __init__(self, setting: RunSetup, rows_of: Callable[[int], list[int]]):
        """`rows_of`: the rows that a step sees."""
        self.setup, self.get_rows = setting, rows_of
        self.file = setting.folder / "skipped.jsonl"

    def truncate(self, step: int) -> None:
        """Leave out what was told after the line of metrics of `step`: the run goes on from there."""
        truncate_jsonl(self.file, step)

    def report(self, bad: list[BadStep]) -> None:
        """Write and say what is known of bad steps."""
        for step in bad:
            rows = self.get_rows(step.step)
            documents = self._find_documents(rows)
            line: dict[str, Any] = {
                "step": step.step, "reason": step.reason, "loss": step.loss, "grad_norm": step.grad_norm,
                "rows": rows, "documents": documents,
            }  # fmt: skip
            append_jsonl(self.file, line)
            log.warning(
                "step %d left out: %s; its rows %s hold the documents %s of the training split",
                step.step, step.reason, _format_numbers(rows), _format_numbers(documents),
            )  # fmt: skip
        if bad:
            log.warning(
                "all in %s; to see a row: %s",
                relative_path(self.file),
                self._format_inspect_command(bad[-1].step),
            )

    def _find_documents(self, rows: list[int]) -> list[int]:
        """The numbers of the documents in some rows, rising, each once."""
        packed = self.setup.train_rows
        found = [
            map_segments_to_documents(packed, slice(packed.offsets[row], packed.offsets[row + 1]))
            for row in rows
        ]
        return np.unique(np.concatenate(found)).tolist() if found else []

    def _format_inspect_command(self, step: int) -> str:
        config, store = self.setup.config, relative_path(self.setup.store.folder)
        row = next(iter(self.get_rows(step)), 0)
        words = [
            f"store={store}",
            f"sequence_len={config.sequence_len}",
            f"packing={config.packing}",
            f"row={row}",
        ]
        return shlex.join(["krill-inspect", *words])


def _format_numbers(numbers: list[int]) -> str:
    """The first of them, as a person reads them."""
    more = f" and {len(numbers) - MAX_LISTED} more" if len(numbers) > MAX_LISTED else ""
    return ", ".join(map(str, numbers[:MAX_LISTED])) + more
