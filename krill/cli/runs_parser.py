"""The argument parser of krill-runs: its subcommands, their options and usage errors."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args

from krill import __version__
from krill.cli.completion import list_run_names
from krill.errors import UsageError
from krill.runs.run_state import ActualState

Subcommand = Callable[[argparse.Namespace], int]

FILTER_STATES = get_args(ActualState)

MAX_NUMBER = 10**9
"""The largest number of an option; time.sleep, for one, does not take any."""

DESCRIPTION = "List, watch, show, compare, follow and cancel runs and sweeps."

RUNS_EXAMPLES = """examples
  krill-runs
  krill-runs list --state running,failed --csv
  krill-runs show llama_nano
  krill-runs watch last
  krill-runs compare 5018b806 d531bf1d
  krill-runs plans
  krill-runs tail -f 5018b806
  krill-runs cancel outputs/sweeps/llama_nano

RUN is a folder, a glob, the name or signature of a run or the beginning of one,
last, or SWEEP/best. Of several matches the newest is meant.
"""


class _ArgumentParser(argparse.ArgumentParser):
    """Reports usage errors like the other commands of krill."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see krill-runs --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            from krill.config.suggestions import suggest

            if _names_run(value):
                raise UsageError(
                    f"no command '{value}'; for the run use krill-runs show {shlex.quote(value)}"
                )
            raise UsageError(f"no command '{value}'. {suggest(str(value), action.choices)}")


def build_parser(subcommands: Mapping[str, Subcommand]) -> argparse.ArgumentParser:
    """Builds the parser; the parsed arguments have the function of the subcommand as `subcommand`."""
    parser = _ArgumentParser(
        "krill-runs",
        description=DESCRIPTION,
        epilog=RUNS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"krill {__version__}")
    subparsers = parser.add_subparsers(parser_class=_ArgumentParser, metavar="COMMAND", required=True)

    def add(name: str, description: str, nargs: str = "*") -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = subparsers.add_parser(
            name, help=description, description=description
        )
        command.add_argument("runs", nargs=nargs, metavar="RUN", help="a run, a sweep, or a folder of runs")
        command.set_defaults(subcommand=subcommands[name])
        return command

    list_command = add("list", "list runs, newest first, one line each; without RUN a sweep is one line")
    list_command.add_argument(
        "--state", type=_parse_states, default=FILTER_STATES, help="only these states, as in running,failed"
    )
    list_command.add_argument("--name", help="only runs of this name")
    show_command = add("show", "show all known values of a run or a sweep", "+")
    compare_command = add("compare", "compare the configurations and results of runs, best first", "+")
    plans_command = add("plans", "compare the plans of finished trainings with the time and memory they took")
    for command in (list_command, show_command, compare_command, plans_command):
        formats = command.add_mutually_exclusive_group()
        formats.add_argument("--json", action="store_true", help="print JSON")
        if command in (list_command, compare_command):
            formats.add_argument("--csv", action="store_true", help="print CSV")
    watch_command = add("watch", "show a live table until nothing is running or queued")
    watch_command.add_argument(
        "--every",
        type=_build_number_type(float, 0.01),
        default=2.0,
        metavar="SECONDS",
        help="update interval",
    )
    tail_command = add("tail", "print the end of a run's log", "+")
    tail_command.add_argument(
        "-n", type=_build_number_type(int, 0), default=20, metavar="LINES", help="number of lines"
    )
    tail_command.add_argument("-f", action="store_true", help="follow the log until the run ends")
    tail_command.add_argument(
        "--rank", type=_build_number_type(int, 0), default=0, help="the log of another rank"
    )
    add("cancel", "cancel running and queued runs; their progress is saved", "+")
    return parser


def _names_run(text: str) -> bool:
    """Returns whether `text` is the name or the path of a run or sweep, which belongs after a subcommand."""
    return "/" in text or Path(text).exists() or text in list_run_names(text)


def list_choices(subcommands: Mapping[str, Subcommand], words: list[str], word: str) -> list[str]:
    """Returns what completes `word` after `words`: a subcommand, a state after --state, or names of runs."""
    if words and words[-1] != "--state":
        return list_run_names(word)
    return [choice for choice in (FILTER_STATES if words else subcommands) if choice.startswith(word)]


def _parse_states(text: str) -> tuple[str, ...]:
    states = tuple(state.strip() for state in text.split(","))
    if unknown := [state for state in states if state not in FILTER_STATES]:
        from krill.config.suggestions import suggest

        raise argparse.ArgumentTypeError(f"no state '{unknown[0]}'. {suggest(unknown[0], FILTER_STATES)}")
    return states


def _build_number_type(number_type: type[int] | type[float], minimum: float) -> Any:
    def parse_number(text: str) -> float:
        try:
            value = number_type(text)
        except ValueError:
            value = number_type(-1)
        if not minimum <= value <= MAX_NUMBER:
            raise argparse.ArgumentTypeError(
                f"'{text}' should be a number of at least {minimum:g}, at most {MAX_NUMBER:,}"
            )
        return value

    return parse_number
