"""Shell completion beyond Hydra's: names of commands, of krill-runs' subcommands, and of runs and sweeps.

Every command installs it as Hydra does, `COMMAND -sc install=SHELL`. The function of the shell then runs
`COMMAND -sc query=SHELL` with the command line in $COMP_LINE, and takes what is printed. No run is read for that: the
names are those of folders.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from krill.config.paths import get_outputs_root
from krill.errors import DONE, UsageError

COMPLETION_FLAGS = frozenset({"-sc", "--shell-completion"})
RUN_KEYS = frozenset({"from", "continue", "branch", "resume", "model", "model.from", "model.path"})
"""Keys whose value may be the name of a run."""
SHELLS = ("bash", "fish", "zsh")

_PLAIN_NAME = re.compile(r"[\w.@%+:,-]+")
"""A name that bash does not split or expand: it executes $(…) in a list of choices."""


def is_completion(arguments: Sequence[str]) -> bool:
    """Returns whether a command line asks for completion."""
    return not COMPLETION_FLAGS.isdisjoint(arguments)


def complete(arguments: Sequence[str], list_choices: Callable[[list[str], str], list[str]]) -> int:
    """Installs, uninstalls or answers the completion of a command without Hydra.

    `list_choices`: returns the choices for a word, given the words before it; the command itself is not among them.
    Raises UsageError for other arguments.
    """
    action, shell = parse_request([item for item in arguments if item not in COMPLETION_FLAGS])
    if action == "query":
        print_choices(list_choices(*split_line(read_line())))
    else:
        _print_script(action, shell)
    return DONE


def parse_request(arguments: Sequence[str]) -> tuple[str, str]:
    """Returns the action and the shell of what follows -sc. Raises UsageError for anything else."""
    action, _, shell = " ".join(arguments).partition("=")
    if action not in ("install", "uninstall", "query") or shell not in SHELLS:
        raise UsageError(
            f"use {os.path.basename(sys.argv[0])} -sc install=SHELL, where SHELL is one of {', '.join(SHELLS)}"
        )
    return action, shell


def read_line() -> str:
    """Returns the command line to complete."""
    return os.environ.get("COMP_LINE", "")


def split_line(line: str) -> tuple[list[str], str]:
    """Returns the words of a command line after its command, and the word to complete, which may be empty."""
    words = line.split()[1:]
    return (words, "") if not words or line[-1].isspace() else (words[:-1], words[-1])


def print_choices(choices: Sequence[str]) -> None:
    """Prints choices, each on a line of its own, which every shell splits."""
    print("".join(f"{choice}\n" for choice in choices), end="")


def prepare_query(positional_key: str | None) -> None:
    """Prints the names of runs for $COMP_LINE, from which it removes what Hydra, which completes the rest, rejects.

    `positional_key`: the key of which an argument without "=" is the value; names of runs complete that of a model.
    """
    words, word = split_line(read_line())
    key, equals, value = word.partition("=")
    is_bare = [item for item in words if not _is_override_or_flag(item)]
    if equals and key in RUN_KEYS:
        print_choices([f"{key}={name}" for name in list_run_names(value)])
    elif positional_key == "model" and not is_bare and not _is_override_or_flag(word):
        print_choices(list_run_names(word))
    if positional_key is not None:
        words = [item for item in words if _is_override_or_flag(item)]
        os.environ["COMP_LINE"] = " ".join(["krill", *words, word])


def list_run_names(prefix: str) -> list[str]:
    """Returns the names of runs and sweeps that begin with `prefix`, and with a prefix also signatures.

    They are the names of folders in outputs/: runs/<name>/<time>-<signature> and sweeps/<name>/<signature>.
    """
    root = get_outputs_root()
    groups = [group for kind in ("runs", "sweeps") for group in _list_folders(root / kind)]
    names = {"last", *(group.name for group in groups)}
    if prefix:
        names.update(
            folder.name.rpartition("-")[2] for group in groups for folder in _list_folders(group.path)
        )
    return sorted(name for name in names if name.startswith(prefix) and _PLAIN_NAME.fullmatch(name))


def _list_folders(parent: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(parent) as entries:
            return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:  # missing, or of another user
        return []


def _is_override_or_flag(word: str) -> bool:
    return "=" in word or word.startswith(("-", "~"))


def _print_script(action: str, shell: str) -> None:
    """Prints the script of Hydra that installs or uninstalls the completion of this executable."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.completion_plugin import CompletionPlugin

    plugins: list[Any] = Plugins.instance().discover(CompletionPlugin)
    for plugin in plugins:
        if plugin.provides() == shell:
            getattr(plugin(None), action)()
            return
