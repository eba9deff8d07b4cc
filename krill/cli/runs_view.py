"""The terminal output of krill-runs: lists, single runs, comparisons and the live table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from krill.config.paths import relative_path
from krill.runs import table
from krill.runs.find import Run, RunGroup, RunOrGroup
from krill.runs.log_tail import read_last_lines
from krill.runs.plan_record import PlanStatistics, format_time, read_plan_record
from krill.runs.run_state import ACTIVE_STATES
from krill.runs.scores import describe_score
from krill.runs.summary import build_sweep_command, describe_run, suggest_commands, summarize_sweep
from krill.runs.swept_edge import find_swept_edge
from krill.runs.table import RunRow
from krill.tables import fit_table, format_table, get_terminal_width, measure_width, print_wrapped
from krill.terminal import escape_control_characters

if TYPE_CHECKING:
    from krill.evaluation.ranking import Ranking


def print_newest(items: Sequence[RunOrGroup], rows: Sequence[RunRow]) -> None:
    """Prints single runs as a table, then one line per sweep."""
    by_folder = {row.folder: row for row in rows}
    single = [by_folder[str(item.folder)] for item in items if str(item.folder) in by_folder]
    if single:
        table.print_table(single, sys.stdout, full_paths=True)
    for sweep in items:
        if isinstance(sweep, RunGroup):
            points = [by_folder[str(run.folder)] for run in sweep.runs if str(run.folder) in by_folder]
            if points:
                print_wrapped(f"{relative_path(sweep.folder)}: {summarize_sweep(points)}")


def print_run(run: Run) -> None:
    """Prints all known values of a run, one per line, and the end of its log if it has an error."""
    (row,) = table.build_rows([run])
    for key, value in describe_run(run, row).items():
        if key == "verdict":
            value = (value or {}).get("text")
        if key == "rule":
            value = ", ".join(f"{one['key']} {one['text']} ({one['source']})" for one in value or ())
        if value not in (None, "", [], {}) and key not in ("scores", "plan", "planned"):
            print_wrapped(f"{key:<20}{_format_value(value)}")
    if record := read_plan_record(run.folder):
        print_wrapped(f"{'planned':<20}{record}")
    for score in row.scores:
        print_wrapped(f"{score.task:<18}  {describe_score(score)}")
    if row.error and row.log and Path(row.log).is_file():
        print_wrapped("\n".join(f"  {line}" for line in read_last_lines(Path(row.log), 10)))
    _print_next_commands(suggest_commands(run, row))


def print_sweep(sweep: RunGroup) -> None:
    """Prints a summary line, a table, and the command to run next for a sweep or another folder with runs."""
    rows = table.sort_best_first(table.build_rows(sweep.runs))
    print_wrapped(f"{relative_path(sweep.folder)}: {summarize_sweep(rows)}")
    edge = find_swept_edge(rows, sweep.folder, sweep.sweep_record)
    if sweep.sweep_record.get("command") == "evaluate":
        _print_evaluations(rows)
    else:
        table.print_table(rows, sys.stdout, full_paths=not sweep.sweep_record)
    if edge is not None:
        print_wrapped(f"{'edge':<20}{edge.describe()}")
    command = build_sweep_command(sweep.folder, sweep.sweep_record)
    if command and any(row.state not in (*ACTIVE_STATES, "finished") for row in rows):
        _print_next_commands([command])
    elif command:
        print_wrapped(f"{'command':<20}{command}")
        if edge is not None and edge.next:
            _print_next_commands([edge.next])


def _print_evaluations(rows: Sequence[RunRow]) -> None:
    """Prints the table of a sweep of krill-evaluate, and its points without results."""
    from krill.evaluation.comparison_table import format_comparison
    from krill.evaluation.configurations import build_configurations
    from krill.evaluation.evaluated_model import read_points
    from krill.evaluation.ranking import rank_configurations

    models = read_points([(Path(row.folder), row.overrides) for row in rows])
    if models:
        ranking = rank_configurations(build_configurations(models))
        print("\n".join(format_comparison(ranking, get_terminal_width(sys.stdout))))
    table.print_unfinished([row for row in rows if row.state != "finished"], sys.stdout)


def _print_next_commands(commands: Sequence[str]) -> None:
    for index, command in enumerate(commands):
        print_wrapped(f"{'' if index else 'next':<20}{command}")


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={item}" for name, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def print_differences(rows: Sequence[RunRow], differing: Mapping[str, Sequence[Any]]) -> None:
    """Prints a table of the runs, then a row per differing key with a column for each run, by its number."""
    table.print_table(rows, sys.stdout)
    if not differing:
        print_wrapped("the configurations are identical")
    else:
        _print_differing_keys(rows, differing)
    if any(row.scores for row in rows):
        print("\n".join(["", *_format_scores(rows)]))


def _print_differing_keys(rows: Sequence[RunRow], differing: Mapping[str, Sequence[Any]]) -> None:
    width = get_terminal_width(sys.stdout)
    header = ("key", *(f"#{number}" for number in range(1, len(rows) + 1)))
    cells = [
        tuple(escape_control_characters(str(cell)) for cell in (key, *values))
        for key, values in differing.items()
    ]
    lines = format_table(cells, header, left=range(len(header)))
    if width is None or max(map(measure_width, lines)) <= width:
        print("\n".join(lines))
        return
    for key, *values in cells:
        pairs = zip(header[1:], values, strict=True)
        print_wrapped("\n".join([key, *(f"  {number:<4}  {value}" for number, value in pairs)]))


def _format_scores(rows: Sequence[RunRow]) -> list[str]:
    """Returns the table of the newest scores, with what differs by more than chance."""
    from krill.evaluation.comparison_table import format_comparison

    return format_comparison(rank_runs(rows), get_terminal_width(sys.stdout))


def rank_runs(rows: Sequence[RunRow]) -> Ranking:
    """Returns the ranking of the runs by their newest evaluations."""
    from krill.evaluation.configurations import build_configurations
    from krill.evaluation.evaluated_model import EvaluatedModel
    from krill.evaluation.ranking import rank_configurations
    from krill.evaluation.results import read_results

    models = [EvaluatedModel.read(row.folder, read_results(Path(row.folder))) for row in rows]
    return rank_configurations(build_configurations(models))


def print_plan_records(records: PlanStatistics) -> None:
    """Prints a table of plans and what the runs took, then the ratios over all of them, and what was left out."""
    header = ("run", "device", "planned", "took", "ratio", "planned", "took", "ratio")
    rows = [
        (
            str(relative_path(run.folder)), run.device, format_time(run.record.planned_seconds),
            format_time(run.record.seconds), f"{run.record.time_ratio:.2f}",
            f"{run.record.planned_memory / 1e9:.3g} GB", f"{run.record.memory / 1e9:.3g} GB",
            f"{run.record.memory_ratio:.2f}",
        )
        for run in records.runs
    ]  # fmt: skip
    if rows:
        print(
            "\n".join(
                fit_table(header, rows, get_terminal_width(sys.stdout), left=(0, 1), drop=(1,), own_line=0)
            )
        )
    for name, ratio in records.summarize().items():
        print_wrapped(
            f"{name:<20}planned ÷ took: {ratio['min']:g} to {ratio['max']:g}, {ratio['median']:g} in the median of "
            f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}"
        )
    if records.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in records.left_out.items())
        count = sum(records.left_out.values())
        print_wrapped(f"{'left out':<20}{count} {'training' if count == 1 else 'trainings'}: {reasons}")
    if not rows and not records.left_out:
        print_wrapped("no trainings")


def watch_table(read_rows: Callable[[], Sequence[RunRow]], interval: float) -> int:
    """Shows the rows of `read_rows` every `interval` seconds until none is running or queued.

    Returns the number of runs.
    """
    console, lines = Console(), _StateLines()
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            rows = read_rows()
            if live is None:
                lines.update(rows)
            else:
                lines_of_table = table.format_runs(rows, console.width, full_paths=True)
                live.update(Text("\n".join(lines_of_table), no_wrap=True, overflow="ignore"), refresh=True)
            if not any(row.state in ACTIVE_STATES for row in rows):
                return len(rows)
            time.sleep(interval)


class _StateLines:
    """Prints a line for each run whose state changed, instead of a live table without a terminal."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def update(self, rows: Sequence[RunRow]) -> None:
        """Prints the runs whose state changed."""
        for row in rows:
            if self.states.get(row.folder) != row.state:
                self.states[row.folder] = row.state
                step = f" step {row.step}/{row.steps}" if row.step is not None else ""
                loss = f" val. loss {row.eval_loss:.4f}" if row.eval_loss is not None else ""
                print_wrapped(f"{row.folder}: {row.state}{step}{loss}")
