"""krill-runs: list, watch, show, compare, tail and cancel runs and sweeps.

It composes no configuration, so its words are those of other commands of this kind: krill-runs show RUN --json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from krill import errors
from krill.cli import app
from krill.cli.runs_parser import FILTER_STATES, build_parser
from krill.config.paths import get_outputs_root
from krill.errors import UsageError

if TYPE_CHECKING:
    from krill.runs.find import RunOrGroup
    from krill.runs.table import RunRow


def main() -> int:
    """Entry point of krill-runs."""
    app.configure_logging()
    return app.run_and_report("runs", lambda: _run_subcommand(sys.argv[1:]))


def _run_subcommand(words: Sequence[str]) -> int:
    works = {
        "list": _list, "show": _show, "compare": _compare, "watch": _watch, "tail": _tail, "cancel": _cancel
    }  # fmt: skip
    arguments = build_parser(works).parse_args(list(words) or ["list"])
    code: int = arguments.work(arguments)
    return code


def _resolve_arguments(arguments: argparse.Namespace) -> list[RunOrGroup]:
    from krill.runs.find import resolve_run

    return [resolve_run(text, get_outputs_root().absolute()) for text in arguments.runs]


def _find_all() -> list[RunOrGroup]:
    from krill.runs.find import runs_under

    return runs_under(get_outputs_root().absolute())


def _build_rows(places: Sequence[RunOrGroup]) -> list[RunRow]:
    """A row for each run in these places, each once."""
    from krill.runs import table
    from krill.runs.find import expand_runs

    runs = {run.folder: run for place in places for run in expand_runs(place)}
    return table.build_rows(list(runs.values()))


def _list(arguments: argparse.Namespace) -> int:
    from krill.runs import table

    places = _resolve_arguments(arguments) if arguments.runs else _find_all()
    every = _build_rows(places)
    rows = [row for row in every if row.state in arguments.state and arguments.name in (None, row.name)]
    if arguments.json:
        print(table.to_json(rows))
    elif arguments.csv:
        print(table.to_csv(rows), end="")
    elif not rows:
        app.log.info("no runs%s in %s", " of this kind" if every else "", get_outputs_root())
    elif arguments.runs or arguments.state != FILTER_STATES:
        table.print_table(rows, sys.stdout, whole=True)
    else:
        from krill.cli import runs_view

        runs_view.print_newest(places, rows)
    return errors.DONE


def _show(arguments: argparse.Namespace) -> int:
    from krill.runs.find import Run
    from krill.runs.summary import describe_run, describe_sweep

    places = _resolve_arguments(arguments)
    if arguments.json:
        found = [describe_run(place) if isinstance(place, Run) else describe_sweep(place) for place in places]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return errors.DONE
    from krill.cli import runs_view

    for place in places:
        if isinstance(place, Run):
            runs_view.print_run(place)
        else:
            runs_view.print_sweep(place)
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
        own = {
            key: dict(zip((row.folder for row in rows), map(table.finite_or_none, each), strict=True))
            for key, each in differing.items()
        }
        whole = {"differences": own, "runs": [table.row_to_dict(row) for row in rows]}
        print(json.dumps(whole, indent=2, ensure_ascii=False, default=str))
    else:
        from krill.cli import runs_view

        runs_view.print_differences(rows, differing)
    return errors.DONE


def _watch(arguments: argparse.Namespace) -> int:
    from krill.cli import runs_view
    from krill.runs.find import run_at
    from krill.runs.run_state import ACTIVE_STATES

    chosen = [
        place.folder for place in _resolve_arguments(arguments)
    ]  # once: a name may come to mean another run
    followed: set[str] = set()

    def look() -> list[RunRow]:
        rows = _build_rows(
            [place for folder in chosen if (place := run_at(folder))] if chosen else _find_all()
        )
        rows = [row for row in rows if chosen or row.state in ACTIVE_STATES or row.folder in followed]
        followed.update(row.folder for row in rows)
        return rows

    if not runs_view.watch_table(look, arguments.every):
        app.log.info("nothing runs or waits in %s", get_outputs_root())
    return errors.DONE


def _tail(arguments: argparse.Namespace) -> int:
    from krill.runs.find import Run
    from krill.runs.log_tail import LOG_POLL_SECONDS, follow_log, read_tail
    from krill.runs.record import relative_path
    from krill.runs.run_state import (
        ACTIVE_STATES,
        find_log_file,
        get_run_state,
        read_run_or_submission_status,
    )

    for place in _resolve_arguments(arguments):
        if not isinstance(place, Run):
            raise UsageError(
                f"{relative_path(place.folder)} is no single run; name one of: krill-runs list {relative_path(place.folder)}"
            )
        while True:
            own = place.folder / (f"log-rank{arguments.rank}.txt" if arguments.rank else "log.txt")
            status = read_run_or_submission_status(place.folder)
            file = find_log_file(place.folder, status) if status and not arguments.rank else own
            if file.is_file():
                break
            if not arguments.f or get_run_state(place.folder).state not in ACTIVE_STATES:
                raise UsageError(
                    f"{relative_path(file)} is not there; krill-runs show {relative_path(place.folder)} tells how the run stands"
                )
            time.sleep(LOG_POLL_SECONDS)
        end, position = read_tail(file, arguments.n)
        text = end.decode("utf-8", errors="replace")
        print(text, end="" if arguments.f or not text or text.endswith("\n") else "\n", flush=True)
        for text in follow_log(file, position, place.folder) if arguments.f else ():
            print(text, end="", flush=True)
    return errors.DONE


def _cancel(arguments: argparse.Namespace) -> int:
    from krill.runs.cancel import cancel
    from krill.runs.find import Run, expand_runs
    from krill.runs.record import relative_path

    done = True
    for place in _resolve_arguments(arguments):
        # A folder of runs that is no sweep stands for all of them.
        whole = (
            [place.folder]
            if isinstance(place, Run) or place.sweep_record
            else [run.folder for run in expand_runs(place)]
        )
        said = [each for folder in whole for each in cancel(folder)]
        for what, well in said or [(f"{relative_path(place.folder)}: nothing of it runs or waits", True)]:
            app.log.info(what)
            done &= well
    return errors.DONE if done else errors.FAILED
