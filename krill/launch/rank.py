"""One rank of a run: `python -m krill.launch.rank FOLDER STORE TOKENIZER`, started by krill.launch.local."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from krill.config.schema import TrainConfig
from krill.errors import DONE, FAILED, INTERRUPTED, KrillError, SignalInterrupt
from krill.launch.rank_errors import get_rank_log_name, is_connection_error, write_rank_error
from krill.resources import paused_garbage_collection
from krill.runs.record import Record
from krill.signals import die_with_parent, raise_on_signal
from krill.terminal import TerminalFormatter

RANK_CONFIG = ".rank-config.json"
"""The configuration of the ranks in the run folder while they run; config.yaml is without secrets."""
log = logging.getLogger("krill")


def main(folder: Path, store: Path, tokenizer: Path) -> int:
    """Trains as the rank in the environment; records an error for the parent. Returns the exit code."""
    rank = int(os.environ["RANK"])
    if rank == 0:
        terminal = logging.StreamHandler()
        terminal.setFormatter(TerminalFormatter("%(message)s"))
        terminal.setLevel(logging.INFO)
        log.addHandler(terminal)
    log.propagate = False
    with Record(folder).log_to_file(get_rank_log_name(rank)), raise_on_signal():
        try:
            die_with_parent()
            with paused_garbage_collection():
                from krill.training.run import run_training

            config = TrainConfig.model_validate_json((folder / RANK_CONFIG).read_bytes())
            run_training(config, folder, store=store, tokenizer=tokenizer)
        except (KrillError, SignalInterrupt) as error:
            write_rank_error(folder, rank, str(error))
            return error.exit_code
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            # The parent knows which rank was killed; the traceback of those that lost it goes to the log file only.
            log.log(logging.DEBUG if is_connection_error(message) else logging.ERROR, "failed", exc_info=True)
            write_rank_error(folder, rank, message)
            return FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
