"""Question: does going on take longer late in a run than early?

A run of 1,000,005 steps is killed after its tenth. Of its folder a copy is made whose checkpoint says that it is of
step 1,000,000 (the order of rows is a pure function of that number; weights and moments are the same). The command is
then given for fresh copies of either, in turn, and timed until its first new step is logged.

    start     seconds from the start of the process, median
    header    seconds from the header of the run, when the checkpoint is found and verified
    ratio     of late to early, median of the pairs

Prints a table and writes results/resume_time.json; with another --result, that file.

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from krill.runs import checkpoints
from krill.runs.record import read_metrics

EARLY, LATE, STEPS = 10, 1_000_000, 1_000_005
WORDS = [
    "model=llama_pico", "sequence_len=64", "batch.micro_batch_size=2", "device=cpu", "hardware.threads=1",
    f"steps={STEPS}", "log_every=1", f"save_every={EARLY}", "eval_every=1000000", "resume=auto",
]  # fmt: skip


def move(folder: Path, step: int) -> None:
    """Have the newest checkpoint of the run in `folder` be one of `step`; the others go."""
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
    (moved / checkpoints.MANIFEST).unlink()
    checkpoints.write_checkpoint_manifest(moved)


def _change(file: Path, **values: int) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("krill-train")), *WORDS, f"output={folder}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def begin(folder: Path) -> None:
    """A run that was killed after its first checkpoint."""
    process = start(folder)
    first = folder / "checkpoints" / f"checkpoint-{EARLY}"
    while not first.exists():
        if process.poll() is not None:
            raise SystemExit(f"krill-train has ended with {process.returncode}")
        time.sleep(0.01)
    process.kill()
    process.wait()
    for later in checkpoints.list_checkpoints(folder / "checkpoints")[1:]:
        shutil.rmtree(later)


def seconds_of(folder: Path, step: int) -> dict[str, float]:
    """Go on in `folder` until the step after `step` is logged."""
    told = len((folder / "log.txt").read_text().splitlines())
    cut = (folder / "metrics.jsonl").stat().st_ino
    began, process = time.perf_counter(), start(folder)
    header = 0.0
    while (folder / "metrics.jsonl").stat().st_ino == cut or read_metrics(folder)[-1]["step"] <= step:
        if not header and f"resuming from step {step}" in "".join(_lines(folder)[told:]):
            header = time.perf_counter()
        if process.poll() is not None:
            raise SystemExit(f"krill-train has ended with {process.returncode}")
        time.sleep(0.001)
    ended = time.perf_counter()
    process.kill()
    process.wait()
    return {"start": ended - began, "header": ended - header}


def _lines(folder: Path) -> list[str]:
    return (folder / "log.txt").read_text().splitlines()


def measured(root: Path, pairs: int) -> dict[str, Any]:
    early, late = root / "early", root / "late"
    begin(early)
    shutil.copytree(early, late)
    move(late, LATE)
    found: dict[str, list[dict[str, float]]] = {"early": [], "late": []}
    for _ in range(pairs):
        for whole, step in ((early, EARLY), (late, LATE)):
            shutil.copytree(whole, root / "copy")
            found[whole.name].append(seconds_of(root / "copy", step))
            shutil.rmtree(root / "copy")
    return {
        since: {
            "early": round(statistics.median(one[since] for one in found["early"]), 3),
            "late": round(statistics.median(one[since] for one in found["late"]), 3),
            "ratio": round(
                statistics.median(
                    b[since] / a[since] for a, b in zip(found["early"], found["late"], strict=True)
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
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["KRILL_OUTPUTS"] = place
        found = measured(Path(place), asked.pairs)
    for since, figures in found.items():
        print(f"{since:<8}", *(f"{key} {value}" for key, value in figures.items()), sep="   ")
    result = {
        "question": "seconds until the first new step of a run that goes on, early and late in it",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("krill", "torch", "transformers")},
        "steps": {"early": EARLY, "late": LATE},
        "pairs": asked.pairs,
        "seconds": found,
    }
    asked.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
