"""Reads the end of a log file and follows it."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from pathlib import Path

from krill.runs.run_state import ACTIVE_STATES, get_run_state

LOG_BLOCK_BYTES = 2**16
LOG_POLL_SECONDS = 0.5
"""Seconds between two reads of a growing log."""


def read_tail(file: Path, lines: int) -> tuple[bytes, int]:
    """Returns the last `lines` of a file, however long they are, and the offset of their end in bytes."""
    with open(file, "rb") as content:
        end = offset = content.seek(0, 2)
        tail = b""
        while offset and tail.count(b"\n") <= lines:
            size = min(LOG_BLOCK_BYTES, offset)
            offset -= size
            content.seek(offset)
            tail = content.read(size) + tail
    pieces = tail.removesuffix(b"\n").split(b"\n")
    last = b"\n".join(pieces[-lines:]) if lines else b""
    return (last + b"\n" if last and tail.endswith(b"\n") else last), end


def read_last_lines(file: Path, lines: int) -> list[str]:
    """Returns the last `lines` of a file as text."""
    text = read_tail(file, lines)[0].decode("utf-8", errors="replace")
    return text.removesuffix("\n").split("\n") if text else []


def follow_log(file: Path, offset: int, run: Path) -> Iterator[str]:
    """Yields the text written to a log after `offset` bytes, until the run ends."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be written in two parts
    with open(file, "rb") as content:
        content.seek(offset)
        while True:
            # Checked before reading, so that the last lines are read as well.
            is_active = get_run_state(run).state in ACTIVE_STATES
            yield decoder.decode(content.read(), final=not is_active)
            if not is_active:
                return
            time.sleep(LOG_POLL_SECONDS)
