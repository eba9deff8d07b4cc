"""krill-runs on the screen: what is listed, shown, compared and watched."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from krill.runs import table
from krill.runs.find import Run, RunGroup, RunOrGroup
from krill.runs.log_tail import read_last_lines
from krill.runs.record import relative_path
from krill.runs.run_state import ACTIVE_STATES
from krill.runs.summary import build_sweep_command, describe_run, suggest_commands, summarize_sweep
from krill.runs.table import RunRow


def print_newest(places: Sequence[RunOrGroup], rows: Sequence[RunRow]) -> None:
    """Single runs as a table, then sweeps, a line each."""
    of_folder = {row.folder: row for row in rows}
    single = [of_folder[str(place.folder)] for place in places if str(place.folder) in of_folder]
    if single:
        table.print_table(single, sys.stdout, whole=True)
    for sweep in places:
        if isinstance(sweep, RunGroup):
            points = [of_folder[str(run.folder)] for run in sweep.runs if str(run.folder) in of_folder]
            if points:
                print(f"{relative_path(sweep.folder)}: {summarize_sweep(points)}")


def print_run(run: Run) -> None:
    """All that is known of it, a line each; the end of its log where something went wrong."""
    (row,) = table.build_rows([run])
    for key, value in describe_run(run).items():
        if value not in (None, "", [], {}):
            print(f"{key:<20}{_format_value(value)}")
    if row.error and row.log and Path(row.log).is_file():
        print("\n".join(f"  {line}" for line in read_last_lines(Path(row.log), 10)))
    _print_next_commands(suggest_commands(run, row))


def print_sweep(sweep: RunGroup) -> None:
    """A sweep, or another folder with runs: in one line, as a table, what to type next."""
    rows = table.sort_best_first(table.build_rows(sweep.runs))
    print(f"{relative_path(sweep.folder)}: {summarize_sweep(rows)}")
    table.print_table(rows, sys.stdout, whole=not sweep.sweep_record)
    again = build_sweep_command(sweep.folder)
    if again and any(row.state not in (*ACTIVE_STATES, "finished") for row in rows):
        _print_next_commands([again])
    elif again:
        print(f"{'typed':<20}{again}")


def _print_next_commands(words: Sequence[str]) -> None:
    for index, line in enumerate(words):
        print(f"{'' if index else 'next':<20}{line}")


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={item}" for name, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def print_differences(rows: Sequence[RunRow], differing: Mapping[str, Sequence[Any]]) -> None:
    """A table of the runs, then a row for each key that differs, with a column for each run, by its number."""
    table.print_table(rows, sys.stdout)
    if not differing:
        print("their configurations are the same")
        return
    screen = Table("key", *(f"#{number}" for number in range(1, len(rows) + 1)))
    for key, each in differing.items():
        screen.add_row(escape(key), *(escape(str(value)) for value in each))
    table.make_console(sys.stdout).print(screen)


def watch_table(look: Callable[[], Sequence[RunRow]], every: float) -> int:
    """Show what `look` finds until nothing of it runs or waits; how many runs that were."""
    console, lines = Console(), _StateLines()
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as screen:
        while True:
            rows = look()
            if screen is None:
                lines.update(rows)
            else:
                screen.update(table.render_table(rows, whole=True), refresh=True)
            if not any(row.state in ACTIVE_STATES for row in rows):
                return len(rows)
            time.sleep(every)


class _StateLines:
    """In place of a live table, where there is no terminal: a line for each run whose state changed."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def update(self, rows: Sequence[RunRow]) -> None:
        """Print what is new."""
        for row in rows:
            if self.states.get(row.folder) != row.state:
                self.states[row.folder] = row.state
                step = f" step {row.step}/{row.steps}" if row.step is not None else ""
                loss = f" val. loss {row.eval_loss:.4f}" if row.eval_loss is not None else ""
                print(f"{row.folder}: {row.state}{step}{loss}", flush=True)
