"""The end of a log, and what comes after it."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from pathlib import Path

from krill.runs.run_state import ACTIVE_STATES, get_run_state

LOG_BLOCK_BYTES = 2**16
LOG_POLL_SECONDS = 0.5
"""Seconds between two looks at a log that grows."""


def read_tail(file: Path, lines: int) -> tuple[bytes, int]:
    """The last `lines` of a file, however long they are, and the place in the file where they end."""
    with open(file, "rb") as content:
        end = place = content.seek(0, 2)
        found = b""
        while place and found.count(b"\n") <= lines:
            size = min(LOG_BLOCK_BYTES, place)
            place -= size
            content.seek(place)
            found = content.read(size) + found
    pieces = found.removesuffix(b"\n").split(b"\n")
    kept = b"\n".join(pieces[-lines:]) if lines else b""
    return (kept + b"\n" if kept and found.endswith(b"\n") else kept), end


def read_last_lines(file: Path, lines: int) -> list[str]:
    """The last `lines` of a file as text."""
    return read_tail(file, lines)[0].decode("utf-8", errors="replace").splitlines()


def follow_log(file: Path, place: int, run: Path) -> Iterator[str]:
    """What is written to a log after `place`, as it comes, until the run has ended."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may be written in two parts
    with open(file, "rb") as content:
        content.seek(place)
        while True:
            goes_on = (
                get_run_state(run).state in ACTIVE_STATES
            )  # before reading: what is written last is read, too
            yield decoder.decode(content.read(), final=not goes_on)
            if not goes_on:
                return
            time.sleep(LOG_POLL_SECONDS)
