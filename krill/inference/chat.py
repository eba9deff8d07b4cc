"""The prompt on a terminal, or one prompt a line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from krill.errors import UsageError

EXIT_COMMANDS = ("quit", "exit")


def read_prompts() -> Iterator[str]:
    """What the person types, until quit, exit or the end of the input; empty lines are passed over."""
    terminal = sys.stdin.isatty()
    if terminal:
        print("type a text to continue; quit or exit ends", file=sys.stderr)
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() in EXIT_COMMANDS:
            return
        if line.strip():
            yield line.rstrip("\n")


def run_chat(answer: Callable[[str], None]) -> None:
    """Answer each prompt; Ctrl-C ends, as the end of the input does.

    At a terminal a prompt that is refused (too long, say) costs itself only; from a pipe it is an error.
    """
    try:
        for prompt in read_prompts():
            try:
                answer(prompt)
            except UsageError as error:
                if not sys.stdin.isatty():
                    raise
                print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
