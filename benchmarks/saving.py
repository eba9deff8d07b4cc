"""Question: how long does a training wait for a checkpoint, saved synchronously and in the background?

One real run of a Llama with 63 million parameters and AdamW (760 MB per checkpoint) in blocks of steps. A block
starts with no save, a synchronous save ("once") or a save in the background (save_in_background=true), in turn, and
ends when its checkpoint is complete, so that no work is left to the next block. For each kind of save:

    wait        seconds without a training step, median
    cost        seconds by which its block took longer than the block without a save before it, median: the wait, and
                the slowdown of the steps by the thread
    of_once     ratio to the synchronous save, median of the pairs of a round

Prints a table and writes results/saving.json, or the file of --result. --folder: a folder on the disk to measure.

    python benchmarks/saving.py          (3 minutes on two cores, one of them for the steps)

Must hold: the background save waits at most 0.5 of the time of a synchronous save, and costs no more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from krill.cli.compose import compose_config
from krill.cli.train import prepare_inputs
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.data.inputs import RunInputs
from krill.runs.record import read_versions
from krill.training import run as training
from krill.training.trainer import KrillTrainer

KINDS = ("nothing", "once", "background")
LIMIT = 0.5
block_timers: list[BlockTimer] = []


class BlockTimer(TrainerCallback):
    """Starts and ends the blocks of a run; the first block of each kind is not counted."""

    def __init__(self, trainer: KrillTrainer, steps: int):
        self.trainer, self.steps = trainer, steps
        self.block_seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.wait_seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.kind, self.began, self.wait, self.is_waiting = "", 0.0, 0.0, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        number, rest = divmod(state.global_step, self.steps)
        if rest:
            return
        if self.kind:
            with self.measure_wait():
                self.trainer.async_saver.finalize()
            self.block_seconds[self.kind].append(time.perf_counter() - self.began)
            self.wait_seconds[self.kind].append(self.wait)
        self.kind = KINDS[(number - 1) % len(KINDS)]
        in_background = self.kind == "background"
        self.trainer.config = self.trainer.config.model_copy(update={"save_in_background": in_background})
        control.should_save = self.kind != "nothing"
        self.began, self.wait = time.perf_counter(), 0.0

    @contextmanager
    def measure_wait(self) -> Iterator[None]:
        if self.is_waiting:
            yield
            return
        began, self.is_waiting = time.perf_counter(), True
        yield
        self.wait, self.is_waiting = self.wait + time.perf_counter() - began, False


class TimedTrainer(KrillTrainer):
    """Reports its waits for checkpoints to the timer."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        block_timers.append(BlockTimer(self, self.args.logging_steps))
        self.add_callback(block_timers[0])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with block_timers[0].measure_wait():
            super()._save_checkpoint(model, trial)

    def run_save_hooks(self, step: int) -> None:
        with block_timers[0].measure_wait():
            super().run_save_hooks(step)


def train(arguments: argparse.Namespace, root: Path) -> tuple[BlockTimer, float]:
    """Trains; returns the timed blocks and the size of a checkpoint in MB."""
    steps = ((arguments.rounds + 1) * len(KINDS) + 1) * arguments.steps
    overrides = [
        "model=llama_small", f"model.num_hidden_layers={arguments.layers}", "optimizer=adamw", "sequence_len=64",
        "batch.micro_batch_size=1", f"steps={steps}", f"log_every={arguments.steps}", "device=cpu",
        "hardware.threads=1", "eval_every=1000000", "save_every=1000000", "keep_checkpoints=1", "keep_best=false",
        "data.validation_fraction=0.001",
    ]  # fmt: skip
    config = validate_config(TrainConfig, compose_config("train", overrides))
    tokenizer, store = prepare_inputs(config, RunInputs(config.data, config.tokenizer, root))
    folder = root / "run"
    folder.mkdir()
    vars(training)["KrillTrainer"] = TimedTrainer
    training.run_training(config, folder, store=store, tokenizer=tokenizer)
    files = (folder / "checkpoints").rglob("*")
    return block_timers[0], sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def round_median(values: Any) -> float:
    return round(statistics.median(values), 3)


def compute_figures(blocks: BlockTimer) -> dict[str, dict[str, float]]:
    waits = {kind: blocks.wait_seconds[kind][1:] for kind in KINDS[1:]}
    costs = {
        kind: [
            seconds - without
            for seconds, without in zip(
                blocks.block_seconds[kind], blocks.block_seconds["nothing"], strict=True
            )
        ][1:]
        for kind in KINDS[1:]
    }
    return {
        kind: {
            "wait_s": round_median(waits[kind]),
            "wait_of_once": round_median(a / b for a, b in zip(waits[kind], waits["once"], strict=True)),
            "cost_s": round_median(costs[kind]),
            "cost_of_once": round_median(a / b for a, b in zip(costs[kind], costs["once"], strict=True)),
        }
        for kind in KINDS[1:]
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--steps", type=int, default=8, help="per block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="parent folder of the checkpoints; default: the system's temporary folder"
    )
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "saving.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        blocks, size = train(arguments, Path(temporary))
    figures = compute_figures(blocks)
    for kind, values in figures.items():
        print(f"{kind:<12}", *(f"{key} {value}" for key, value in values.items()), sep="   ")
    step = round_median(seconds / arguments.steps for seconds in blocks.block_seconds["nothing"][1:])
    print(f"a step without a save {step} s, a checkpoint {size:.0f} MB")
    background, once = figures["background"], figures["once"]
    result = {
        "question": "how long a training waits for a checkpoint, saved at once and in the background",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": read_versions("krill", "torch", "transformers", "safetensors"),
        "layers": arguments.layers, "checkpoint_mb": round(size, 1),
        "steps": arguments.steps, "rounds": arguments.rounds, "step_s": step,
        "saves": figures,
        "holds": {"wait": background["wait_of_once"] <= LIMIT, "cost": background["cost_s"] <= once["cost_s"]},
    }  # fmt: skip
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
