"""Question: how much do the scores of one configuration differ by chance, from one seed to the next?

Trains the default configuration for fewer steps with seven seeds, evaluates each run on the tasks of its text, and
prints the table of krill-evaluate for the seeds as one configuration. For each task the result has

    scores              of each seed
    deviation           standard deviation of the scores over seeds
    interval            half of the width of the 95 % interval of one run, which knows of the items only
    item_share          share of the variance over seeds that comes from the choice of items
    pairs, differing    pairs of seeds, and those that differ with p < 0.05: item by item the weights do differ
    corrected           those that still differ after Holm's correction

Prints a table and writes results/seven_seeds.json, or the file of --result. An interrupted run resumes in --folder.

    python benchmarks/seven_seeds.py                               (13 minutes on one core)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

from krill.evaluation.compare import compare_results, stack_item_scores
from krill.evaluation.results import TaskResult, read_results
from krill.evaluation.statistics import correct_p_values, measure_spread
from krill.runs.record import read_versions

SEEDS = 7
SWEEP = Path("outputs", "sweeps", "seven_seeds")


def run_command(folder: Path, command: str, *arguments: str) -> None:
    """Runs a command of krill in `folder`, on one core."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command_line = [sys.executable, "-m", "krill", command, *arguments, "device=cpu", "sweep.max_parallel=1"]
    subprocess.run(command_line, cwd=folder, env=environment, check=True)


def describe_task(results: Sequence[TaskResult]) -> dict[str, Any]:
    """Returns how the results of several seeds on a task differ."""
    values = stack_item_scores(results)
    assert values is not None
    spread = measure_spread(values)
    first = results[0].main_score
    pairs = [compare_results([one], [other]) for one, other in combinations(results, 2)]
    p_values = [pair.p_value for pair in pairs if pair is not None]
    assert first.low is not None
    assert first.high is not None
    return {
        "metric": first.metric,
        "items": first.items,
        "scores": [round(result.main_score.value, 5) for result in results],
        "mean": round(spread.mean, 5),
        "deviation": round(spread.deviation, 5),
        "interval": round((first.high - first.low) / 2, 5),
        "item_share": round(spread.item_share, 3),
        "pairs": len(p_values),
        "differing": sum(p_value < 0.05 for p_value in p_values),
        "corrected": sum(p_value < 0.05 for p_value in correct_p_values(p_values)),
    }


def measure(folder: Path, steps: int) -> dict[str, Any]:
    """Trains and evaluates the seeds in `folder`."""
    seeds = ",".join(map(str, range(SEEDS)))
    run_command(folder, "train", "-m", f"seed={seeds}", f"steps={steps}", f"name={SWEEP.name}")
    run_command(folder, "evaluate", str(SWEEP), "name=seven_seeds_scores")
    results = [
        read_results(point) for point in sorted((folder / SWEEP).iterdir()) if (point / "model").is_dir()
    ]
    tasks = [result.task for result in results[0]]
    return {
        "question": __doc__.splitlines()[0].removeprefix("Question: ") if __doc__ else "",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, one core",
        "versions": read_versions("krill", "torch", "transformers", "numpy"),
        "seeds": SEEDS,
        "steps": steps,
        "tasks": {task: describe_task([run[index] for run in results]) for index, task in enumerate(tasks)},
    }


def main() -> None:
    """Runs the measurement, prints its table and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="steps of each run")
    parser.add_argument(
        "--folder", type=Path, help="folder in which outputs/ is kept; default: a temporary one"
    )
    parser.add_argument(
        "--result", type=Path, default=Path(__file__).with_name("results") / "seven_seeds.json"
    )
    arguments = parser.parse_args()
    with nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.steps)
    for task, values in result["tasks"].items():
        print(
            f"{task:<14} {values['mean']:.4f} ± {values['deviation']:.4f}, items {values['item_share']:.0%}"
        )
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
