"""krill COMMAND (or kr COMMAND): one name for all commands, including the names of minpeter/krill."""

from __future__ import annotations

import importlib
import os
import sys

from krill.cli.completion import complete, is_completion
from krill.config.paths import CONF_DIR, read_config_description
from krill.errors import DONE, USAGE, UsageError
from krill.tables import fit_table, get_terminal_width, print_wrapped
from krill.terminal import tolerate_encoding

COMMANDS = ("train", "preprocess", "tokenizer", "inspect", "infer", "serve", "export", "runs")
COMMAND_ALIASES = {"train-tokenizer": "tokenizer", "inspect-dataset": "inspect", "inference": "infer"}


def main() -> int:
    """Runs krill or kr; returns the exit code."""
    tolerate_encoding()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print_wrapped(_format_help(get_terminal_width(sys.stdout)))
        return DONE
    if name == "--version":
        from krill import __version__

        print(f"krill {__version__}")
        return DONE
    if is_completion([name]):
        try:
            return complete(sys.argv[1:], _list_choices)
        except UsageError as error:
            return _print_error(str(error))
    command = COMMAND_ALIASES.get(name, name)
    if command not in COMMANDS:
        from krill.config.suggestions import suggest

        hint = suggest(name, (*COMMANDS, *COMMAND_ALIASES), "krill {}")
        return _print_error(f"no command '{name}'. {hint}")
    del sys.argv[1]
    return importlib.import_module(f"krill.cli.{command}").main()


def _print_error(message: str) -> int:
    print_wrapped(f"krill: error: {message}", sys.stderr)
    return USAGE


def _list_choices(words: list[str], word: str) -> list[str]:
    """Returns the names of commands, or has the command that is named complete its own arguments."""
    if not words:
        return [name for name in (*COMMANDS, *COMMAND_ALIASES) if name.startswith(word)]
    command = COMMAND_ALIASES.get(words[0], words[0])
    if command in COMMANDS:
        os.environ["COMP_LINE"] = " ".join([f"krill-{command}", *words[1:], word])
        importlib.import_module(f"krill.cli.{command}").main()
    return []


def _format_help(width: int | None) -> str:
    lines = ["krill: pretrain language models from scratch", "", "usage: krill COMMAND [key=value …]", ""]
    rows = [(name, _describe_command(name)) for name in COMMANDS]
    lines += fit_table(("", ""), rows, width, left=(0, 1), indent="  ", fold=(1,))[1:]
    also = ", ".join(f"{old} = {new}" for old, new in COMMAND_ALIASES.items())
    return "\n".join([*lines, "", f"also: {also}", "each has its own help: krill train --help"])


def _describe_command(command: str) -> str:
    if command == "runs":  # it has no configuration
        from krill.cli.runs_parser import DESCRIPTION

        return DESCRIPTION
    return read_config_description(CONF_DIR / f"{command}.yaml")
