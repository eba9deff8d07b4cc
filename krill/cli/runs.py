"""krill-runs: list, watch, show, compare, tail and cancel runs and sweeps, and compare their plans with the truth.

It does not compose a configuration, so its arguments follow the usual form: krill-runs show RUN --json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from krill import errors
from krill.cli import app
from krill.cli.completion import complete, is_completion
from krill.cli.runs_parser import FILTER_STATES, build_parser, list_choices
from krill.config.paths import get_outputs_root
from krill.errors import UsageError
from krill.terminal import escape_control_characters

if TYPE_CHECKING:
    from krill.runs.find import RunOrGroup
    from krill.runs.table import RunRow


def main() -> int:
    """Runs krill-runs; returns the exit code."""
    app.configure_logging()
    return app.run_and_report("runs", lambda: _run_subcommand(sys.argv[1:]))


def _run_subcommand(command_line: Sequence[str]) -> int:
    subcommands = {
        "list": _list, "show": _show, "compare": _compare, "plans": _plans, "watch": _watch, "tail": _tail,
        "cancel": _cancel,
    }  # fmt: skip
    if is_completion(command_line):
        return complete(command_line, partial(list_choices, subcommands))
    arguments = build_parser(subcommands).parse_args(list(command_line) or ["list"])
    exit_code: int = arguments.subcommand(arguments)
    return exit_code


def _resolve_arguments(
    arguments: argparse.Namespace, is_preferred: Callable[[RunOrGroup], bool] = lambda item: True
) -> list[RunOrGroup]:
    from krill.runs.resolve import resolve_run

    return [resolve_run(text, get_outputs_root().absolute(), is_preferred) for text in arguments.runs]


def _find_all() -> list[RunOrGroup]:
    from krill.runs.find import runs_under

    return runs_under(get_outputs_root().absolute())


def _build_rows(items: Sequence[RunOrGroup]) -> list[RunRow]:
    """Builds a row for each run and each run of a group, each once."""
    from krill.runs import table
    from krill.runs.find import expand_runs

    runs = {run.folder: run for item in items for run in expand_runs(item)}
    return table.build_rows(list(runs.values()))


def _list(arguments: argparse.Namespace) -> int:
    from krill.runs import table

    items = _resolve_arguments(arguments) if arguments.runs else _find_all()
    all_rows = _build_rows(items)
    rows = [row for row in all_rows if row.state in arguments.state and arguments.name in (None, row.name)]
    if arguments.json:
        print(table.to_json(rows))
    elif arguments.csv:
        print(table.to_csv(rows), end="")
    elif not rows:
        app.log.info("no runs%s in %s", " of this state or name" if all_rows else "", get_outputs_root())
    elif arguments.runs or arguments.state != FILTER_STATES:
        table.print_table(rows, sys.stdout, full_paths=True)
    else:
        from krill.cli import runs_view

        runs_view.print_newest(items, rows)
    return errors.DONE


def _show(arguments: argparse.Namespace) -> int:
    from krill.runs.find import Run
    from krill.runs.summary import describe_run, describe_sweep
    from krill.runs.swept_edge import describe_swept_edge

    items = _resolve_arguments(arguments)
    if arguments.json:
        values = [
            describe_run(item, _build_rows([item])[0])
            if isinstance(item, Run)
            else describe_sweep(item) | describe_swept_edge(item)
            for item in items
        ]
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return errors.DONE
    from krill.cli import runs_view

    for item in items:
        if isinstance(item, Run):
            runs_view.print_run(item)
        else:
            runs_view.print_sweep(item)
    return errors.DONE


def _compare(arguments: argparse.Namespace) -> int:
    from krill.runs import table
    from krill.runs.compare import diff_configs

    rows = table.sort_best_first(_build_rows(_resolve_arguments(arguments)))
    if arguments.csv:
        print(table.to_csv(rows), end="")
        return errors.DONE
    differing = diff_configs([Path(row.folder) for row in rows])
    if arguments.json:
        differences = {
            key: dict(zip((row.folder for row in rows), map(table.finite_or_none, values), strict=True))
            for key, values in differing.items()
        }
        comparison = {"differences": differences, "runs": [table.row_to_dict(row) for row in rows]}
        if any(row.scores for row in rows):
            from krill.cli.runs_view import rank_runs
            from krill.evaluation.comparison_json import comparison_to_json

            comparison["scores"] = comparison_to_json(rank_runs(rows))
        print(json.dumps(comparison, indent=2, ensure_ascii=False, default=str))
    else:
        from krill.cli import runs_view

        runs_view.print_differences(rows, differing)
    return errors.DONE


def _plans(arguments: argparse.Namespace) -> int:
    from krill.cli import runs_view
    from krill.runs.find import expand_runs
    from krill.runs.plan_record import collect_plan_records

    items = _resolve_arguments(arguments) if arguments.runs else _find_all()
    runs = {run.folder: run for item in items for run in expand_runs(item)}
    records = collect_plan_records(list(runs.values()))
    if arguments.json:
        print(json.dumps(records.to_json(), indent=2, ensure_ascii=False))
    else:
        runs_view.print_plan_records(records)
    return errors.DONE


def _watch(arguments: argparse.Namespace) -> int:
    from krill.cli import runs_view
    from krill.runs.find import run_at
    from krill.runs.run_state import ACTIVE_STATES

    # Resolved once: a name may match another run later.
    folders = [item.folder for item in _resolve_arguments(arguments)]
    watched: set[str] = set()

    def read_rows() -> list[RunRow]:
        rows = _build_rows(
            [item for folder in folders if (item := run_at(folder))] if folders else _find_all()
        )
        rows = [row for row in rows if folders or row.state in ACTIVE_STATES or row.folder in watched]
        watched.update(row.folder for row in rows)
        return rows

    if not runs_view.watch_table(read_rows, arguments.every):
        app.log.info("no running or queued runs in %s", get_outputs_root())
    return errors.DONE


def _tail(arguments: argparse.Namespace) -> int:
    from krill.config.paths import quote_path
    from krill.runs.find import Run
    from krill.runs.log_tail import follow_log, read_tail
    from krill.runs.run_state import find_log_file

    def has_log(item: RunOrGroup) -> bool:
        status = item.status if isinstance(item, Run) else None
        return arguments.f or (status is not None and find_log_file(item.folder, status).is_file())

    for item in _resolve_arguments(arguments, has_log):
        if not isinstance(item, Run):
            folder = quote_path(item.folder)
            raise UsageError(
                f"{folder} is not a single run; use {folder}/best, or one of those in: krill-runs list {folder}"
            )
        file = _wait_for_log(item.folder, arguments.rank, wait=arguments.f)
        tail, offset = read_tail(file, arguments.n)
        text = _escape(tail.decode("utf-8", errors="replace"))
        print(text, end="" if arguments.f or not text or text.endswith("\n") else "\n", flush=True)
        for text in follow_log(file, offset, item.folder) if arguments.f else ():
            print(_escape(text), end="", flush=True)
    return errors.DONE


def _escape(text: str) -> str:
    """Returns text of a log without the control characters that a terminal would execute."""
    return escape_control_characters(text, keep="\n\t")


def _wait_for_log(folder: Path, rank: int, wait: bool) -> Path:
    """Returns the log of a run; with `wait`, waits for it while the run is active. Raises UsageError without one."""
    from krill.config.paths import quote_path, relative_path
    from krill.launch.rank_errors import get_rank_log_name
    from krill.runs.log_tail import LOG_POLL_SECONDS
    from krill.runs.run_state import (
        ACTIVE_STATES,
        find_log_file,
        get_run_state,
        read_run_or_submission_status,
    )

    while True:
        file = folder / get_rank_log_name(rank)
        status = read_run_or_submission_status(folder)
        if status and not rank:
            file = find_log_file(folder, status)
        if file.is_file():
            return file
        if not wait or get_run_state(folder).state not in ACTIVE_STATES:
            raise UsageError(
                f"{relative_path(file)} does not exist; see the state of the run with krill-runs show "
                f"{quote_path(folder)}"
            )
        time.sleep(LOG_POLL_SECONDS)


def _cancel(arguments: argparse.Namespace) -> int:
    from krill.config.paths import relative_path
    from krill.runs.cancel import cancel
    from krill.runs.find import Run, expand_runs
    from krill.runs.run_state import ACTIVE_STATES, get_run_states

    def is_active(item: RunOrGroup) -> bool:
        states = get_run_states([run.folder for run in expand_runs(item)])
        return any(state.state in ACTIVE_STATES for state in states.values())

    succeeded = True
    for item in _resolve_arguments(arguments, is_active):
        # A folder of runs that is not a sweep is expanded.
        is_one = isinstance(item, Run) or item.sweep_record
        folders = [item.folder] if is_one else [run.folder for run in expand_runs(item)]
        results = [result for folder in folders for result in cancel(folder)]
        if not results:
            app.log.info("%s: nothing is running or queued", relative_path(item.folder))
        for message, success in results:
            app.log.info(message)
            succeeded &= success
    return errors.DONE if succeeded else errors.FAILED
