"""What a rank that failed tells the one that speaks for all: a file of the run folder, until it has been read.

The others know only that a connection broke.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from krill import atomic
from krill.errors import FAILED, KrillError
from krill.runs.slurm import get_node_name

ERROR_FILE_TIMEOUT = 5.0
"""Seconds that a file of another machine may need to be seen."""


def get_rank_log_name(rank: int) -> str:
    """The first rank writes to the run's log."""
    return f"log-rank{rank}.txt" if rank else "log.txt"


def write_rank_error(folder: Path, rank: int, error: str) -> None:
    """Leave the error of `rank`; none where it only ends because another has failed."""
    if error:
        atomic.write_json(_get_error_file(folder, rank), {"time": time.time(), "error": error})


@contextmanager
def record_rank_error(folder: Path, rank: int, ranks: int) -> Iterator[None]:
    """A context for ranks that nobody started together but a scheduler: the first rank's error is that of the rank
    that failed first."""
    try:
        yield
    except Exception as error:
        if ranks == 1:
            raise
        if rank > 0:
            said = str(error) if isinstance(error, KrillError) else f"{type(error).__name__}: {error}"
            write_rank_error(folder, rank, said and f"{said} (on {get_node_name()})")
            raise
        if isinstance(error, KrillError) and str(error):
            raise
        until = time.monotonic() + ERROR_FILE_TIMEOUT
        while (told := pop_first_rank_error(folder, ranks)) is None and time.monotonic() < until:
            time.sleep(0.1)
        if told is None:
            raise
        failure = KrillError(f"rank {told[0]}: {told[1]}")
        failure.exit_code = getattr(error, "exit_code", FAILED)
        raise failure from error


def pop_first_rank_error(folder: Path, ranks: int) -> tuple[int, str] | None:
    """The rank that failed before all others, and its error; None: nobody said why. Removes what is there."""
    found = []
    for rank in range(ranks):
        file = _get_error_file(folder, rank)
        if file.exists():
            told = json.loads(file.read_text(encoding="utf-8"))
            found.append((told["time"], rank, told["error"]))
            file.unlink()
    return min(found)[1:] if found else None


def _get_error_file(folder: Path, rank: int) -> Path:
    return folder / f".error-rank{rank}.json"
