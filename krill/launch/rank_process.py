"""What every rank process of krill-infer and krill-evaluate does around its work."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from krill.errors import DONE, FAILED, INTERRUPTED, KrillError, SignalInterrupt
from krill.launch.rank_errors import is_connection_error, write_rank_error
from krill.signals import die_with_parent, raise_on_signal
from krill.terminal import TerminalFormatter

log = logging.getLogger("krill")


def run_rank(folder: Path, work: Callable[[int], None]) -> int:
    """Calls `work` with the rank in the environment, and records an error in `folder` for the parent.

    Rank 0 logs to the terminal, the others only warnings. Returns the exit code.
    """
    rank = int(os.environ["RANK"])
    terminal = logging.StreamHandler()
    terminal.setFormatter(TerminalFormatter("%(message)s"))
    log.addHandler(terminal)
    log.setLevel(logging.WARNING if rank else logging.INFO)
    log.propagate = False
    try:
        with raise_on_signal():
            die_with_parent()
            work(rank)
    except (KrillError, SignalInterrupt) as error:
        if isinstance(error, KrillError):
            write_rank_error(folder, rank, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if not is_connection_error(message):  # the parent knows which rank was killed
            log.error("failed", exc_info=True)
        write_rank_error(folder, rank, message)
        return FAILED
    return DONE
