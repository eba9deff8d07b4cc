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
from krill.runs.find import Run, read_runs
from krill.runs.record import compute_wall_seconds, read_last_metrics
from krill.runs.run_state import ACTIVE_STATES, RunState, determine_run_states, find_log_file

DEFAULT_WIDTH = 200
"""Columns of a table that is not printed to a terminal."""


@dataclass(frozen=True)
class RunRow:
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


def read_rows(folders: Sequence[Path], failures: Mapping[Path, str] | None = None) -> list[RunRow]:
    """A row per run folder, in their order. `failures`: of runs that could not say themselves how they ended."""
    return build_rows(read_runs(folders), failures)


def build_rows(runs: Sequence[Run], failures: Mapping[Path, str] | None = None) -> list[RunRow]:
    """`read_rows` of runs that were found already."""
    stands, known = determine_run_states({run.folder: run.status for run in runs}), failures or {}
    return [_build_row(run, stands[run.folder], known.get(run.folder)) for run in runs]


def sort_best_first(table: Sequence[RunRow]) -> list[RunRow]:
    """The lowest validation loss first, runs without one last."""
    return sorted(table, key=lambda row: (_sort_key(row.eval_loss), _sort_key(row.loss)))


def _sort_key(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _build_row(run: Run, stands: RunState, failure: str | None) -> RunRow:
    status = run.status or {}
    last = read_last_metrics(run.folder, ("step", "loss", "tokens_per_second"))
    final, best = status.get("metrics") or {}, status.get("best") or {}
    overrides = status.get("overrides") or run.sweep_entry.get("overrides") or []

    def number(key: str, *places: Mapping[str, Any]) -> Any:
        return next((each[key] for each in places if isinstance(each.get(key), (int, float))), None)

    return RunRow(
        folder=str(run.folder),
        name=status.get("name") or "",
        command=str(status.get("command") or run.sweep_entry.get("command") or "train"),
        state="failed" if failure else stands.state,
        why=failure or stands.detail,
        overrides=tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        step=number("step", final, last),
        steps=status.get("steps"),
        loss=number("loss", final, last),
        eval_loss=number("eval_loss", final, best),
        eval_bits_per_byte=number("eval_bits_per_byte", final),
        tokens_per_second=number("tokens_per_second", last),
        seconds=compute_wall_seconds(status) if stands.state != "killed" else None,
        start=status.get("start"),
        end=status.get("end"),
        starts=status.get("starts"),
        host=status.get("host"),
        job=stands.job or status.get("slurm_job_id"),
        error=failure or (stands.detail if stands.state not in ACTIVE_STATES else ""),
        log=str(find_log_file(run.folder, status)) if run.status else "",
        sweep=None if run.sweep is None else str(run.sweep),
    )


def to_csv(table: Sequence[RunRow]) -> str:
    """A line of names, then one for each row."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(RunRow)])
    for row in table:
        writer.writerow((asdict(row) | {"overrides": " ".join(row.overrides)}).values())
    return text.getvalue()


def to_json(table: Sequence[RunRow]) -> str:
    """A list of objects; what is no number (a loss that diverged) is null, as JSON has none."""
    return json.dumps([row_to_dict(row) for row in table], indent=2, ensure_ascii=False)


def row_to_dict(row: RunRow) -> dict[str, Any]:
    """A row as JSON holds it."""
    return {key: finite_or_none(value) for key, value in asdict(row).items()}


def finite_or_none(value: Any) -> Any:
    """A value as JSON holds it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(table: Sequence[RunRow], folder: Path) -> Path:
    """Write `folder`/table.csv."""
    path = folder / "table.csv"
    atomic.write_text(path, to_csv(table))
    return path


def print_table(table: Sequence[RunRow], file: IO[str], whole: bool = False) -> None:
    """Print the table, then what went wrong or is uncertain, a line each. `whole`: name folders by their paths."""
    console = make_console(file)
    console.print(render_table(table, whole))
    for row in table:
        if row.error:
            log = f"  ({row.log})" if row.log else ""
            console.print(f"{Path(row.folder).name}: {row.error}{log}", highlight=False, markup=False)
        elif row.state in ACTIVE_STATES and row.why.upper() not in slurm.ACTIVE_JOB_STATES | {""}:
            console.print(f"{Path(row.folder).name}: {row.why}", highlight=False, markup=False)


def make_console(file: IO[str]) -> Any:
    """rich's console; wide where there is no terminal whose width it could have."""
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else DEFAULT_WIDTH)


def find_differing_overrides(typed: Sequence[Sequence[str]]) -> list[str]:
    """Of what was typed for each run, what was not typed for all of them alike."""
    shared = set.intersection(*map(set, typed)) if len(typed) > 1 else set()
    return [" ".join(word for word in words if word not in shared) for words in typed]


def render_table(table: Sequence[RunRow], whole: bool = False) -> Any:
    """The table for rich: what was typed for every run alike is left out."""
    from rich.markup import escape
    from rich.table import Table

    from krill.runs.record import relative_path

    screen = Table()
    screen.add_column("#")
    screen.add_column("state", no_wrap=True)
    screen.add_column("overrides", overflow="ellipsis" if whole else "fold", no_wrap=whole, max_width=50)
    for name in ("step", "train loss", "val. loss", "bits/byte", "seconds", "folder"):
        screen.add_column(name, overflow="fold")
    own = find_differing_overrides([row.overrides for row in table])
    for index, row in enumerate(table):
        screen.add_row(
            str(index + 1),
            row.state + (f" {row.job}" if row.job and row.state in ("queued", "running") else ""),
            escape(own[index]),
            "" if row.step is None else f"{row.step}/{row.steps or '?'}",
            _format_number(row.loss),
            _format_number(row.eval_loss),
            _format_number(row.eval_bits_per_byte),
            _format_number(row.seconds, 0),
            escape(str(relative_path(Path(row.folder))) if whole else Path(row.folder).name),
        )
    return screen


def _format_number(value: float | None, places: int = 4) -> str:
    return "" if value is None else f"{value:.{places}f}"
