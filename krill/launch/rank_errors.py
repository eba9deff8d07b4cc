"""Errors of ranks, each in a file of the run folder until it is read.

The error of the rank that failed first is the error of the run: the other ranks only see that a connection broke.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from krill import atomic
from krill.errors import FAILED, KrillError, SignalInterrupt, UsageError, get_first_line
from krill.runs.slurm import get_node_name
from krill.signals import EXIT_CODES, describe_exit

ERROR_FILE_TIMEOUT = 5.0
"""Seconds until a file written on another machine is visible."""

_CONNECTION_ERROR = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|\b(gloo|nccl|socket)\b|Dist(Backend|Network)Error",
    re.IGNORECASE,
)


def is_connection_error(error: str) -> bool:
    """Returns whether an error only says that the connection to another rank broke, as when that one was killed."""
    return _CONNECTION_ERROR.search(error) is not None


def get_rank_log_name(rank: int) -> str:
    """Returns the name of the log of `rank`; rank 0 writes to the log of the run."""
    return f"log-rank{rank}.txt" if rank else "log.txt"


def write_rank_error(folder: Path, rank: int, error: str) -> None:
    """Writes the error of `rank`, unless it is empty because the rank ends after another one has failed."""
    if error:
        atomic.write_json(_get_error_file(folder, rank), {"time": time.time(), "error": error})


@contextmanager
def record_rank_error(folder: Path, rank: int, world_size: int) -> Iterator[None]:
    """Raises on rank 0 the error of the rank that failed first; for ranks without a common parent, as SLURM starts
    them."""
    try:
        yield
    except Exception as error:
        if world_size == 1:
            raise
        if rank > 0:
            message = str(error) if isinstance(error, KrillError) else f"{type(error).__name__}: {error}"
            write_rank_error(folder, rank, message and f"{message} (on {get_node_name()})")
            raise
        if isinstance(error, KrillError) and str(error):
            raise
        deadline = time.monotonic() + ERROR_FILE_TIMEOUT
        while (first := pop_first_rank_error(folder, world_size)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if first is None and is_connection_error(f"{type(error).__name__}: {error}"):
            raise KrillError(
                f"the connection to another rank broke ({get_first_line(error)}), and no rank has reported an error: "
                "one was killed, or its machine failed; log-rank1.txt and so on show their last steps. Run the same "
                "command to resume"
            ) from error
        if first is None:
            raise
        failure = KrillError(f"rank {first[0]}: {first[1]}")
        failure.exit_code = getattr(error, "exit_code", FAILED)
        raise failure from error


def pop_first_rank_error(folder: Path, world_size: int) -> tuple[int, str] | None:
    """Returns the rank that failed first and its error; None: no rank wrote one. Removes all error files."""
    errors = []
    for rank in range(world_size):
        file = _get_error_file(folder, rank)
        if file.exists():
            value = json.loads(file.read_text(encoding="utf-8"))
            errors.append((value["time"], rank, value["error"]))
            file.unlink()
    return min(errors)[1:] if errors else None


def build_rank_failure(
    failed: dict[int, int], reported: tuple[int, str] | None, advice: str
) -> KrillError | SignalInterrupt:
    """Returns the error of a command whose ranks failed: how one was killed, or what the first one reported.

    Args:
        failed: the return codes of the ranks that failed, the first one first.
        reported: the rank that reported an error first, and the error.
        advice: what to do.
    """
    rank, code = next(iter(failed.items()))
    killed = next((rank for rank, code in failed.items() if code < 0 and -code not in EXIT_CODES), None)
    interrupted = next((code for code in failed.values() if code in EXIT_CODES.values()), None)
    if killed is not None and (reported is None or is_connection_error(reported[1])):
        message = f"rank {killed} {describe_exit(failed[killed])}"
    elif reported is not None:
        message = f"rank {reported[0]}: {reported[1]}"
    elif interrupted is not None:
        return SignalInterrupt("interrupted; progress saved. Run the same command to resume.", interrupted)
    else:
        message = f"rank {rank} {describe_exit(code)}"
    error = KrillError(f"{message}; {advice}")
    error.exit_code = code if code in (FAILED, UsageError.exit_code) else FAILED
    return error


def _get_error_file(folder: Path, rank: int) -> Path:
    return folder / f".error-rank{rank}.json"
