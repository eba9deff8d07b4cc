"""Question: does resuming take longer late in a run than early?

A run of 1,000,005 steps is killed after step 10. In a copy of its folder the checkpoint is changed to be of step
1,000,000 (the order of rows is a pure function of the step; weights and moments are the same). The command then
resumes fresh copies of both, in turn, and is timed until its first new step is logged.

    start     seconds from the start of the process, median
    header    seconds from the header of the run, when the checkpoint has been found and verified
    ratio     late to early, median of the pairs

Prints a table and writes results/resume_time.json, or the file of --result.

    python benchmarks/resume_time.py                               (2 minutes on one core)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from krill.manifest import CHECKPOINT_MANIFEST
from krill.runs import checkpoints
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_versions

EARLY, LATE, STEPS = 10, 1_000_000, 1_000_005
OVERRIDES = [
    "model=llama_pico", "sequence_len=64", "batch.micro_batch_size=2", "device=cpu", "hardware.threads=1",
    f"steps={STEPS}", "log_every=1", f"save_every={EARLY}", "eval_every=1000000", "resume=auto",
]  # fmt: skip


def move_checkpoint(folder: Path, step: int) -> None:
    """Changes the newest checkpoint of the run in `folder` to be of `step`, and removes the others."""
    import torch

    *others, newest = checkpoints.list_checkpoints(folder / "checkpoints")
    for other in others:
        shutil.rmtree(other)
    moved = newest.with_name(f"checkpoint-{step}")
    newest.rename(moved)
    _change(moved / "trainer_state.json", global_step=step)
    _change(moved / "pending_loss.json", since=step)
    schedule = torch.load(moved / "scheduler.pt", weights_only=True)
    torch.save(schedule | {"last_epoch": step, "_step_count": step + 1}, moved / "scheduler.pt")
    (moved / CHECKPOINT_MANIFEST).unlink()
    checkpoints.write_checkpoint_manifest(moved)


def _change(file: Path, **values: int) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def start_run(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "krill", "train", *OVERRIDES, f"output={folder}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def create_killed_run(folder: Path) -> None:
    """Starts a run in `folder` and kills it after its first checkpoint."""
    process = start_run(folder)
    first = folder / "checkpoints" / f"checkpoint-{EARLY}"
    while not first.exists():
        if process.poll() is not None:
            raise SystemExit(f"krill-train ended with {process.returncode}")
        time.sleep(0.01)
    process.kill()
    process.wait()
    for later in checkpoints.list_checkpoints(folder / "checkpoints")[1:]:
        shutil.rmtree(later)


def time_resume(folder: Path, step: int) -> dict[str, float]:
    """Resumes in `folder` until the step after `step` is logged; returns the seconds from start and header."""
    old_lines = len(_read_log(folder))
    old_inode = (folder / "metrics.jsonl").stat().st_ino
    began, process = time.perf_counter(), start_run(folder)
    header = 0.0
    while (folder / "metrics.jsonl").stat().st_ino == old_inode or read_metrics(folder)[-1]["step"] <= step:
        if not header and f"resuming from step {step}" in "".join(_read_log(folder)[old_lines:]):
            header = time.perf_counter()
        if process.poll() is not None:
            raise SystemExit(f"krill-train ended with {process.returncode}")
        time.sleep(0.001)
    ended = time.perf_counter()
    process.kill()
    process.wait()
    return {"start": ended - began, "header": ended - header}


def _read_log(folder: Path) -> list[str]:
    return (folder / "log.txt").read_text().splitlines()


def measure(root: Path, pairs: int) -> dict[str, Any]:
    early, late = root / "early", root / "late"
    create_killed_run(early)
    shutil.copytree(early, late)
    move_checkpoint(late, LATE)
    seconds: dict[str, list[dict[str, float]]] = {"early": [], "late": []}
    for _ in range(pairs):
        for original, step in ((early, EARLY), (late, LATE)):
            shutil.copytree(original, root / "copy")
            seconds[original.name].append(time_resume(root / "copy", step))
            shutil.rmtree(root / "copy")
    return {
        since: {
            "early": round(statistics.median(row[since] for row in seconds["early"]), 3),
            "late": round(statistics.median(row[since] for row in seconds["late"]), 3),
            "ratio": round(
                statistics.median(
                    b[since] / a[since] for a, b in zip(seconds["early"], seconds["late"], strict=True)
                ),
                3,
            ),
        }
        for since in ("start", "header")
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "resume_time.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["KRILL_OUTPUTS"] = temporary
        seconds = measure(Path(temporary), arguments.pairs)
    for since, figures in seconds.items():
        print(f"{since:<8}", *(f"{key} {value}" for key, value in figures.items()), sep="   ")
    result = {
        "question": "seconds until the first new step of a resumed run, early and late in it",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "torch", "transformers"),
        "steps": {"early": EARLY, "late": LATE},
        "pairs": arguments.pairs,
        "seconds": seconds,
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
