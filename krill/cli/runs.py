"""krill-runs: list, watch, show, compare, tail and cancel runs and sweeps.

It composes no configuration, so its words are those of other commands of this kind: krill-runs show RUN --json.
"""

from __future__ import annotations

import argparse
import difflib
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from krill import errors
from krill.cli import app
from krill.config.location import outputs_root
from krill.errors import UsageError

DESCRIPTION = "List, watch, show, compare, follow and cancel runs and sweeps."

EXAMPLES = """examples
  krill-runs
  krill-runs list --state running,failed --csv
  krill-runs show outputs/runs/llama_nano/*
  krill-runs watch outputs/sweeps/llama_nano
  krill-runs compare 5018b806 d531bf1d
  krill-runs tail -f 5018b806
  krill-runs cancel outputs/sweeps/llama_nano

RUN is a folder, a glob (the newest that matches), or the beginning of a run's name or signature.
"""


def main() -> int:
    """Entry point of krill-runs."""
    app.listen()
    return app.told("runs", lambda: _main(sys.argv[1:]))


def _main(words: Sequence[str]) -> int:
    arguments = _parser().parse_args(list(words) or ["list"])
    code: int = arguments.work(arguments)
    return code


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as all commands of krill do."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see krill-runs --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), list(action.choices), n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(f"no command '{value}'.{meant} There are: {', '.join(action.choices)}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "krill-runs",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(parser_class=_Parser, metavar="COMMAND")

    def add(name: str, work: Any, sentence: str, places: str = "*") -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=sentence, description=sentence)
        command.add_argument("runs", nargs=places, metavar="RUN", help="a run or a sweep")
        command.set_defaults(work=work)
        return command

    listing = add("list", _list, "every run, a line each, the newest first; without RUN sweeps are one line")
    listing.add_argument("--state", default="", help="only these, as in running,failed")
    listing.add_argument("--name", help="only runs of this name")
    showing = add("show", _show, "all that is known of a run or a sweep", "+")
    comparing = add("compare", _compare, "what runs have set otherwise, and what came of it, best first", "+")
    for command in (listing, showing, comparing):
        command.add_argument("--json", action="store_true", help="for scripts")
    for command in (listing, comparing):
        command.add_argument("--csv", action="store_true", help="for tables")
    watching = add("watch", _watch, "a table that follows them until nothing runs or waits any more")
    watching.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="time between two looks"
    )
    tailing = add("tail", _tail, "the end of a run's log", "+")
    tailing.add_argument("-n", type=int, default=20, metavar="LINES", help="so many lines")
    tailing.add_argument("-f", action="store_true", help="go on until the run ends")
    tailing.add_argument("--rank", type=int, default=0, help="the log of another rank")
    add("cancel", _cancel, "end what runs or waits; what is done is saved", "+")
    return parser


def _places(arguments: argparse.Namespace) -> list[Path]:
    from krill.runs.find import named

    return [named(text, outputs_root()) for text in arguments.runs]


def _list(arguments: argparse.Namespace) -> int:
    from krill.runs import table
    from krill.runs.find import below, runs_of

    places = _places(arguments) if arguments.runs else below(outputs_root())
    as_data = arguments.json or arguments.csv
    runs = [run for place in places for run in runs_of(place)]
    rows = table.rows(runs)
    states = {state for state in arguments.state.split(",") if state}
    if unknown := states - set(STATES):
        raise UsageError(f"--state {','.join(sorted(unknown))}: there are {', '.join(STATES)}")
    rows = [row for row in rows if row.state in (states or STATES) and arguments.name in (None, row.name)]
    if as_data:
        print(
            table.as_json(rows) if arguments.json else table.as_csv(rows), end="" if arguments.csv else "\n"
        )
        return errors.DONE
    if not rows:
        app.log.info("no runs%s in %s", " of this kind" if runs else "", outputs_root())
        return errors.DONE
    if arguments.runs or states:
        table.show(rows, sys.stdout, whole=True)
    else:
        _show_newest(places, rows)
    return errors.DONE


STATES = ("not started", "queued", "running", "finished", "failed", "stopped", "killed", "cancelled")


def _show_newest(places: Sequence[Path], rows: Sequence[Any]) -> None:
    """Single runs as a table, then sweeps, a line each."""
    from krill.runs import table
    from krill.runs.find import runs_of
    from krill.runs.record import read_status, shown

    single = {str(place) for place in places if read_status(place) is not None}
    table.show([row for row in rows if row.folder in single], sys.stdout, whole=True)
    of_folder = {row.folder: row for row in rows}
    for sweep in (place for place in places if str(place) not in single):
        points = [of_folder[str(run)] for run in runs_of(sweep) if str(run) in of_folder]
        print(f"{shown(sweep)}: {_summary(points)}")


def _summary(points: Sequence[Any]) -> str:
    """How the points of a sweep stand, and the best of them."""
    from krill.runs.table import best_first

    states = ", ".join(
        f"{count} {state}" for state, count in Counter(row.state for row in points).most_common()
    )
    best = next((row for row in best_first(points) if row.eval_loss is not None), None)
    said = f"; best {best.eval_loss:.4f}, {Path(best.folder).name}" if best else ""
    return f"{len(points)} points: {states}{said}"


def _show(arguments: argparse.Namespace) -> int:
    from krill.runs import table
    from krill.runs.find import is_sweep, read_sweep, runs_of

    found = []
    for place in _places(arguments):
        if is_sweep(place):
            rows = table.best_first(table.rows(runs_of(place)))
            found.append(
                {"sweep": str(place), **read_sweep(place), "points": json.loads(table.as_json(rows))}
            )
            if not arguments.json:
                print(f"{place}: {_summary(rows)}")
                print(
                    f"typed       krill-{found[-1].get('command')} -m {shlex.join(found[-1].get('typed', []))}"
                )
                table.show(rows, sys.stdout)
        else:
            found.append(_facts(place))
            if not arguments.json:
                _print_facts(found[-1])
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return errors.DONE


def _facts(run: Path) -> dict[str, Any]:
    from krill.runs import table
    from krill.runs.record import read_status

    (row,) = json.loads(table.as_json(table.rows([run])))
    status = read_status(run) or {}
    return {
        **{key: value for key, value in status.items() if key != "metrics"},
        **row,
        **status.get("metrics", {}),
    }


def _print_facts(facts: dict[str, Any]) -> None:
    from krill.runs.record import shown

    folder = Path(facts["folder"])
    for key, value in facts.items():
        if value not in (None, "", [], {}) and key != "overrides":
            text = (
                " ".join(f"{name}={item}" for name, item in value.items())
                if isinstance(value, dict)
                else value
            )
            print(f"{key:<20}{text}")
    print(f"{'typed':<20}{shlex.join(facts['overrides'])}")
    if facts["error"] and facts["log"] and Path(facts["log"]).is_file():
        print("\n".join(f"  {line}" for line in _last_lines(Path(facts["log"]), 10)))
    place = shlex.quote(str(shown(folder)))
    follow = {
        "finished": f"krill-infer {place}",
        "running": f"krill-runs tail -f {place}",
        "queued": f"krill-runs cancel {place}",
    }
    print(
        f"{'next':<20}{follow.get(facts['state'], f'krill-runs tail {place}, then the same command goes on')}"
    )


def _compare(arguments: argparse.Namespace) -> int:
    from krill.runs import table
    from krill.runs.compare import differences
    from krill.runs.find import runs_of

    rows = table.best_first(table.rows([run for place in _places(arguments) for run in runs_of(place)]))
    differing = differences([Path(row.folder) for row in rows])
    if arguments.json:
        own = {
            key: dict(zip((row.folder for row in rows), each, strict=True)) for key, each in differing.items()
        }
        print(json.dumps({"differences": own, "runs": json.loads(table.as_json(rows))}, indent=2))
    elif arguments.csv:
        print(table.as_csv(rows), end="")
    else:
        from rich.console import Console
        from rich.table import Table

        table.show(rows, sys.stdout)
        screen = Table("key", *(Path(row.folder).name for row in rows))
        for key, each in differing.items():
            screen.add_row(key, *map(str, each))
        Console(file=sys.stdout).print(screen)
    return errors.DONE


def _watch(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from krill.runs import table
    from krill.runs.find import below, runs_of
    from krill.runs.standing import GOES_ON

    def look() -> list[table.Row]:
        places = _places(arguments) if arguments.runs else below(outputs_root())
        rows = table.rows([run for place in places for run in runs_of(place)])
        asked_for = bool(arguments.runs)
        return [row for row in rows if asked_for or row.state in GOES_ON or row.folder in followed]

    followed: set[str] = set()
    console, lines = Console(), _Lines()
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as screen:
        while True:
            rows = look()
            followed |= {row.folder for row in rows}
            if screen is None:
                lines.update(rows)
            else:
                screen.update(table.drawn(rows, whole=True), refresh=True)
            if not any(row.state in GOES_ON for row in rows):
                return errors.DONE
            time.sleep(arguments.every)


class _Lines:
    """In place of a live table, where there is no terminal: a line for each run whose state changed."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def update(self, rows: Sequence[Any]) -> None:
        """Print what is new."""
        for row in rows:
            if self.states.get(row.folder) != row.state:
                self.states[row.folder] = row.state
                step = f" step {row.step}/{row.steps}" if row.step is not None else ""
                loss = f" val. loss {row.eval_loss:.4f}" if row.eval_loss is not None else ""
                print(f"{row.folder}: {row.state}{step}{loss}", flush=True)


def _tail(arguments: argparse.Namespace) -> int:
    from krill.runs.record import read_status
    from krill.runs.standing import GOES_ON, log_of, standing

    for place in _places(arguments):
        status = read_status(place)
        if status is None:
            raise UsageError(f"{place} is no single run; name a point of it")
        file = place / f"log-rank{arguments.rank}.txt" if arguments.rank else log_of(place, status)
        if not file.is_file():
            raise UsageError(f"{file} is not there yet")
        print("\n".join(_last_lines(file, arguments.n)), flush=True)
        with open(file, encoding="utf-8", errors="replace") as lines:
            lines.seek(0, 2)
            while arguments.f:
                goes_on = standing(place).state in GOES_ON
                sys.stdout.write(lines.read())
                sys.stdout.flush()
                if not goes_on:
                    break
                time.sleep(0.5)
    return errors.DONE


def _last_lines(file: Path, count: int) -> list[str]:
    with open(file, "rb") as content:
        content.seek(max(0, content.seek(0, 2) - 200 * max(count, 1)))
        return content.read().decode("utf-8", errors="replace").splitlines()[-count:] if count > 0 else []


def _cancel(arguments: argparse.Namespace) -> int:
    from krill.runs.cancel import cancel

    done = True
    for place in _places(arguments):
        for what, well in cancel(place):
            app.log.info(what)
            done &= well
    return errors.DONE if done else errors.FAILED
