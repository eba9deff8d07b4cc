"""krill COMMAND (or kr COMMAND): one name for all commands, including the names of minpeter/krill."""

from __future__ import annotations

import importlib
import os
import sys

from krill.cli import app
from krill.cli.completion import complete, is_completion
from krill.config.paths import CONF_DIR, read_config_description
from krill.errors import DONE, UsageError
from krill.tables import fit_table, get_terminal_width, print_wrapped

COMMANDS = (
    "train", "plan", "preprocess", "tokenizer", "inspect", "infer", "evaluate", "serve", "export", "runs",
)  # fmt: skip
COMMAND_ALIASES = {"train-tokenizer": "tokenizer", "inspect-dataset": "inspect", "inference": "infer"}


def main() -> int:
    """Runs krill or kr; returns the exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    command = COMMAND_ALIASES.get(name, name)
    if command in COMMANDS:
        del sys.argv[1]
        return _run_main(command)
    app.configure_logging()
    return app.run_and_report("", lambda: _run_without_command(name))


def _run_without_command(name: str) -> int:
    """Answers a flag in place of a command. Raises UsageError for anything else."""
    if name in ("--help", "-h", "help"):
        print_wrapped(_format_help(get_terminal_width(sys.stdout)))
        return DONE
    if name == "--version":
        from krill import __version__

        print(f"krill {__version__}")
        return DONE
    if is_completion([name]):
        return complete(sys.argv[1:], _list_choices)
    from krill.config.suggestions import suggest

    raise UsageError(f"no command '{name}'. {suggest(name, (*COMMANDS, *COMMAND_ALIASES), 'krill {}')}")


def _run_main(command: str) -> int:
    exit_code: int = importlib.import_module(f"krill.cli.{command}").main()
    return exit_code


def _list_choices(words: list[str], word: str) -> list[str]:
    """Returns the names of commands; the arguments of a command are completed by that command."""
    if not words:
        return [name for name in (*COMMANDS, *COMMAND_ALIASES) if name.startswith(word)]
    command = COMMAND_ALIASES.get(words[0], words[0])
    if command in COMMANDS:
        os.environ["COMP_LINE"] = " ".join([f"krill-{command}", *words[1:], word])
        _run_main(command)
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
