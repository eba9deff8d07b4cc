"""Runs side by side: a row each, best first."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from krill import atomic
from krill.runs.record import read_status, seconds
from krill.runs.standing import Standing, log_of, standings


@dataclass(frozen=True)
class Row:
    """One run."""

    folder: str
    overrides: tuple[str, ...]
    state: str
    eval_loss: float | None
    eval_bits_per_byte: float | None
    loss: float | None
    seconds: float | None
    error: str
    log: str


def rows(folders: Sequence[Path], failures: Mapping[Path, str] | None = None) -> list[Row]:
    """A row per run folder, the lowest validation loss first, runs without one last.

    `failures`: of runs that could not say themselves how they ended.
    """
    stands, known = standings(folders), failures or {}
    every = [_row(folder, stands[folder], known.get(folder)) for folder in folders]
    return sorted(every, key=lambda row: (_rank(row.eval_loss), _rank(row.loss)))


def _rank(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _row(folder: Path, stands: Standing, failure: str | None) -> Row:
    status = read_status(folder) or {}
    metrics = status.get("metrics", {})
    return Row(
        folder=str(folder),
        overrides=tuple(status.get("overrides", [])),
        state="failed" if failure else stands.state,
        eval_loss=metrics.get("eval_loss"),
        eval_bits_per_byte=metrics.get("eval_bits_per_byte"),
        loss=metrics.get("loss"),
        seconds=seconds(status),
        error=failure or (stands.why if stands.state not in ("running", "queued") else ""),
        log=str(log_of(folder, status)) if status else "",
    )


def write(table: Sequence[Row], folder: Path) -> Path:
    """Write `folder`/table.csv."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = [field.name for field in fields(Row)]
    writer.writerow(names)
    for row in table:
        values = asdict(row) | {"overrides": " ".join(row.overrides)}
        writer.writerow(values.values())
    path = folder / "table.csv"
    atomic.write_text(path, text.getvalue())
    return path


def show(table: Sequence[Row]) -> None:
    """Print the table to standard error."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    everywhere = set.intersection(*(set(row.overrides) for row in table)) if len(table) > 1 else set()
    screen = Table()
    for name in ("#", "overrides", "val. loss", "bits/byte", "train loss", "seconds", "state", "folder"):
        screen.add_column(name, overflow="fold")
    for index, row in enumerate(table, 1):
        screen.add_row(
            str(index),
            escape(" ".join(text for text in row.overrides if text not in everywhere)),
            _figure(row.eval_loss),
            _figure(row.eval_bits_per_byte),
            _figure(row.loss),
            _figure(row.seconds, 0),
            row.state,
            escape(Path(row.folder).name),
        )
    console = Console(stderr=True)
    console.print(screen)
    for row in table:
        if row.error:
            log = f"  ({row.log})" if row.log else ""
            console.print(f"{Path(row.folder).name}: {row.error}{log}", highlight=False, markup=False)


def _figure(value: float | None, places: int = 4) -> str:
    return "" if value is None else f"{value:.{places}f}"
