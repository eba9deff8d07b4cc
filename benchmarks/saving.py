"""Question: how long does a training wait for a checkpoint, saved at once and in the background?

One real run of a Llama of 63 million parameters with AdamW (760 MB a checkpoint) in blocks of steps, which begin in
turn with nothing, with a save at once and with one in the background (save_in_background=true). A block ends when its
checkpoint is in its place, so that nothing of it is left to the next. Of each kind of save:

    wait        seconds in which no step was taken, median
    cost        seconds by which its block took longer than the block before that saved nothing, median: the wait, and
                what the thread takes from the steps beside it
    of_once     median of the pairs of a round

Prints a table and writes results/saving.json; with another --result, that file. --folder: on the disk to be measured.

    python benchmarks/saving.py          (3 minutes on two cores, one of them for the steps)

Must hold: the background's wait is ≤ 0.5 of that of a save at once, and its cost is not higher.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from krill.cli.compose import compose_config
from krill.cli.train import prepare_inputs
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.data.inputs import RunInputs
from krill.training import run as training
from krill.training.trainer import KrillTrainer

KINDS = ("nothing", "once", "background")
LIMIT = 0.5
watched: list[Blocks] = []


class Blocks(TrainerCallback):
    """Begins and ends the blocks of the run that it is a part of; the first of each kind does not count."""

    def __init__(self, trainer: KrillTrainer, steps: int):
        self.trainer, self.steps = trainer, steps
        self.took: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.waited: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.kind, self.began, self.wait, self.waits = "", 0.0, 0.0, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        number, rest = divmod(state.global_step, self.steps)
        if rest:
            return
        if self.kind:
            with self.waiting():
                self.trainer.async_saver.finalize()
            self.took[self.kind].append(time.perf_counter() - self.began)
            self.waited[self.kind].append(self.wait)
        self.kind = KINDS[(number - 1) % len(KINDS)]
        later = self.kind == "background"
        self.trainer.config = self.trainer.config.model_copy(update={"save_in_background": later})
        control.should_save = self.kind != "nothing"
        self.began, self.wait = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        if self.waits:
            yield
            return
        began, self.waits = time.perf_counter(), True
        yield
        self.wait, self.waits = self.wait + time.perf_counter() - began, False


class Watched(KrillTrainer):
    """Tells its blocks where it waits for a checkpoint."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        watched.append(Blocks(self, self.args.logging_steps))
        self.add_callback(watched[0])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with watched[0].waiting():
            super()._save_checkpoint(model, trial)

    def run_save_hooks(self, step: int) -> None:
        with watched[0].waiting():
            super().saved(step)


def run(asked: argparse.Namespace, root: Path) -> tuple[Blocks, float]:
    """The blocks of a run, and the MB of a checkpoint."""
    steps = ((asked.rounds + 1) * len(KINDS) + 1) * asked.steps
    words = [
        "model=llama_small", f"model.num_hidden_layers={asked.layers}", "optimizer=adamw", "sequence_len=64",
        "batch.micro_batch_size=1", f"steps={steps}", f"log_every={asked.steps}", "device=cpu", "hardware.threads=1",
        "eval_every=1000000", "save_every=1000000", "keep_checkpoints=1", "keep_best=false",
        "data.validation_fraction=0.001",
    ]  # fmt: skip
    config = validate_config(TrainConfig, compose_config("train", words))
    tokenizer, store = prepare_inputs(config, RunInputs(config.data, config.tokenizer, root))
    folder = root / "run"
    folder.mkdir()
    vars(training)["KrillTrainer"] = Watched
    training.run_training(config, folder, store=store, tokenizer=tokenizer)
    files = (folder / "checkpoints").rglob("*")
    return watched[0], sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def median(values: Any) -> float:
    return round(statistics.median(values), 3)


def figures(blocks: Blocks) -> dict[str, dict[str, float]]:
    waits = {kind: blocks.waited[kind][1:] for kind in KINDS[1:]}
    costs = {
        kind: [took - plain for took, plain in zip(blocks.took[kind], blocks.took["nothing"], strict=True)][
            1:
        ]
        for kind in KINDS[1:]
    }
    return {
        kind: {
            "wait_s": median(waits[kind]),
            "wait_of_once": median(a / b for a, b in zip(waits[kind], waits["once"], strict=True)),
            "cost_s": median(costs[kind]),
            "cost_of_once": median(a / b for a, b in zip(costs[kind], costs["once"], strict=True)),
        }
        for kind in KINDS[1:]
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--steps", type=int, default=8, help="of a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints are written; default: the temporary one"
    )
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "saving.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        blocks, size = run(asked, Path(place))
    found = figures(blocks)
    for kind, values in found.items():
        print(f"{kind:<12}", *(f"{key} {value}" for key, value in values.items()), sep="   ")
    step = median(took / asked.steps for took in blocks.took["nothing"][1:])
    print(f"a step without a save {step} s, a checkpoint {size:.0f} MB")
    later, once = found["background"], found["once"]
    result = {
        "question": "how long a training waits for a checkpoint, saved at once and in the background",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": {name: version(name) for name in ("krill", "torch", "transformers", "safetensors")},
        "layers": asked.layers, "checkpoint_mb": round(size, 1), "steps": asked.steps, "rounds": asked.rounds,
        "step_s": step,
        "saves": found,
        "holds": {"wait": later["wait_of_once"] <= LIMIT, "cost": later["cost_s"] <= once["cost_s"]},
    }  # fmt: skip
    asked.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
