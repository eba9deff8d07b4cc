"""Reads prompts from the terminal, or one per line from a pipe, and answers them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from krill.errors import UsageError

EXIT_COMMANDS = ("quit", "exit")


def read_prompts() -> Iterator[str]:
    """Yields the lines of standard input until quit, exit or the end of the input; skips empty lines.

    Raises UsageError for a line that is not in the encoding of standard input.
    """
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("enter a text to continue; quit or exit to end", file=sys.stderr)
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input is not {error.encoding}; if it is UTF-8, set PYTHONIOENCODING=utf-8"
            ) from error
        if not line or line.strip() in EXIT_COMMANDS:
            return
        if line.strip():
            yield line.rstrip("\n")


def run_chat(respond: Callable[[str], None]) -> None:
    """Calls `respond` with each prompt until the end of the input or Ctrl-C.

    On a terminal, an invalid prompt (for example, one that is too long) is reported and the chat continues; from a
    pipe its UsageError is raised.
    """
    try:
        for prompt in read_prompts():
            try:
                respond(prompt)
            except UsageError as error:
                if not sys.stdin.isatty():
                    raise
                print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
