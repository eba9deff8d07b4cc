"""Finds out whether the best learning rate of a sweep is the lowest or the highest one that was swept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krill.runs.find import RunGroup
from krill.runs.ranking import rank_by_validation_set
from krill.runs.summary import build_sweep_command
from krill.runs.table import RunRow, build_rows

KEYS = ("lr", "lr_scale")
"""The keys that a sweep over learning rates sets."""


@dataclass(frozen=True)
class SweptEdge:
    """The best learning rate of a sweep, at an edge of those that were swept."""

    key: str
    """lr or lr_scale."""
    best: float
    swept: list[float]
    """In ascending order."""
    next: str
    """The command that extends the sweep beyond the edge; empty if the rates were not typed as a list."""

    def describe(self) -> str:
        """Returns one line."""
        side, other = ("highest", "higher") if self.best == self.swept[-1] else ("lowest", "lower")
        rates = ", ".join(f"{rate:g}" for rate in self.swept)
        return f"{self.key}={self.best:g} of the best point is the {side} of {rates}: a {other} one may be better"


def find_swept_edge(rows: Sequence[RunRow], folder: Path, record: Mapping[str, Any]) -> SweptEdge | None:
    """Returns the edge at which the best rate of the points of a sweep is; None: it is not, or is not known.

    Rates are compared among the points that share the other overrides of the best one, if there are any. `record`:
    the sweep.json of the sweep in `folder`.
    """
    ranked, _ = rank_by_validation_set(rows)
    if len(ranked) != 1:
        return None
    best = ranked[0][0]
    keys = {override.partition("=")[0] for override in best.overrides}
    key = next((key for key in KEYS if key in keys), KEYS[0])
    best_rate, others = _split_rate(best, key)
    alike = {_split_rate(row, key)[0] for row in rows if _split_rate(row, key)[1] == others}
    rates = alike if len(alike) > 1 else {_split_rate(row, key)[0] for row in rows}
    swept = sorted(rate for rate in rates if rate is not None)
    if best_rate is None or len(swept) < 2 or best_rate not in (swept[0], swept[-1]):
        return None
    neighbor = swept[1] if best_rate == swept[0] else swept[-2]
    rate = best_rate**2 / neighbor if neighbor else 0.0
    return SweptEdge(key, best_rate, swept, _extend_sweep(folder, dict(record), key, rate))


def describe_swept_edge(sweep: RunGroup) -> dict[str, Any]:
    """Returns the entry `edge` of a sweep as JSON types: null if its best rate is not at an edge."""
    edge = find_swept_edge(build_rows(sweep.runs), sweep.folder, sweep.sweep_record)
    return {"edge": edge and asdict(edge)}


def _split_rate(row: RunRow, rate_key: str) -> tuple[float | None, tuple[str, ...]]:
    """Returns the learning rate among the overrides of a point, and its other overrides."""
    rate = None
    for override in row.overrides:
        key, _, value = override.partition("=")
        if key == rate_key:
            with suppress(ValueError):
                rate = float(value)
    return rate, tuple(override for override in row.overrides if override.partition("=")[0] != rate_key)


def _extend_sweep(folder: Path, record: dict[str, Any], rate_key: str, rate: float) -> str:
    """Returns the command of a sweep with one more rate; empty if its rates are not a list of numbers."""
    typed = record.get("typed")
    if not isinstance(typed, list) or rate <= 0:
        return ""
    extended = []
    for argument in map(str, typed):
        key, _, values = argument.partition("=")
        if key == rate_key:
            try:
                [float(value) for value in values.split(",")]
            except ValueError:
                return ""
            argument = f"{argument},{rate:.3g}"
        extended.append(argument)
    return build_sweep_command(folder, {**record, "typed": extended}) if extended != typed else ""
