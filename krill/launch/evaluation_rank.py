"""One rank of an evaluation: `python -m krill.launch.evaluation_rank FOLDER`, started by evaluation_ranks."""

from __future__ import annotations

import sys
from pathlib import Path

from krill.config.schema import EvaluateConfig
from krill.launch.evaluation_ranks import EVALUATION_CONFIG, open_evaluation
from krill.launch.rank_process import run_rank
from krill.training.compute.device import resolve_device
from krill.training.ranks import process_group


def main(folder: Path) -> int:
    """Evaluates as the rank in the environment; records an error for the parent. Returns the exit code."""

    def evaluate(_: int) -> None:
        config = EvaluateConfig.model_validate_json((folder / EVALUATION_CONFIG).read_bytes())
        with process_group(resolve_device(config.device)):
            open_evaluation(config).run()

    return run_rank(folder, evaluate)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
