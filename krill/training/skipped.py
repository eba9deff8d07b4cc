"""What a person is told of a step that the guard left out: why, and which rows and documents it held.

A line of skipped.jsonl, and a warning, when the line of metrics behind it is written.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np

from krill.runs.record import append_line, cut_lines, shown
from krill.training.batches import segment_documents
from krill.training.guard import BadStep
from krill.training.setting import Setting

log = logging.getLogger("krill")
NAMED = 8
"""So many rows and documents are named on the screen; the file has all."""


class Skipped:
    """Writes skipped.jsonl."""

    def __init__(self, setting: Setting, rows_of: Callable[[int], list[int]]):
        """`rows_of`: the rows that a step sees."""
        self.setting, self.rows_of = setting, rows_of
        self.file = setting.folder / "skipped.jsonl"

    def cut(self, step: int) -> None:
        """Leave out what was told after the line of metrics of `step`: the run goes on from there."""
        cut_lines(self.file, step)

    def tell(self, bad: list[BadStep]) -> None:
        """Write and say what is known of bad steps."""
        for step in bad:
            rows = self.rows_of(step.step)
            documents = self._documents(rows)
            line: dict[str, Any] = {
                "step": step.step, "reason": step.reason, "loss": step.loss, "grad_norm": step.grad_norm,
                "rows": rows, "documents": documents,
            }  # fmt: skip
            append_line(self.file, line)
            log.warning(
                "step %d left out: %s; its rows %s hold the documents %s of the training split",
                step.step, step.reason, _some(rows), _some(documents),
            )  # fmt: skip
        if bad:
            log.warning("all in %s; to see a row: %s", shown(self.file), self._command(bad[-1].step))

    def _documents(self, rows: list[int]) -> list[int]:
        """The numbers of the documents in some rows, rising, each once."""
        packed = self.setting.rows
        found = [
            segment_documents(packed, slice(packed.offsets[row], packed.offsets[row + 1])) for row in rows
        ]
        return np.unique(np.concatenate(found)).tolist() if found else []

    def _command(self, step: int) -> str:
        config, store = self.setting.config, shown(self.setting.store.folder)
        row = next(iter(self.rows_of(step)), 0)
        words = [
            f"store={store}",
            f"sequence_len={config.sequence_len}",
            f"packing={config.packing}",
            f"row={row}",
        ]
        return shlex.join(["krill-inspect", *words])


def _some(numbers: list[int]) -> str:
    """The first of them, as a person reads them."""
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return ", ".join(map(str, numbers[:NAMED])) + more
