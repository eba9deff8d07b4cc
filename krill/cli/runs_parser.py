"""The words of krill-runs: its commands, their options, what is said of a wrong one."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, get_args

from krill import __version__
from krill.errors import UsageError
from krill.runs.run_state import ActualState

Subcommand = Callable[[argparse.Namespace], int]

FILTER_STATES = get_args(ActualState)

DESCRIPTION = "List, watch, show, compare, follow and cancel runs and sweeps."

RUNS_EXAMPLES = """examples
  krill-runs
  krill-runs list --state running,failed --csv
  krill-runs show outputs/runs/llama_nano/*
  krill-runs watch outputs/sweeps/llama_nano
  krill-runs compare 5018b806 d531bf1d
  krill-runs tail -f 5018b806
  krill-runs cancel outputs/sweeps/llama_nano

RUN is a folder, a glob (the newest that matches), or the beginning of a run's name or signature.
"""


class _ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong as all commands of krill do."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see krill-runs --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), list(action.choices), n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(f"no command '{value}'.{meant} There are: {', '.join(action.choices)}")


def build_parser(works: Mapping[str, Subcommand]) -> argparse.ArgumentParser:
    """The parser; what it returns for a command has its function of `works` as `work`."""
    whole = _ArgumentParser(
        "krill-runs",
        description=DESCRIPTION,
        epilog=RUNS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"krill {__version__}")
    commands = whole.add_subparsers(parser_class=_ArgumentParser, metavar="COMMAND", required=True)

    def add(name: str, sentence: str, places: str = "*") -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=sentence, description=sentence)
        command.add_argument("runs", nargs=places, metavar="RUN", help="a run, a sweep, or a folder of runs")
        command.set_defaults(work=works[name])
        return command

    listing = add("list", "every run, a line each, the newest first; without RUN sweeps are one line")
    listing.add_argument(
        "--state", type=_parse_states, default=FILTER_STATES, help="only these, as in running,failed"
    )
    listing.add_argument("--name", help="only runs of this name")
    showing = add("show", "all that is known of a run or a sweep", "+")
    comparing = add("compare", "what runs have set otherwise, and what came of it, best first", "+")
    for command in (listing, showing, comparing):
        forms = command.add_mutually_exclusive_group()
        forms.add_argument("--json", action="store_true", help="for scripts")
        if command is not showing:
            forms.add_argument("--csv", action="store_true", help="for tables")
    watching = add("watch", "a table that follows them until nothing runs or waits any more")
    watching.add_argument(
        "--every",
        type=_build_number_type(float, 0.01),
        default=2.0,
        metavar="SECONDS",
        help="time between two looks",
    )
    tailing = add("tail", "the end of a run's log", "+")
    tailing.add_argument(
        "-n", type=_build_number_type(int, 0), default=20, metavar="LINES", help="so many lines"
    )
    tailing.add_argument("-f", action="store_true", help="go on until the run ends")
    tailing.add_argument("--rank", type=_build_number_type(int, 0), default=0, help="the log of another rank")
    add("cancel", "end what runs or waits; what is done is saved", "+")
    return whole


def _parse_states(text: str) -> tuple[str, ...]:
    states = tuple(state.strip() for state in text.split(","))
    if unknown := [state for state in states if state not in FILTER_STATES]:
        near = difflib.get_close_matches(unknown[0], FILTER_STATES, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise argparse.ArgumentTypeError(
            f"no state '{unknown[0]}'.{meant} There are: {', '.join(FILTER_STATES)}"
        )
    return states


def _build_number_type(kind: type[int] | type[float], least: float) -> Any:
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"'{text}' should be a number from {least:g} on")
        return value

    return number
