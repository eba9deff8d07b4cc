"""Makes text from files and names safe for a terminal, which would execute the escape sequences in it."""

from __future__ import annotations

import logging


def escape_control_characters(text: str, keep: str = "") -> str:
    r"""Returns `text` with its unprintable characters, except those in `keep`, as \\x1b and \\u202e."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


class TerminalFormatter(logging.Formatter):
    """Formats log messages for a terminal, and for files that are printed there."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message; only its line ends and tabs remain control characters."""
        return escape_control_characters(super().format(record), keep="\n\t")
