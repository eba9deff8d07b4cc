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
from krill.runs import slurm
from krill.runs.find import Run, runs_at
from krill.runs.record import last_metrics, seconds
from krill.runs.standing import GOES_ON, Standing, log_of, standings_of

WIDTH = 200
"""Columns of a table that is not printed to a terminal."""


@dataclass(frozen=True)
class Row:
    """One run; what is not known, or not yet, is None."""

    folder: str
    name: str
    command: str
    state: str
    why: str
    overrides: tuple[str, ...]
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
    sweep: str | None


def rows(folders: Sequence[Path], failures: Mapping[Path, str] | None = None) -> list[Row]:
    """A row per run folder, in their order. `failures`: of runs that could not say themselves how they ended."""
    return rows_of(runs_at(folders), failures)


def rows_of(runs: Sequence[Run], failures: Mapping[Path, str] | None = None) -> list[Row]:
    """`rows` of runs that were found already."""
    stands, known = standings_of({run.folder: run.status for run in runs}), failures or {}
    return [_row(run, stands[run.folder], known.get(run.folder)) for run in runs]


def best_first(table: Sequence[Row]) -> list[Row]:
    """The lowest validation loss first, runs without one last."""
    return sorted(table, key=lambda row: (_rank(row.eval_loss), _rank(row.loss)))


def _rank(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _row(run: Run, stands: Standing, failure: str | None) -> Row:
    status = run.status or {}
    last = last_metrics(run.folder, ("step", "loss", "tokens_per_second"))
    final, best = status.get("metrics") or {}, status.get("best") or {}
    overrides = status.get("overrides") or run.told.get("overrides") or []

    def number(key: str, *places: Mapping[str, Any]) -> Any:
        return next((each[key] for each in places if isinstance(each.get(key), (int, float))), None)

    return Row(
        folder=str(run.folder),
        name=status.get("name") or "",
        command=str(status.get("command") or run.told.get("command") or "train"),
        state="failed" if failure else stands.state,
        why=failure or stands.why,
        overrides=tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        step=number("step", final, last),
        steps=status.get("steps"),
        loss=number("loss", final, last),
        eval_loss=number("eval_loss", final, best),
        eval_bits_per_byte=number("eval_bits_per_byte", final),
        tokens_per_second=number("tokens_per_second", last),
        seconds=seconds(status) if stands.state != "killed" else None,
        start=status.get("start"),
        end=status.get("end"),
        starts=status.get("starts"),
        host=status.get("host"),
        job=stands.job or status.get("slurm_job_id"),
        error=failure or (stands.why if stands.state not in GOES_ON else ""),
        log=str(log_of(run.folder, status)) if run.status else "",
        sweep=None if run.sweep is None else str(run.sweep),
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
    return json.dumps([plain(row) for row in table], indent=2, ensure_ascii=False)


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON holds it."""
    return {key: finite(value) for key, value in asdict(row).items()}


def finite(value: Any) -> Any:
    """A value as JSON holds it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(table: Sequence[Row], folder: Path) -> Path:
    """Write `folder`/table.csv."""
    path = folder / "table.csv"
    atomic.write_text(path, as_csv(table))
    return path


def show(table: Sequence[Row], file: IO[str], whole: bool = False) -> None:
    """Print the table, then what went wrong or is uncertain, a line each. `whole`: name folders by their paths."""
    console = console_of(file)
    console.print(drawn(table, whole))
    for row in table:
        if row.error:
            log = f"  ({row.log})" if row.log else ""
            console.print(f"{Path(row.folder).name}: {row.error}{log}", highlight=False, markup=False)
        elif row.state in GOES_ON and row.why.upper() not in slurm.LIVING | {""}:
            console.print(f"{Path(row.folder).name}: {row.why}", highlight=False, markup=False)


def console_of(file: IO[str]) -> Any:
    """rich's console; wide where there is no terminal whose width it could have."""
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else WIDTH)


def differing(typed: Sequence[Sequence[str]]) -> list[str]:
    """Of what was typed for each run, what was not typed for all of them alike."""
    shared = set.intersection(*map(set, typed)) if len(typed) > 1 else set()
    return [" ".join(word for word in words if word not in shared) for words in typed]


def drawn(table: Sequence[Row], whole: bool = False) -> Any:
    """The table for rich: what was typed for every run alike is left out."""
    from rich.markup import escape
    from rich.table import Table

    from krill.runs.record import shown

    screen = Table()
    screen.add_column("#")
    screen.add_column("state", no_wrap=True)
    screen.add_column("overrides", overflow="ellipsis" if whole else "fold", no_wrap=whole, max_width=50)
    for name in ("step", "train loss", "val. loss", "bits/byte", "seconds", "folder"):
        screen.add_column(name, overflow="fold")
    own = differing([row.overrides for row in table])
    for index, row in enumerate(table):
        screen.add_row(
            str(index + 1),
            row.state + (f" {row.job}" if row.job and row.state in ("queued", "running") else ""),
            escape(own[index]),
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
