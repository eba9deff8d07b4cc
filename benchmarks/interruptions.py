"""Question: what does a preparation lose when it is killed?

Starts krill-preprocess with two workers and kills it with SIGKILL at a random moment of the time that an undisturbed
run takes, every fourth time during its merge; then the same command is started again, and so on. If a run finishes
before its kill, its store is compared and removed, and the next run starts from scratch. For each engine:

    killed in    how often during start-up, while writing parts, while merging them
    remade       parts that were finished before a kill and written again after it         must be 0
    orphans      processes of a run that still exist a second after it was killed          must be 0
    same         all stores are bitwise identical to that of an undisturbed run            must be true

Prints a table and writes results/interruptions.json.

    python benchmarks/interruptions.py ko.jsonl en.jsonl          (8 minutes for 61 MB on two cores)

The files should be JSON lines of 20 MB and more: a part holds at least 4 MiB of their lines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from krill.runs.record import read_versions

ENGINES = ("hf", "fast")
MERGE_SHARE = 0.05
"""The approximate share of the merge in the time of a run."""


def build_command(files: list[str], tokenizer: Path, engine: str, output: Path) -> list[str]:
    return [
        sys.executable, "-m", "krill", "preprocess", "data=files", f"data.paths=[{','.join(files)}]",
        "tokenizer=pretrained", f"tokenizer.path={tokenizer}", "data.workers=2", f"data.engine={engine}",
        f"output={output}",
    ]  # fmt: skip


def read_store(store: Path) -> dict[str, bytes]:
    """Returns the bytes of every file except record.json, which records how the store was built."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "record.json"}


def count_session_processes(session: int) -> int:
    """Returns the number of live processes of a session: a command in its own session and its workers."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, process_session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        count += int(process_session) == session and state != "Z"
    return count


class Preparation:
    """One command, run again and again until its store is complete."""

    def __init__(self, command: list[str], output: Path, seconds: float, rng: random.Random) -> None:
        self.command, self.output, self.seconds, self.rng = command, output, seconds, rng
        self.partial = output.with_name(f".{output.name}.partial")
        self.killed_in: Counter[str] = Counter()
        self.remade = self.orphans = 0
        self.finished_parts: dict[str, int] = {}

    def run_and_kill(self, in_merge: bool) -> bool:
        """Runs the command and kills it; returns False if it finished before."""
        process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        until = time.monotonic() + self.rng.random() * self.seconds
        if in_merge:
            while process.poll() is None and not any(self.partial.glob("train-*")):
                time.sleep(0.001)
            until = time.monotonic() + self.rng.random() * self.seconds * MERGE_SHARE
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        running = process.poll() is None
        process.kill()
        process.wait()
        if not running or self.output.exists():
            return False
        self.killed_in[self.get_phase()] += 1
        self.compare_parts()
        time.sleep(1)
        self.orphans += count_session_processes(process.pid)
        return True

    def get_phase(self) -> str:
        if any(self.partial.glob("train-*")):
            return "merge"
        return "parts" if (self.partial / "parts").is_dir() else "start"

    def compare_parts(self) -> None:
        """Counts the finished parts that were written again."""
        if (self.partial / "manifest.json").exists():
            return  # everything is merged and the parts are removed
        now = {path.name: path.stat().st_mtime_ns for path in self.partial.glob("parts/*.npz")}
        self.remade += sum(now.get(name) != modified for name, modified in self.finished_parts.items())
        self.finished_parts = now

    def reset(self) -> None:
        shutil.rmtree(self.output)
        self.finished_parts = {}


def measure(files: list[str], tokenizer: Path, engine: str, root: Path, kills: int) -> dict[str, Any]:
    undisturbed = root / f"{engine}-alone"
    began = time.monotonic()
    subprocess.run(build_command(files, tokenizer, engine, undisturbed), check=True, capture_output=True)
    seconds, expected = time.monotonic() - began, read_store(undisturbed)

    output = root / f"{engine}-killed"
    command = build_command(files, tokenizer, engine, output)
    preparation = Preparation(command, output, seconds, random.Random(engine))
    stores, same = 0, True
    while preparation.killed_in.total() < kills:
        if not preparation.run_and_kill(in_merge=preparation.killed_in.total() % 4 == 3):
            stores, same = stores + 1, same and read_store(output) == expected
            preparation.reset()
    subprocess.run(command, check=True, capture_output=True)
    return {
        "seconds": round(seconds, 1), "kills": kills, "killed_in": dict(preparation.killed_in),
        "stores": stores + 1, "remade": preparation.remade, "orphans": preparation.orphans,
        "same": same and read_store(output) == expected,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", help="text files, as data.paths takes them")
    parser.add_argument("--kills", type=int, default=20, help="per engine")
    arguments = parser.parse_args()
    files = [str(Path(file).absolute()) for file in arguments.files]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        tokenizer = root / "tokenizer"
        command = [sys.executable, "-m", "krill", "tokenizer"]
        overrides = ["data=files", f"data.paths=[{','.join(files)}]", f"output={tokenizer}"]
        subprocess.run([*command, *overrides], check=True, capture_output=True)
        engines = {engine: measure(files, tokenizer, engine, root, arguments.kills) for engine in ENGINES}
    for engine, figures in engines.items():
        print(engine, *(f"{key} {value}" for key, value in figures.items()), sep="   ")
    result = {
        "question": "what a preparation loses that is killed at random moments and started again",
        "date": date.today().isoformat(),
        "megabytes": round(sum(Path(file).stat().st_size for file in files) / 1e6, 1),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "tokenizers", "gigatoken"),
        "engines": engines,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / "interruptions.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
