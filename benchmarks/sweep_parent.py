"""Question: what does a point cost the process that runs the sweep?

    compose   seconds for composing, checking and identifying a point
    pool      the same, with handing it to a process that ends at once

of two sweeps of the same command, one longer than the other: the difference, so that the start does not count.
Prints a table and writes results/sweep_parent.json; with another --result, that file.

    python benchmarks/sweep_parent.py                               (2 minutes on one core)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from krill.cli import app, tokenizer, train
from krill.launch import job_files
from krill.launch.job_files import Point
from krill.sweep.composer import Composer, PointErrors

POINTS = {"train": train.run_task, "tokenizer": tokenizer.run_task}


def seconds(command: str, count: int) -> float:
    """Wall time of the command for a sweep of `count` points."""
    words = ["-m", f"seed=range(0,{count})", "name=cost"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KRILL_OUTPUTS"] = folder
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = app.main(command, POINTS[command], words)
        took = time.perf_counter() - began
    assert code in (0, 3)
    return took


def handed_over(command: str, few: int, many: int) -> float:
    """Seconds that one point more takes in all."""
    return (seconds(command, many) - seconds(command, few)) / (many - few)


def begun(command: str, few: int, many: int) -> float:
    """Seconds that one point more takes before the first begins."""
    took = []
    plain = Composer.compose_points

    def timed(composer: Composer, every: Sequence[Sequence[str]]) -> tuple[list[Point | None], PointErrors]:
        began = time.perf_counter()
        made = plain(composer, every)
        took.append(time.perf_counter() - began)
        return made

    Composer.compose_points = timed  # type: ignore[assignment, method-assign]
    try:
        for count in (few, many):
            seconds(command, count)
    finally:
        Composer.compose_points = plain  # type: ignore[method-assign]
    return (took[1] - took[0]) / (many - few)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--few", type=int, default=5)
    parser.add_argument("--many", type=int, default=45)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--result", type=Path, default=Path(__file__).parent / "results" / "sweep_parent.json"
    )
    asked = parser.parse_args()
    job_files.JOB_MODULE = "__hello__"  # in place of a point: a module of Python that prints a line and ends
    kinds = {"compose": begun, "pool": handed_over}
    found: dict[str, dict[str, float]] = {}
    for command in POINTS:
        for kind, take in kinds.items():
            figures = [take(command, asked.few, asked.many) for _ in range(asked.rounds)]
            found.setdefault(command, {})[kind] = round(statistics.median(figures), 4)
        print(
            f"{command:<12}", *(f"{kind} {value:.3f} s" for kind, value in found[command].items()), sep="   "
        )
    result = {
        "question": "seconds of the parent of a sweep for each point",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("krill", "hydra-core", "omegaconf", "pydantic")},
        "points": [asked.few, asked.many],
        "rounds": asked.rounds,
        "seconds_per_point": found,
    }
    asked.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
