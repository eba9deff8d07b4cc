"""Question: what does a point cost the process that runs the sweep, and what does a dry run of thousands cost?

    compose   CPU seconds for composing, checking and identifying a point
    pool      the same, and starting a process for it that exits immediately

Each is the difference between two sweeps of the same command, one longer than the other, so start-up does not count.
The dry run is a whole process with its start-up, of --dry-run points: CPU time and peak memory, next to those of ten.

Prints a table and writes results/sweep_parent.json, or the file of --result.

    python benchmarks/sweep_parent.py                               (3 minutes on one core)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from krill.cli import app, tokenizer, train
from krill.launch import job_files
from krill.launch.job_files import Point
from krill.runs.record import read_versions
from krill.sweep.composer import Composer, PointErrors

POINTS = {"train": train.run_task, "tokenizer": tokenizer.run_task}


def measure_sweep(command: str, count: int) -> float:
    """Returns the wall time in seconds of the command for a sweep of `count` points."""
    overrides = ["-m", f"seed=range(0,{count})", "name=cost"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KRILL_OUTPUTS"] = folder
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = app.main(command, POINTS[command], overrides)
        seconds = time.perf_counter() - began
    assert code in (0, 3)
    return seconds


def measure_pool(command: str, few: int, many: int) -> float:
    """Returns the total seconds of one more point."""
    return (measure_sweep(command, many) - measure_sweep(command, few)) / (many - few)


def measure_composition(command: str, few: int, many: int) -> float:
    """Returns the seconds of one more point before the first one starts."""
    seconds: list[float] = []
    original = Composer.compose_points

    def compose_points(
        composer: Composer, overrides: Sequence[Sequence[str]]
    ) -> tuple[list[Point | None], PointErrors]:
        began = time.process_time()
        points = original(composer, overrides)
        seconds[-1] += time.process_time() - began
        return points

    Composer.compose_points = compose_points  # type: ignore[assignment, method-assign]
    try:
        for count in (few, many):
            seconds.append(0.0)
            measure_sweep(command, count)
    finally:
        Composer.compose_points = original  # type: ignore[method-assign]
    return (seconds[1] - seconds[0]) / (many - few)


def measure_dry_run(count: int) -> dict[str, float]:
    """Returns the CPU seconds and the peak memory in MB of a dry run of `count` points in a process of its own."""
    shape = ["model=llama_pico", "sequence_len=64", "steps=5", "device=cpu", "dry_run=true"]
    code = (
        "import sys, time; from krill.cli.train import main; from krill.resources import read_peak_rss; main(); "
        "print(time.process_time(), read_peak_rss() / 2**20, file=sys.stderr)"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, "-m", f"seed=range(0,{count})", *shape],
            env=os.environ | {"KRILL_OUTPUTS": folder, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
    assert done.stdout.splitlines()[-1].startswith("total "), done.stderr
    seconds, megabytes = map(float, done.stderr.splitlines()[-1].split())
    return {"cpu_seconds": round(seconds, 1), "peak_mb": round(megabytes)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--few", type=int, default=5)
    parser.add_argument("--many", type=int, default=45)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry-run", type=int, nargs="*", default=[10, 1000, 5000], metavar="POINTS")
    parser.add_argument(
        "--result", type=Path, default=Path(__file__).parent / "results" / "sweep_parent.json"
    )
    arguments = parser.parse_args()
    job_files.JOB_MODULE = "__hello__"  # instead of a point: a module of Python that prints a line and exits
    kinds = {"compose": measure_composition, "pool": measure_pool}
    results: dict[str, dict[str, float]] = {}
    for command in POINTS:
        for kind, measure in kinds.items():
            figures = [measure(command, arguments.few, arguments.many) for _ in range(arguments.rounds)]
            results.setdefault(command, {})[kind] = round(statistics.median(figures), 4)
        print(
            f"{command:<12}",
            *(f"{kind} {value:.3f} s" for kind, value in results[command].items()),
            sep="   ",
        )
    dry_runs = {str(count): measure_dry_run(count) for count in arguments.dry_run}
    for count, used in dry_runs.items():
        print(f"dry run of {count} points   {used['cpu_seconds']} s of CPU   {used['peak_mb']} MB")
    result = {
        "question": "seconds of the parent of a sweep for each point",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "hydra-core", "omegaconf", "pydantic"),
        "points": [arguments.few, arguments.many],
        "rounds": arguments.rounds,
        "seconds_per_point": results,
        "dry_run": dry_runs,
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
