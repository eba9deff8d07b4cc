"""Question: what does a fork server save a sweep of tiny points on one machine?

    processes   each point imports torch and transformers in a process of its own
    forked      each point is forked from a server that has imported them

with one point at a time on all cores, and with one point per core. The four alternate; the models of a point must be
bitwise identical in all. `cpu` is the user and system time of all processes, which depends less on other load.
Prints a table and writes results/sweep_pool.json, or the file of --result.

    python benchmarks/sweep_pool.py                               (5 minutes on two cores)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from krill.cli import train
from krill.launch.preload import PreloadedServer
from krill.runs.record import read_versions

SMALL = (
    "model=llama_pico", "sequence_len=64", "batch.micro_batch_size=2", "steps=3", "eval_every=3", "device=cpu",
)  # fmt: skip
VARIANTS = ("processes", "forked")


def run_sweep(variant: str, slots: int, count: int, root: Path, name: str) -> tuple[float, float, list[str]]:
    """Runs a sweep; returns its wall time and CPU time in seconds, and the digest of each point's model."""
    overrides = ["-m", f"seed=range(0,{count})", f"name={name}", f"sweep.max_parallel={slots}", *SMALL]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, __file__, "--run", variant, *overrides],
        env=environment | {"KRILL_OUTPUTS": str(root)},
        check=True,
        capture_output=True,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    models = sorted((root / "sweeps" / name).glob("*/model/model.safetensors"))
    assert len(models) == count
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, [hashlib.sha256(model.read_bytes()).hexdigest() for model in models]


def run_krill_train(variant: str, overrides: list[str]) -> int:
    """Runs krill-train with or without a fork server."""
    if variant == "processes":
        PreloadedServer.start = lambda *_, **__: PreloadedServer(None, None)  # type: ignore[method-assign]
    sys.argv = ["krill-train", *overrides]
    return train.main()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "sweep_pool.json")
    arguments = parser.parse_args()
    times: dict[tuple[str, int], list[tuple[float, float]]] = {}
    digests: set[tuple[str, ...]] = set()
    with tempfile.TemporaryDirectory() as folder:
        run_sweep("forked", 1, 2, Path(folder), "tokens")  # prepares tokenizer and tokens
        for number in range(arguments.rounds):
            for slots in arguments.slots:
                for variant in VARIANTS:
                    wall, cpu, models = run_sweep(
                        variant, slots, arguments.points, Path(folder), f"{variant}{slots}-{number}"
                    )
                    times.setdefault((variant, slots), []).append((wall, cpu))
                    digests.add(tuple(models))
    assert len(digests) == 1, "the models differ"
    sweeps: list[dict[str, Any]] = []
    for (variant, slots), figures in times.items():
        walls, cpus = zip(*figures, strict=True)
        row = {
            "way": variant, "slots": slots, "seconds": round(statistics.median(walls), 1),
            "least_seconds": round(min(walls), 1), "cpu_seconds": round(statistics.median(cpus), 1),
        }  # fmt: skip
        sweeps.append(row)
        print(f"{variant:<12}", *(f"{key} {value}" for key, value in row.items() if key != "way"), sep="   ")
    result = {
        "question": "seconds of a sweep of tiny points on one machine",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "torch", "transformers"),
        "points": arguments.points,
        "rounds": arguments.rounds,
        "setting": list(SMALL),
        "equal_to_the_byte": True,
        "sweeps": sweeps,
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        sys.exit(run_krill_train(sys.argv[2], sys.argv[3:]))
    main()
