"""Makes text safe for a terminal: without escape sequences that it would execute, in whatever encoding it has."""

from __future__ import annotations

import codecs
import io
import logging
import re
import sys
from typing import TYPE_CHECKING

from krill.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

_TERMINAL_CODES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape_control_characters(text: str, keep: str = "") -> str:
    r"""Returns `text` with its unprintable characters, except those in `keep`, as \\x1b and \\u202e."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def encode_input(text: str, name: str) -> bytes:
    """Returns a text that the user has written as UTF-8; raises UsageError that begins with `name` if it is not text.

    A byte that is not UTF-8, on a command line, is a low surrogate in Python; any other surrogate is half of a pair,
    as JSON can contain.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        letter, position = text[error.start], error.start + 1
        if "\udc80" <= letter <= "\udcff":
            raise UsageError(
                f"{name} is not valid UTF-8 (character {position}); set the terminal to UTF-8"
            ) from error
        raise UsageError(
            f"{name} is not valid Unicode: {letter!a} (character {position}); correct it"
        ) from error


def escape_terminal_codes(text: str) -> str:
    r"""Returns `text` with the characters that control a terminal, such as ESC, as \x1b; others are unchanged."""
    return _TERMINAL_CODES.sub(lambda code: code[0].encode("unicode_escape").decode(), text)


def start_progress_bar(*columns: ProgressColumn | str, is_transient: bool = False) -> Progress | None:
    """Returns a progress bar that is shown on standard error from now on; None if that is not a terminal."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(*columns, console=Console(stderr=True), transient=is_transient)
    bar.start()
    return bar


class TerminalFormatter(logging.Formatter):
    """Formats log messages for a terminal, and for files that are printed there."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message; only its line ends and tabs remain control characters."""
        return escape_control_characters(super().format(record), keep="\n\t")


def tolerate_encoding() -> None:
    """Makes a character that a terminal without UTF-8 cannot print an escape such as \\uae00, and never an error.

    Standard input that claims to be ASCII (LC_ALL=C) is read as UTF-8, which contains ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _is_tolerant(stream):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and _get_codec(sys.stdin) == "ascii":
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def _is_tolerant(stream: io.TextIOWrapper) -> bool:
    """Returns whether the stream prints every character; surrogateescape does in UTF-8, for names of files."""
    return stream.errors not in ("strict", "surrogateescape") or (
        stream.errors == "surrogateescape" and _get_codec(stream) == "utf-8"
    )


def _get_codec(stream: io.TextIOWrapper) -> str:
    return codecs.lookup(stream.encoding).name
