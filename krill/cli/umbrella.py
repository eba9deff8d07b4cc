"""krill COMMAND (or kr COMMAND): one name for all commands, the original's names among them."""

from __future__ import annotations

import importlib
import sys

from krill.config.location import CONF_DIR, description
from krill.errors import DONE, USAGE

COMMANDS = ("train", "preprocess", "tokenizer", "inspect", "infer", "runs")
ORIGINAL = {"train-tokenizer": "tokenizer", "inspect-dataset": "inspect", "inference": "infer"}


def main() -> int:
    """Entry point of krill and kr."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(_help())
        return DONE
    if name == "--version":
        from krill import __version__

        print(f"krill {__version__}")
        return DONE
    command = ORIGINAL.get(name, name)
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, (*COMMANDS, *ORIGINAL), n=1)
        meant = f" Did you mean krill {near[0]}?" if near else ""
        print(f"krill: error: no command '{name}'.{meant} There are: {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE
    del sys.argv[1]
    return importlib.import_module(f"krill.cli.{command}").main()


def _help() -> str:
    lines = ["krill: pretrain language models from scratch", "", "usage: krill COMMAND [key=value …]", ""]
    lines += [f"  {name:<12}{_description(name)}" for name in COMMANDS]
    also = ", ".join(f"{old} = {new}" for old, new in ORIGINAL.items())
    return "\n".join([*lines, "", f"also: {also}", "each has its own help: krill train --help"])


def _description(command: str) -> str:
    if command == "runs":  # it has no configuration
        from krill.cli.runs_words import DESCRIPTION

        return DESCRIPTION
    return description(CONF_DIR / f"{command}.yaml")
