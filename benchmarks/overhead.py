"""Question: how much longer does a step of krill-train take than a step of a plain PyTorch loop?

For each optimizer one real run trains, and after every ten of its steps (the interval between two lines of metrics) a
plain PyTorch loop runs ten of its own: a copy of the model, the same rows from the same loader, the same loss,
attention, clipping, optimizer and schedule. A ratio compares a block of krill's steps with the mean of the plain
blocks before and after it, so that a slow machine slows both.

    step_ms     median of each
    ratio       median of the pairs, with its quartiles         must be ≤ 1.03 if a step takes at least 100 ms
    data_wait   share of krill's time that is spent waiting for rows, median      must be < 0.01

Prints a table and writes results/overhead.json, or the file of --result.

    python benchmarks/overhead.py                               (4 minutes on one core)
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import TrainerCallback

from krill.cli.compose import compose_config
from krill.cli.train import prepare_inputs
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.data.inputs import RunInputs
from krill.data.packing import IGNORE_INDEX
from krill.optim.build import build_optimizer
from krill.optim.schedules import build_scheduler
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_versions
from krill.training import run as training
from krill.training.compute.head_loss import build_loss
from krill.training.trainer import KrillTrainer

OPTIMIZERS = ("adamw", "muon_moonlight")
BLOCK = 10


def run_plain_steps(trainer: KrillTrainer) -> Iterator[None]:
    """Runs the plain loop, one step per item."""
    config, steps = trainer.config, trainer.args.max_steps
    model = copy.deepcopy(trainer.model).train()
    loss_function = build_loss(model, config.hardware.loss, "cpu")
    optimizer = build_optimizer(model, config.optimizer)
    schedule = build_scheduler(config.scheduler, optimizer, steps)
    # Endless: the plain loop runs two blocks more than krill, whose steps the loader covers.
    batches = (batch for _ in count() for batch in trainer.train_loader(lambda: 0))
    for step, batch in enumerate(batches, 1):
        num_items = batch["labels"][:, 1:].ne(IGNORE_INDEX).sum()
        with loss_function.training_context():
            loss = model(**batch, num_items_in_batch=num_items).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % BLOCK == 0:
            loss.item()
        yield


class BlockTimer(TrainerCallback):
    """Times blocks of the run's steps, and runs and times plain blocks between them."""

    def __init__(self, trainer: KrillTrainer):
        self.trainer, self.steps = trainer, run_plain_steps(trainer)
        self.krill: list[float] = []
        self.plain: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._run_plain_block()  # the first block warms up and is not counted
        self._run_plain_block()
        self.plain = self.plain[1:]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % BLOCK == 0:
            self.krill.append(time.perf_counter() - self.began)
            with self.trainer.throughput.pause():
                self._run_plain_block()

    def _run_plain_block(self) -> None:
        began = time.perf_counter()
        for _ in range(BLOCK):
            next(self.steps)
        self.began = time.perf_counter()
        self.plain.append(self.began - began)

    def compute_ratios(self) -> list[float]:
        """Returns the ratio of each block of krill's except the first."""
        blocks = zip(self.krill, self.plain[:-1], self.plain[1:], strict=True)
        return [2 * block / (before + after) for block, before, after in blocks][1:]


def measure(optimizer: str, arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    overrides = [
        f"model={arguments.model}", f"optimizer={optimizer}", f"sequence_len={arguments.sequence_len}", "device=cpu",
        f"batch.micro_batch_size={arguments.rows}", f"steps={(arguments.pairs + 1) * BLOCK}", f"log_every={BLOCK}",
        "hardware.threads=1", "eval_every=1000000", "save_every=1000000",
    ]  # fmt: skip
    config = validate_config(TrainConfig, compose_config("train", overrides))
    tokenizer, store = prepare_inputs(config, RunInputs(config.data, config.tokenizer, root))
    folder = root / optimizer
    folder.mkdir()
    timers: list[BlockTimer] = []

    class TimedTrainer(KrillTrainer):
        def train(self, **rest: Any) -> Any:
            timers.append(BlockTimer(self))
            self.add_callback(timers[0])
            return super().train(**rest)

    vars(training)["KrillTrainer"] = TimedTrainer
    training.run_training(config, folder, store=store, tokenizer=tokenizer)
    (timer,) = timers
    ratios = timer.compute_ratios()
    waits = [line["data_wait"] for line in read_metrics(folder) if "data_wait" in line]
    return {
        "step_ms": {
            "krill": round(1000 * statistics.median(timer.krill[1:]) / BLOCK, 1),
            "plain": round(1000 * statistics.median(timer.plain[1:]) / BLOCK, 1),
        },
        "pairs": len(ratios),
        "ratio": round(statistics.median(ratios), 4),
        "quartiles": [round(value, 4) for value in statistics.quantiles(ratios, n=4)[::2]],
        "data_wait": statistics.median(waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama_nano")
    parser.add_argument("--sequence-len", type=int, default=512)
    parser.add_argument("--rows", type=int, default=2, help="per step")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        results = {name: measure(name, arguments, Path(temporary)) for name in arguments.optimizers}
    for name, figures in results.items():
        print(f"{name:<16}", *(f"{key} {value}" for key, value in figures.items()), sep="   ")
    result = {
        "question": "how much longer a step of krill-train takes than one of a plain PyTorch loop",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": read_versions("krill", "torch", "transformers", "accelerate"),
        "setting": {"model": arguments.model, "sequence_len": arguments.sequence_len, "rows": arguments.rows},
        "optimizers": results,
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
