"""What a rank that failed tells its parent: a file of the run folder, for as long as the parent has not read it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from krill import atomic


def log_name(rank: int) -> str:
    """The first rank writes to the run's log."""
    return f"log-rank{rank}.txt" if rank else "log.txt"


def report(folder: Path, rank: int, error: str) -> None:
    """Leave the error of `rank`; none where it only ends because another has failed."""
    if error:
        atomic.write_json(_file(folder, rank), {"time": time.time(), "error": error})


def first_report(folder: Path, ranks: int) -> tuple[int, str] | None:
    """The rank that failed before all others, and its error; None: nobody said why. Removes what is there."""
    found = []
    for rank in range(ranks):
        file = _file(folder, rank)
        if file.exists():
            told = json.loads(file.read_text(encoding="utf-8"))
            found.append((told["time"], rank, told["error"]))
            file.unlink()
    return min(found)[1:] if found else None


def _file(folder: Path, rank: int) -> Path:
    return folder / f".error-rank{rank}.json"
