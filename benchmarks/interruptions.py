"""Question: what does a preparation lose when it is killed?

krill-preprocess with two workers is started and ended by SIGKILL at a random moment of the seconds that it needs when
it is let alone, every fourth time of its merge; then the same command is given again, and so on. When a run was
quicker than its kill, its store is compared and removed, and the next one begins anew. For each engine:

    killed in    how often while it started, while it made parts, while it merged them
    remade       parts that were finished before a kill and were made again after it       must be 0
    orphans      processes of a run that were there a second after it was killed           must be 0
    same         all stores were, to the byte, that of a run that was let alone            must be true

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

ENGINES = ("hf", "fast")
MERGE_SHARE = 0.05
"""A merge takes about so much of a run."""


def words(files: list[str], tokenizer: Path, engine: str, output: Path) -> list[str]:
    script = Path(sys.executable).with_name("krill-preprocess")
    return [
        str(script), "data=files", f"data.paths=[{','.join(files)}]", "tokenizer=pretrained",
        f"tokenizer.path={tokenizer}", "data.workers=2", f"data.engine={engine}", f"output={output}",
    ]  # fmt: skip


def content(store: Path) -> dict[str, bytes]:
    """Every file but record.json, which tells how the store was made."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "record.json"}


def alive(session: int) -> int:
    """How many processes of a session live: a command that begins one has its workers in it."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        found += int(of) == session and state != "Z"
    return found


class Preparation:
    """One command, given again and again until its store is there."""

    def __init__(self, command: list[str], output: Path, seconds: float, choose: random.Random) -> None:
        self.command, self.output, self.seconds, self.choose = command, output, seconds, choose
        self.partial = output.with_name(f".{output.name}.partial")
        self.killed_in: Counter[str] = Counter()
        self.remade = self.orphans = 0
        self.made: dict[str, int] = {}

    def kill(self, in_merge: bool) -> bool:
        """Run it and kill it; False: it was quicker."""
        process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        until = time.monotonic() + self.choose.random() * self.seconds
        if in_merge:
            while process.poll() is None and not any(self.partial.glob("train-*")):
                time.sleep(0.001)
            until = time.monotonic() + self.choose.random() * self.seconds * MERGE_SHARE
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        running = process.poll() is None
        process.kill()
        process.wait()
        if not running or self.output.exists():
            return False
        self.killed_in[self.phase()] += 1
        self.compare_parts()
        time.sleep(1)
        self.orphans += alive(process.pid)
        return True

    def phase(self) -> str:
        if any(self.partial.glob("train-*")):
            return "merge"
        return "parts" if (self.partial / "parts").is_dir() else "start"

    def compare_parts(self) -> None:
        """Count the finished parts that are others than before."""
        if (self.partial / "manifest.json").exists():
            return  # all is merged: the parts are removed
        now = {path.name: path.stat().st_mtime_ns for path in self.partial.glob("parts/*.npz")}
        self.remade += sum(now.get(name) != moment for name, moment in self.made.items())
        self.made = now

    def begin_anew(self) -> None:
        shutil.rmtree(self.output)
        self.made = {}


def measured(files: list[str], tokenizer: Path, engine: str, root: Path, kills: int) -> dict[str, Any]:
    alone = root / f"{engine}-alone"
    began = time.monotonic()
    subprocess.run(words(files, tokenizer, engine, alone), check=True, capture_output=True)
    seconds, expected = time.monotonic() - began, content(alone)

    output = root / f"{engine}-killed"
    command = words(files, tokenizer, engine, output)
    preparation = Preparation(command, output, seconds, random.Random(engine))
    stores, same = 0, True
    while preparation.killed_in.total() < kills:
        if not preparation.kill(in_merge=preparation.killed_in.total() % 4 == 3):
            stores, same = stores + 1, same and content(output) == expected
            preparation.begin_anew()
    subprocess.run(command, check=True, capture_output=True)
    return {
        "seconds": round(seconds, 1), "kills": kills, "killed_in": dict(preparation.killed_in),
        "stores": stores + 1, "remade": preparation.remade, "orphans": preparation.orphans,
        "same": same and content(output) == expected,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", help="text files, as data.paths takes them")
    parser.add_argument("--kills", type=int, default=20, help="per engine")
    asked = parser.parse_args()
    files = [str(Path(file).absolute()) for file in asked.files]
    with tempfile.TemporaryDirectory() as place:
        tokenizer = Path(place) / "tokenizer"
        command = Path(sys.executable).with_name("krill-tokenizer")
        chosen = ["data=files", f"data.paths=[{','.join(files)}]", f"output={tokenizer}"]
        subprocess.run([str(command), *chosen], check=True, capture_output=True)
        engines = {engine: measured(files, tokenizer, engine, Path(place), asked.kills) for engine in ENGINES}
    for engine, found in engines.items():
        print(engine, *(f"{key} {value}" for key, value in found.items()), sep="   ")
    result = {
        "question": "what a preparation loses that is killed at random moments and started again",
        "date": date.today().isoformat(),
        "megabytes": round(sum(Path(file).stat().st_size for file in files) / 1e6, 1),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("krill", "tokenizers", "gigatoken")},
        "engines": engines,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / "interruptions.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
