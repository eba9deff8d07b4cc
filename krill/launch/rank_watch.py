"""Watches the signs of life of ranks (krill.training.callbacks.heartbeat) for one that was stopped or is starved."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

WATCH_SECONDS = 1.0
"""Seconds between two checks."""


@dataclass(frozen=True)
class SilentRank:
    """A rank, the last step that it has completed, and for how long it has been silent."""

    rank: int
    step: int
    seconds: float


class RankWatch:
    """The files of all ranks, and the time at which each changed last."""

    def __init__(self, folder: Path, world_size: int, stall_seconds: float | None):
        self.files = [folder / f".heartbeat-rank{rank}" for rank in range(world_size)]
        self.stall_seconds = stall_seconds
        self.remove_files()  # of a parent that was killed
        self.contents: list[bytes] = [b""] * world_size
        self.checked_at = time.monotonic()
        self.changed_at = [self.checked_at] * world_size

    def find_silent_rank(self, running: Collection[int]) -> SilentRank | None:
        """Returns the rank in `running` that has been silent for the longest time, if it exceeds the limit."""
        now = time.monotonic()
        was_paused = now - self.checked_at > 10 * WATCH_SECONDS  # this process, and perhaps all of them
        self.checked_at = now
        for rank, file in enumerate(self.files):
            try:
                content = file.read_bytes()
            except OSError:
                content = b""  # not begun
            if content != self.contents[rank] or was_paused:
                self.contents[rank], self.changed_at[rank] = content, now
        if not running or self.stall_seconds is None:
            return None
        rank = min(running, key=lambda rank: self.changed_at[rank])
        seconds = now - self.changed_at[rank]
        step = int((self.contents[rank].split() or [b"0"])[0])
        return SilentRank(rank, step, seconds) if seconds > self.stall_seconds else None

    def remove_files(self) -> None:
        """Removes the files."""
        for file in self.files:
            file.unlink(missing_ok=True)
