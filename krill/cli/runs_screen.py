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
from krill.runs.find import Place, Run, Several
from krill.runs.follow import last_lines
from krill.runs.overview import facts, next_words, summary, sweep_again
from krill.runs.record import shown
from krill.runs.standing import GOES_ON
from krill.runs.table import Row


def print_newest(places: Sequence[Place], rows: Sequence[Row]) -> None:
    """Single runs as a table, then sweeps, a line each."""
    of_folder = {row.folder: row for row in rows}
    single = [of_folder[str(place.folder)] for place in places if str(place.folder) in of_folder]
    if single:
        table.show(single, sys.stdout, whole=True)
    for sweep in places:
        if isinstance(sweep, Several):
            points = [of_folder[str(run.folder)] for run in sweep.runs if str(run.folder) in of_folder]
            if points:
                print(f"{shown(sweep.folder)}: {summary(points)}")


def print_run(run: Run) -> None:
    """All that is known of it, a line each; the end of its log where something went wrong."""
    (row,) = table.rows_of([run])
    for key, value in facts(run).items():
        if value not in (None, "", [], {}):
            print(f"{key:<20}{_words(value)}")
    if row.error and row.log and Path(row.log).is_file():
        print("\n".join(f"  {line}" for line in last_lines(Path(row.log), 10)))
    _print_next(next_words(run, row))


def print_sweep(sweep: Several) -> None:
    """A sweep, or another folder with runs: in one line, as a table, what to type next."""
    rows = table.best_first(table.rows_of(sweep.runs))
    print(f"{shown(sweep.folder)}: {summary(rows)}")
    table.show(rows, sys.stdout, whole=not sweep.told)
    again = sweep_again(sweep.folder)
    if again and any(row.state not in (*GOES_ON, "finished") for row in rows):
        _print_next([again])
    elif again:
        print(f"{'typed':<20}{again}")


def _print_next(words: Sequence[str]) -> None:
    for index, line in enumerate(words):
        print(f"{'' if index else 'next':<20}{line}")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={item}" for name, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def print_differences(rows: Sequence[Row], differing: Mapping[str, Sequence[Any]]) -> None:
    """A table of the runs, then a row for each key that differs, with a column for each run, by its number."""
    table.show(rows, sys.stdout)
    if not differing:
        print("their configurations are the same")
        return
    screen = Table("key", *(f"#{number}" for number in range(1, len(rows) + 1)))
    for key, each in differing.items():
        screen.add_row(escape(key), *(escape(str(value)) for value in each))
    table.console_of(sys.stdout).print(screen)


def watch(look: Callable[[], Sequence[Row]], every: float) -> int:
    """Show what `look` finds until nothing of it runs or waits; how many runs that were."""
    console, lines = Console(), _Lines()
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as screen:
        while True:
            rows = look()
            if screen is None:
                lines.update(rows)
            else:
                screen.update(table.drawn(rows, whole=True), refresh=True)
            if not any(row.state in GOES_ON for row in rows):
                return len(rows)
            time.sleep(every)


class _Lines:
    """In place of a live table, where there is no terminal: a line for each run whose state changed."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def update(self, rows: Sequence[Row]) -> None:
        """Print what is new."""
        for row in rows:
            if self.states.get(row.folder) != row.state:
                self.states[row.folder] = row.state
                step = f" step {row.step}/{row.steps}" if row.step is not None else ""
                loss = f" val. loss {row.eval_loss:.4f}" if row.eval_loss is not None else ""
                print(f"{row.folder}: {row.state}{step}{loss}", flush=True)
