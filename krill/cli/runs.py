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
from krill.cli.runs_words import STATES, parser
from krill.config.location import outputs_root
from krill.errors import UsageError

if TYPE_CHECKING:
    from krill.runs.find import Place
    from krill.runs.table import Row


def main() -> int:
    """Entry point of krill-runs."""
    app.listen()
    return app.told("runs", lambda: _main(sys.argv[1:]))


def _main(words: Sequence[str]) -> int:
    works = {
        "list": _list, "show": _show, "compare": _compare, "watch": _watch, "tail": _tail, "cancel": _cancel
    }  # fmt: skip
    arguments = parser(works).parse_args(list(words) or ["list"])
    code: int = arguments.work(arguments)
    return code


def _places(arguments: argparse.Namespace) -> list[Place]:
    from krill.runs.find import named

    return [named(text, outputs_root().absolute()) for text in arguments.runs]


def _all() -> list[Place]:
    from krill.runs.find import below

    return below(outputs_root().absolute())


def _rows(places: Sequence[Place]) -> list[Row]:
    """A row for each run in these places, each once."""
    from krill.runs import table
    from krill.runs.find import runs_of

    runs = {run.folder: run for place in places for run in runs_of(place)}
    return table.rows_of(list(runs.values()))


def _list(arguments: argparse.Namespace) -> int:
    from krill.runs import table

    places = _places(arguments) if arguments.runs else _all()
    every = _rows(places)
    rows = [row for row in every if row.state in arguments.state and arguments.name in (None, row.name)]
    if arguments.json:
        print(table.as_json(rows))
    elif arguments.csv:
        print(table.as_csv(rows), end="")
    elif not rows:
        app.log.info("no runs%s in %s", " of this kind" if every else "", outputs_root())
    elif arguments.runs or arguments.state != STATES:
        table.show(rows, sys.stdout, whole=True)
    else:
        from krill.cli import runs_screen

        runs_screen.print_newest(places, rows)
    return errors.DONE


def _show(arguments: argparse.Namespace) -> int:
    from krill.runs.find import Run
    from krill.runs.overview import facts, sweep_facts

    places = _places(arguments)
    if arguments.json:
        found = [facts(place) if isinstance(place, Run) else sweep_facts(place) for place in places]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return errors.DONE
    from krill.cli import runs_screen

    for place in places:
        if isinstance(place, Run):
            runs_screen.print_run(place)
        else:
            runs_screen.print_sweep(place)
    return errors.DONE


def _compare(arguments: argparse.Namespace) -> int:
    from krill.runs import table
    from krill.runs.compare import differences

    rows = table.best_first(_rows(_places(arguments)))
    if arguments.csv:
        print(table.as_csv(rows), end="")
        return errors.DONE
    differing = differences([Path(row.folder) for row in rows])
    if arguments.json:
        own = {
            key: dict(zip((row.folder for row in rows), map(table.finite, each), strict=True))
            for key, each in differing.items()
        }
        whole = {"differences": own, "runs": [table.plain(row) for row in rows]}
        print(json.dumps(whole, indent=2, ensure_ascii=False, default=str))
    else:
        from krill.cli import runs_screen

        runs_screen.print_differences(rows, differing)
    return errors.DONE


def _watch(arguments: argparse.Namespace) -> int:
    from krill.cli import runs_screen
    from krill.runs.find import at
    from krill.runs.standing import GOES_ON

    chosen = [place.folder for place in _places(arguments)]  # once: a name may come to mean another run
    followed: set[str] = set()

    def look() -> list[Row]:
        rows = _rows([place for folder in chosen if (place := at(folder))] if chosen else _all())
        rows = [row for row in rows if chosen or row.state in GOES_ON or row.folder in followed]
        followed.update(row.folder for row in rows)
        return rows

    if not runs_screen.watch(look, arguments.every):
        app.log.info("nothing runs or waits in %s", outputs_root())
    return errors.DONE


def _tail(arguments: argparse.Namespace) -> int:
    from krill.runs.find import Run
    from krill.runs.follow import PAUSE, end_of, followed
    from krill.runs.record import shown
    from krill.runs.standing import GOES_ON, log_of, standing, status_at

    for place in _places(arguments):
        if not isinstance(place, Run):
            raise UsageError(
                f"{shown(place.folder)} is no single run; name one of: krill-runs list {shown(place.folder)}"
            )
        while True:
            own = place.folder / (f"log-rank{arguments.rank}.txt" if arguments.rank else "log.txt")
            status = status_at(place.folder)
            file = log_of(place.folder, status) if status and not arguments.rank else own
            if file.is_file():
                break
            if not arguments.f or standing(place.folder).state not in GOES_ON:
                raise UsageError(
                    f"{shown(file)} is not there; krill-runs show {shown(place.folder)} tells how the run stands"
                )
            time.sleep(PAUSE)
        end, position = end_of(file, arguments.n)
        text = end.decode("utf-8", errors="replace")
        print(text, end="" if arguments.f or not text or text.endswith("\n") else "\n", flush=True)
        for text in followed(file, position, place.folder) if arguments.f else ():
            print(text, end="", flush=True)
    return errors.DONE


def _cancel(arguments: argparse.Namespace) -> int:
    from krill.runs.cancel import cancel
    from krill.runs.find import Run, runs_of
    from krill.runs.record import shown

    done = True
    for place in _places(arguments):
        # A folder of runs that is no sweep stands for all of them.
        whole = (
            [place.folder] if isinstance(place, Run) or place.told else [run.folder for run in runs_of(place)]
        )
        said = [each for folder in whole for each in cancel(folder)]
        for what, well in said or [(f"{shown(place.folder)}: nothing of it runs or waits", True)]:
            app.log.info(what)
            done &= well
    return errors.DONE if done else errors.FAILED
