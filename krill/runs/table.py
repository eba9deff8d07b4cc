"""Runs side by side: a row each, as a table, as CSV, as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from krill import atomic
from krill.runs.record import last_metrics, read_status, seconds
from krill.runs.standing import Standing, log_of, standings

WIDTH = 160
"""Columns of a table that is not printed to a terminal."""


@dataclass(frozen=True)
class Row:
    """One run; what is not known, or not yet, is None."""

    folder: str
    name: str
    overrides: tuple[str, ...]
    state: str
    step: int | None
    steps: int | None
    loss: float | None
    eval_loss: float | None
    eval_bits_per_byte: float | None
    tokens_per_second: float | None
    seconds: float | None
    start: str | None
    end: str | None
    starts: int | None
    host: str | None
    job: str | None
    error: str
    log: str


def rows(folders: Sequence[Path], failures: Mapping[Path, str] | None = None) -> list[Row]:
    """A row per run folder, in their order. `failures`: of runs that could not say themselves how they ended."""
    stands, known = standings(folders), failures or {}
    return [_row(folder, stands[folder], known.get(folder)) for folder in folders]


def best_first(table: Sequence[Row]) -> list[Row]:
    """The lowest validation loss first, runs without one last."""
    return sorted(table, key=lambda row: (_rank(row.eval_loss), _rank(row.loss)))


def _rank(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _row(folder: Path, stands: Standing, failure: str | None) -> Row:
    status = read_status(folder) or {}
    last, final = last_metrics(folder), status.get("metrics", {})
    best = status.get("best") or {}
    return Row(
        folder=str(folder),
        name=status.get("name", ""),
        overrides=tuple(status.get("overrides", [])),
        state="failed" if failure else stands.state,
        step=final.get("step", last.get("step")),
        steps=status.get("steps"),
        loss=final.get("loss", last.get("loss")),
        eval_loss=final.get("eval_loss", best.get("eval_loss")),
        eval_bits_per_byte=final.get("eval_bits_per_byte"),
        tokens_per_second=last.get("tokens_per_second"),
        seconds=seconds(status) if stands.state != "killed" else None,
        start=status.get("start"),
        end=status.get("end"),
        starts=status.get("starts"),
        host=status.get("host"),
        job=stands.job or status.get("slurm_job_id"),
        error=failure or (stands.why if stands.state not in ("running", "queued") else ""),
        log=str(log_of(folder, status)) if status else "",
    )


def as_csv(table: Sequence[Row]) -> str:
    """A line of names, then one for each row."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(Row)])
    for row in table:
        writer.writerow((asdict(row) | {"overrides": " ".join(row.overrides)}).values())
    return text.getvalue()


def as_json(table: Sequence[Row]) -> str:
    """A list of objects; what is no number (a loss that diverged) is null, as JSON has none."""
    return json.dumps(
        [{key: _finite(value) for key, value in asdict(row).items()} for row in table], indent=2
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(table: Sequence[Row], folder: Path) -> Path:
    """Write `folder`/table.csv."""
    path = folder / "table.csv"
    atomic.write_text(path, as_csv(table))
    return path


def show(table: Sequence[Row], file: IO[str], whole: bool = False) -> None:
    """Print the table, then what went wrong, a line each. `whole`: name folders by their paths."""
    from rich.console import Console

    console = Console(file=file, width=None if file.isatty() else WIDTH)
    console.print(drawn(table, whole))
    for row in table:
        if row.error:
            log = f"  ({row.log})" if row.log else ""
            console.print(f"{Path(row.folder).name}: {row.error}{log}", highlight=False, markup=False)


def drawn(table: Sequence[Row], whole: bool = False) -> Any:
    """The table for rich: what was typed for every run alike is left out."""
    from rich.markup import escape
    from rich.table import Table

    from krill.runs.record import shown

    everywhere = set.intersection(*(set(row.overrides) for row in table)) if len(table) > 1 else set()
    screen = Table()
    screen.add_column("#")
    screen.add_column("state", no_wrap=True)
    screen.add_column("overrides", overflow="ellipsis" if whole else "fold", no_wrap=whole, max_width=50)
    for name in ("step", "train loss", "val. loss", "bits/byte", "seconds", "folder"):
        screen.add_column(name, overflow="fold")
    for index, row in enumerate(table, 1):
        screen.add_row(
            str(index),
            row.state + (f" {row.job}" if row.job and row.state in ("queued", "running") else ""),
            escape(" ".join(text for text in row.overrides if text not in everywhere)),
            "" if row.step is None else f"{row.step}/{row.steps or '?'}",
            _figure(row.loss),
            _figure(row.eval_loss),
            _figure(row.eval_bits_per_byte),
            _figure(row.seconds, 0),
            escape(str(shown(Path(row.folder))) if whole else Path(row.folder).name),
        )
    return screen


def _figure(value: float | None, places: int = 4) -> str:
    return "" if value is None else f"{value:.{places}f}"
