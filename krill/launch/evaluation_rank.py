"""One rank of an evaluation: `python -m krill.launch.evaluation_rank FOLDER`, started by evaluation_ranks."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from krill.config.schema import EvaluateConfig
from krill.errors import DONE, FAILED, INTERRUPTED, KrillError, SignalInterrupt
from krill.launch.evaluation_ranks import EVALUATION_CONFIG, open_evaluation
from krill.launch.rank_errors import is_connection_error, write_rank_error
from krill.signals import die_with_parent, raise_on_signal
from krill.terminal import TerminalFormatter
from krill.training.compute.device import resolve_device
from krill.training.ranks import process_group

log = logging.getLogger("krill")


def main(folder: Path) -> int:
    """Evaluates as the rank in the environment; records an error for the parent. Returns the exit code."""
    rank = int(os.environ["RANK"])
    terminal = logging.StreamHandler()
    terminal.setFormatter(TerminalFormatter("%(message)s"))
    log.addHandler(terminal)
    log.setLevel(logging.WARNING if rank else logging.INFO)
    log.propagate = False
    try:
        with raise_on_signal():
            die_with_parent()
            config = EvaluateConfig.model_validate_json((folder / EVALUATION_CONFIG).read_bytes())
            with process_group(resolve_device(config.device)):
                open_evaluation(config).run()
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


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
