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

KEY = "lr"


@dataclass(frozen=True)
class SweptEdge:
    """The best learning rate of a sweep, at an edge of those that were swept."""

    best: float
    swept: list[float]
    """In ascending order."""
    next: str
    """The command that extends the sweep beyond the edge; empty if the rates were not typed as a list."""

    def describe(self) -> str:
        """Returns one line."""
        side, other = ("highest", "higher") if self.best == self.swept[-1] else ("lowest", "lower")
        rates = ", ".join(f"{rate:g}" for rate in self.swept)
        return f"{KEY}={self.best:g} of the best point is the {side} of {rates}: a {other} one may be better"


def find_swept_edge(rows: Sequence[RunRow], folder: Path, record: Mapping[str, Any]) -> SweptEdge | None:
    """Returns the edge at which the best rate of the points of a sweep is; None: it is not, or is not known.

    Rates are compared among the points that share the other overrides of the best one, if there are any. `record`:
    the sweep.json of the sweep in `folder`.
    """
    ranked, _ = rank_by_validation_set(rows)
    if len(ranked) != 1:
        return None
    best = ranked[0][0]
    best_rate, others = _split_rate(best)
    alike = {_split_rate(row)[0] for row in rows if _split_rate(row)[1] == others}
    rates = alike if len(alike) > 1 else {_split_rate(row)[0] for row in rows}
    swept = sorted(rate for rate in rates if rate is not None)
    if best_rate is None or len(swept) < 2 or best_rate not in (swept[0], swept[-1]):
        return None
    neighbor = swept[1] if best_rate == swept[0] else swept[-2]
    return SweptEdge(
        best_rate, swept, _extend_sweep(folder, dict(record), best_rate**2 / neighbor if neighbor else 0.0)
    )


def describe_swept_edge(sweep: RunGroup) -> dict[str, Any]:
    """Returns the entry `edge` of a sweep as JSON types: null if its best rate is not at an edge."""
    edge = find_swept_edge(build_rows(sweep.runs), sweep.folder, sweep.sweep_record)
    return {"edge": edge and asdict(edge)}


def _split_rate(row: RunRow) -> tuple[float | None, tuple[str, ...]]:
    """Returns the learning rate among the overrides of a point, and its other overrides."""
    rate = None
    for override in row.overrides:
        key, _, value = override.partition("=")
        if key == KEY:
            with suppress(ValueError):
                rate = float(value)
    return rate, tuple(override for override in row.overrides if override.partition("=")[0] != KEY)


def _extend_sweep(folder: Path, record: dict[str, Any], rate: float) -> str:
    """Returns the command of a sweep with one more rate; empty if its rates are not a list of numbers."""
    typed = record.get("typed")
    if not isinstance(typed, list) or rate <= 0:
        return ""
    extended = []
    for argument in map(str, typed):
        key, _, values = argument.partition("=")
        if key == KEY:
            try:
                [float(value) for value in values.split(",")]
            except ValueError:
                return ""
            argument = f"{argument},{rate:.3g}"
        extended.append(argument)
    return build_sweep_command(folder, {**record, "typed": extended}) if extended != typed else ""
