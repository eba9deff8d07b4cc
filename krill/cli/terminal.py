"""Makes the standard streams accept every character, whatever encoding the terminal has."""

from __future__ import annotations

import codecs
import io
import sys


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
