"""Question: how far is the time that krill-plan computes on a calibrated machine from what a training takes?

Measures a few configurations on the CPU with plan.measure=true (CALIBRATIONS), then plans 12 others (model ×
optimizer × sequence_len × batch × gradient checkpointing) by them, and trains each for a few seconds in a fresh
process. Compares the seconds of a step in steady state (the lower quartile of the logged steps after the first), and
the seconds of the whole command, with the plan. The time in which other processes had the core is subtracted from
each step and from the command (/proc/self/schedstat); its share is in the result. Prints a table and writes
results/plan_time.json.

    OMP_NUM_THREADS=1 python benchmarks/plan_time.py            (6 minutes on an idle core; Linux)

Must hold: every ratio of plan to truth, of a step in steady state and of the whole command, is within 20 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from krill.runs.record import read_versions

COMMON = [
    "data=python_docs", "device=cpu", "tokenizer=bpe_4k", "eval_tokens=2000", "eval_every=1000", "save_every=1000",
    "log_every=1", "keep_best=false", "resume=false",
]  # fmt: skip

TARGET_SECONDS = 5.0
"""The time of the steps of a training."""


def build_model(family: str, width: int, layers: int) -> list[str]:
    """Returns the overrides of a Llama or Qwen3 of this size, with heads of 32 or 64."""
    heads = max(2, width // 64)
    return [
        f"model={'llama_nano' if family == 'llama' else 'qwen3_pico'}", f"model.hidden_size={width}",
        f"model.intermediate_size={round(width * 8 / 3 / 32) * 32}", f"model.num_hidden_layers={layers}",
        f"model.num_attention_heads={heads}", f"model.num_key_value_heads={1 if heads % 2 else heads // 2}",
        f"model.head_dim={width // heads}",
    ]  # fmt: skip


def build_row(
    model: tuple[str, int, int],
    optimizer: str,
    length: int,
    rows: int,
    passes: int = 1,
    checkpointing: bool = False,
) -> dict[str, Any]:
    """Returns a configuration."""
    return {
        "model": f"{model[0]} {model[1]} × {model[2]}",
        "optimizer": optimizer,
        "sequence_len": length,
        "batch": f"{rows} × {passes}" if passes > 1 else f"{rows}",
        "checkpointing": checkpointing,
        "overrides": [
            *build_model(*model), f"optimizer={optimizer}", f"sequence_len={length}",
            f"batch.micro_batch_size={rows}", f"batch.gradient_accumulation_steps={passes}",
            f"hardware.gradient_checkpointing={str(checkpointing).lower()}",
        ],
    }  # fmt: skip


TINY, SMALL, MEDIUM, LARGE = ("llama", 64, 2), ("llama", 128, 4), ("llama", 256, 6), ("llama", 384, 8)

CALIBRATIONS = [
    build_row(TINY, "adamw", 256, 8),
    build_row(SMALL, "muon_moonlight", 256, 8),
    build_row(MEDIUM, "muon_moonlight", 512, 4),
    build_row(LARGE, "adamw", 256, 4),
]

OTHERS = [
    build_row(TINY, "muon_keller", 128, 16),
    build_row(SMALL, "adamw", 512, 4),
    build_row(("qwen3", 128, 4), "muon_moonlight", 128, 8, passes=2),
    build_row(("llama", 192, 4), "adamw", 1024, 2),
    build_row(("llama", 192, 6), "muon_moonlight", 256, 4, checkpointing=True),
    build_row(MEDIUM, "muon_keller", 256, 8),
    build_row(("qwen3", 256, 4), "adamw", 512, 2, passes=2),
    build_row(MEDIUM, "adamw", 1024, 2, checkpointing=True),
    build_row(("llama", 320, 6), "adamw", 128, 8),
    build_row(("qwen3", 320, 4), "muon_moonlight", 512, 2, checkpointing=True),
    build_row(LARGE, "adamw", 512, 2),
    build_row(("llama", 448, 4), "muon_moonlight", 256, 4),
]

CHILD = """
import sys, time
started = time.perf_counter()
from krill.cli.{command} import main
from krill.resources import read_waited_seconds
from krill.runs.record import Record
append_metrics = Record.append_metrics
Record.append_metrics = lambda self, values: append_metrics(self, values | {{"waited": read_waited_seconds()}})
sys.argv[0] = "krill-{command}"
code = main()
print(read_waited_seconds(), time.perf_counter() - started, file=sys.stderr, flush=True)
sys.exit(code)
"""


def run(command: str, arguments: list[str], environment: dict[str, str]) -> tuple[str, dict[str, float]]:
    """Returns the standard output of a command, and its seconds and the share of them that it waited for a core."""
    words = [sys.executable, "-c", CHILD.format(command=command), *COMMON, *arguments]
    started_at = time.perf_counter()
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words[3:])}\n{done.stderr}")
    waited, seconds = map(float, done.stderr.strip().splitlines()[-1].split())
    return done.stdout, {"seconds": time.perf_counter() - started_at, "waited": waited / seconds}


def plan(row: dict[str, Any], environment: dict[str, str], *overrides: str) -> dict[str, Any]:
    """Returns the plan of a configuration."""
    text, _ = run("plan", [*row["overrides"], *overrides, "format=json"], environment)
    planned: dict[str, Any] = json.loads(text)
    return planned


def measure(row: dict[str, Any], environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """Plans and trains a configuration; returns it with the plan, what it took, and their ratios."""
    step = compute_step_seconds(plan(row, environment, "steps=10"), 10)
    steps = max(10, round(TARGET_SECONDS / step))
    planned = plan(row, environment, f"steps={steps}")
    _, took = run("train", [*row["overrides"], f"steps={steps}", f"output={folder}"], environment)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "tokens_per_second" in line][2:]
    net = sorted(
        planned["tokens_per_step"] / after["tokens_per_second"] - (after["waited"] - before["waited"])
        for before, after in pairwise(lines)
    )
    step_seconds = net[len(net) // 4]
    whole = took["seconds"] * (1 - took["waited"])
    planned_step = compute_step_seconds(planned, steps)
    return {key: value for key, value in row.items() if key != "overrides"} | {
        "parameters": planned["parameters"]["total"],
        "steps": steps,
        "planned_step_ms": round(1000 * planned_step, 2),
        "step_ms": round(1000 * step_seconds, 2),
        "ratio_step": round(planned_step / step_seconds, 3),
        "planned_seconds": round(planned["seconds"]["total"], 1),
        "seconds": round(whole, 1),
        "ratio_total": round(planned["seconds"]["total"] / whole, 3),
        "range": [round(planned["seconds"][key], 1) for key in ("shortest", "longest")],
        "status": planned["seconds"]["status"],
        "waited": round(took["waited"], 3),
        "load": round(os.getloadavg()[0], 2),
    }


def compute_step_seconds(planned: dict[str, Any], steps: int) -> float:
    """Returns the seconds of a step of a plan."""
    return float(planned["seconds"]["steps"] + planned["seconds"]["optimizer"]) / steps


def format_row(row: dict[str, Any]) -> str:
    """Returns the line of a configuration."""
    return (
        f"{row['model']:15} {row['optimizer']:15} {row['sequence_len']:5} {row['batch']:>6} "
        f"{'checkpointing' if row['checkpointing'] else '':13} step {row['planned_step_ms']:8,.1f} ms, took "
        f"{row['step_ms']:8,.1f} ms  {row['ratio_step']:.3f}  whole {row['planned_seconds']:5.1f} s, took "
        f"{row['seconds']:5.1f} s  {row['ratio_total']:.3f}  waited {100 * row['waited']:2.0f} %"
    )


def summarize(ratios: list[float]) -> dict[str, float]:
    """Returns the smallest, the median and the largest ratio."""
    return {"min": min(ratios), "median": round(statistics.median(ratios), 3), "max": max(ratios)}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "plan_time.json")
    parser.add_argument("--outputs", type=Path, help="a folder with prepared tokens to reuse")
    parser.add_argument("--calibration", type=Path, help="a folder with measurements to reuse")
    arguments = parser.parse_args()
    known = (
        json.loads(arguments.result.read_text())
        if arguments.calibration and arguments.result.exists()
        else {}
    )
    with tempfile.TemporaryDirectory() as temporary:
        outputs = arguments.outputs or Path(temporary) / "outputs"
        calibration = arguments.calibration or Path(temporary) / "calibration"
        environment = os.environ | {"KRILL_OUTPUTS": str(outputs), "HF_HUB_OFFLINE": "1"}
        environment |= {"KRILL_CALIBRATION": str(calibration)}
        environment.setdefault("OMP_NUM_THREADS", "1")
        result = {
            "question": "time of krill-plan after calibration divided by what another configuration takes",
            "date": date.today().isoformat(),
            "device": "cpu",
            "hardware": {
                "machine": platform.machine(), "cores": os.cpu_count(), "threads": environment["OMP_NUM_THREADS"],
            },
            "versions": read_versions("krill", "torch", "transformers"),
            "calibrations": known.get("calibrations", []),
            "runs": known.get("runs", []),
        }  # fmt: skip
        if not result["calibrations"]:
            # Prepares the tokens, and leaves the start-up of a run.
            run(
                "train",
                [*CALIBRATIONS[0]["overrides"], "steps=20", f"output={temporary}/warm-up"],
                environment,
            )
        for row in CALIBRATIONS[len(result["calibrations"]) :]:
            result["calibrations"].append(calibrate(row, environment))
            print(json.dumps(result["calibrations"][-1], ensure_ascii=False), flush=True)
            write(arguments.result, result)
        for index, row in list(enumerate(OTHERS))[len(result["runs"]) :]:
            isolated = environment | {
                "KRILL_CALIBRATION": copy_calibration(calibration, Path(temporary), index)
            }
            result["runs"].append(measure(row, isolated, Path(temporary) / f"run-{index}"))
            print(format_row(result["runs"][-1]), flush=True)
            write(arguments.result, result)
    print("step", result["ratio_step"], "whole", result["ratio_total"])


def calibrate(row: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Measures a configuration with plan.measure=true; returns it with its seconds."""
    found = plan(row, environment, "plan.measure=true", "steps=100")["calibration"]
    return {key: value for key, value in row.items() if key != "overrides"} | {
        "microseconds": {key: round(1e6 * value, 2) for key, value in found["seconds"].items()},
        "waited": round(found["waited"], 3),
        "load": round(os.getloadavg()[0], 2),
    }


def write(file: Path, result: dict[str, Any]) -> None:
    """Writes the result so far, with the ratios of its rows."""
    if result["runs"]:
        for key in ("ratio_step", "ratio_total"):
            result[key] = summarize([row[key] for row in result["runs"]])
    file.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n")


def copy_calibration(folder: Path, parent: Path, index: int) -> str:
    """Returns a copy of the calibration: the runs that are compared with it leave their figures elsewhere."""
    copied = parent / f"calibration-{index}"
    copied.mkdir()
    for file in folder.glob("*.json"):
        (copied / file.name).write_bytes(file.read_bytes())
    return str(copied)


if __name__ == "__main__":
    main()
