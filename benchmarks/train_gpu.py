"""Question: how many tokens a second does krill train on a GPU, beside plain Trainer and a plain compiled loop?

For each model (187 million parameters, about 350 million, about 1 billion) and length of a row, each in a process of
its own, one after the other and all of that again in each round:

    krill             the command's own run: documents apart (varlen), Liger where it is installed, no full logits
    krill_compiled    the same with hardware.compile=true
    trainer           transformers.Trainer with its defaults, bf16, SDPA
    plain             a loop written by hand: torch.compile, bf16 autocast, causal SDPA, full logits

All learn the same packed rows with fused AdamW, fp32 weights and as many tokens an optimizer step; each in the
largest micro batch, a power of two, that fits. The last two attend across documents, which is more work than needed.

    tokens_per_second   padding not counted, after the first steps; median of the rounds
    mfu                 FLOPs that the model needs for these tokens over the device's peak, as krill-train counts both
    memory_gb           peak of the allocator

Prints a table and writes results/train_gpu.json; with another --result, that file.

    python benchmarks/train_gpu.py                                   (needs a CUDA device with 80 GB; an hour or two)
    python benchmarks/train_gpu.py --device cpu --tiny --result /tmp/train_gpu.json

Must hold on an H100: the better krill is 1.5 times trainer and more, 0.95 of plain and more; at 1 billion parameters
its mfu is 0.5 and more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from krill.cli.compose import compose_config
from krill.cli.train import prepare_inputs
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.data.inputs import RunInputs
from krill.data.order import row_at
from krill.models.build import build_model
from krill.training import run as training
from krill.training.compute.setup import resolve_compute_setup
from krill.training.metrics.throughput import build_throughput_meter, get_peak_memory
from krill.training.setup import RunSetup, build_run_setup
from krill.training.trainer import KrillTrainer

MODELS, LENGTHS = ("llama_small", "llama_350m", "llama_1b"), (2048, 8192)
WARM = 3
"""Steps before the clock starts: compilation, allocation."""
NO_ROOM = 3
"""Exit code of a contestant whose micro batch does not fit."""
LEARNING_RATE = 1e-4
PACKAGES = ("krill", "torch", "transformers", "accelerate", "liger-kernel")


# --- a contestant, in a process of its own -----------------------------------------------------------------


class Clock:
    """Seconds of the steps after the first WARM ones, until the device has done them."""

    def __init__(self, device: torch.device):
        self.device, self.began, self.seconds = device, 0.0, 0.0

    def ended(self, step: int, steps: int) -> None:
        if step in (WARM, steps):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.began, self.seconds = time.perf_counter(), time.perf_counter() - self.began


class Clocked(TrainerCallback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock.ended(state.global_step, state.max_steps)


class PackedRows(Dataset[dict[str, torch.Tensor]]):
    """The rows of a run in its order, without what tells the documents apart."""

    def __init__(self, setting: RunSetup):
        self.setting, self.size = setting, setting.length.steps * setting.batch_shape.rows_per_step

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        rows = self.setting.train_rows
        row = rows.get_row(row_at(self.setting.config.seed, *divmod(position, len(rows)), len(rows)))
        return {"input_ids": torch.from_numpy(row.input_ids), "labels": torch.from_numpy(row.labels)}


def krill(setting: RunSetup, clock: Clock) -> None:
    class Watched(KrillTrainer):
        def train(self, **rest: Any) -> Any:
            self.add_callback(Clocked(clock))
            return super().train(**rest)

    vars(training)["KrillTrainer"] = Watched
    training.run_training(setting.config, setting.folder, setting.store.folder, setting.tokenizer.folder)


def trainer(setting: RunSetup, clock: Clock) -> None:
    arguments = TrainingArguments(
        output_dir=str(setting.folder),
        max_steps=setting.length.steps,
        per_device_train_batch_size=setting.batch_shape.micro_batch_size,
        gradient_accumulation_steps=setting.batch_shape.accumulation_steps,
        learning_rate=LEARNING_RATE,
        bf16=setting.precision == "bf16",
        use_cpu=setting.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = _plain_model(setting)
    Trainer(model, arguments, train_dataset=PackedRows(setting), callbacks=[Clocked(clock)]).train()


def plain(setting: RunSetup, clock: Clock) -> None:
    device, steps, shape = setting.device, setting.length.steps, setting.batch_shape
    model = _plain_model(setting).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    compiled: Any = torch.compile(model, backend="inductor" if device.type == "cuda" else "eager")
    batches = iter(
        DataLoader(PackedRows(setting), shape.micro_batch_size, pin_memory=device.type == "cuda")
    )  # fmt: skip
    for step in range(1, steps + 1):
        for _ in range(shape.accumulation_steps):
            batch = {key: value.to(device, non_blocking=True) for key, value in next(batches).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
                loss = compiled(**batch).loss / shape.accumulation_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.ended(step, steps)


def _plain_model(setting: RunSetup) -> PreTrainedModel:
    tokenizer = setting.tokenizer
    torch.manual_seed(setting.config.seed)
    ids = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    return build_model(setting.config.model, tokenizer.vocab_size, *ids, attention="sdpa")


Contestant = Callable[[RunSetup, Clock], None]
CONTESTANTS: dict[str, tuple[Contestant, tuple[str, ...]]] = {
    "krill": (krill, ()),
    "krill_compiled": (krill, ("hardware.compile=true",)),
    "trainer": (trainer, ()),
    "plain": (plain, ()),
}


def configured(
    asked: argparse.Namespace, model: str, length: int, micro: int, more: tuple[str, ...] = ()
) -> TrainConfig:
    words = [
        f"model={model}", f"sequence_len={length}", f"hardware={'gpu' if asked.device == 'cuda' else 'cpu'}",
        "optimizer=adamw", f"lr={LEARNING_RATE}", f"steps={WARM + asked.steps}", f"batch.micro_batch_size={micro}",
        f"batch.tokens={asked.tokens}", "log_every=1000000", "eval_every=1000000", "save_every=1000000",
    ]  # fmt: skip
    return validate_config(TrainConfig, compose_config("train", [*words, *more, *asked.words]))


def compete(asked: argparse.Namespace) -> None:
    """One contestant's figures as the last line of standard output; exit code NO_ROOM: it does not fit."""
    work, more = CONTESTANTS[asked.contestant]
    config = configured(asked, asked.models[0], asked.lengths[0], asked.micro, more)
    tokenizer, store = prepare_inputs(
        config, RunInputs(config.data, config.tokenizer, Path(os.environ["KRILL_OUTPUTS"]))
    )
    with tempfile.TemporaryDirectory() as place:
        setting = build_run_setup(config, Path(place), store, tokenizer, resolve_compute_setup(config))
        clock, pace = Clock(setting.device), build_throughput_meter(setting)
        try:
            work(setting, clock)
        except torch.OutOfMemoryError:
            raise SystemExit(NO_ROOM) from None
    tokens = asked.steps * setting.tokens_per_step * (1 - setting.train_rows.padding_fraction)
    assert pace.flops_per_token is not None
    assert pace.peak_flops is not None
    found = {
        "micro_batch": setting.batch_shape.micro_batch_size,
        "step_ms": round(1000 * clock.seconds / asked.steps, 2),
        "tokens_per_second": round(tokens / clock.seconds, 1),
        "mfu": round(tokens * pace.flops_per_token / clock.seconds / pace.peak_flops, 4),
        "memory_gb": round(get_peak_memory(setting.device) / 1e9, 2),
    }
    print(json.dumps(found))


# --- all of them -------------------------------------------------------------------------------------------


def started(
    asked: argparse.Namespace, name: str, model: str, length: int, micro: int
) -> dict[str, Any] | None:
    """The figures of a contestant; None: the micro batch does not fit."""
    command = [
        sys.executable, __file__, *asked.words, "--contestant", name, "--models", model, "--lengths", str(length),
        "--micro", str(micro), "--device", asked.device, "--steps", str(asked.steps), "--tokens", str(asked.tokens),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == NO_ROOM:
        return None
    if done.returncode:
        raise SystemExit(f"{done.stderr[-3000:]}\n{name} of {model} has ended with {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measured(asked: argparse.Namespace, model: str, length: int) -> dict[str, Any]:
    """The medians of each contestant, in the largest micro batch that fits it."""
    names = [name for name in CONTESTANTS if asked.device == "cuda" or name != "krill_compiled"]
    micro = dict.fromkeys(names, asked.micro or 2 ** (asked.tokens // length).bit_length() // 2)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(asked.rounds):
        for name in names:
            while (figures := started(asked, name, model, length, micro[name])) is None:
                micro[name] //= 2
                if not micro[name]:
                    raise SystemExit(f"{name}: one row of {length} tokens does not fit with {model}")
            found[name].append(figures)
    result = {
        name: {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }
    best = max(result[name]["tokens_per_second"] for name in names if name.startswith("krill"))
    for other in ("trainer", "plain"):
        result[f"krill_to_{other}"] = round(best / result[other]["tokens_per_second"], 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--tiny", action="store_true", help="a model of a few thousand parameters, to try this script"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="that are timed in a round")
    parser.add_argument("--tokens", type=int, default=131_072, help="of an optimizer step")
    parser.add_argument("--micro", type=int, help="rows of a forward pass; default: what fits")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "train_gpu.json")
    parser.add_argument("words", nargs="*", help="keys of krill-train, for another text or tokenizer")
    asked = parser.parse_args()
    if asked.contestant:
        compete(asked)
        return
    if asked.tiny:
        asked.models, asked.lengths, asked.rounds, asked.steps, asked.tokens = ["llama_pico"], [64], 1, 2, 256
    asked.words = asked.words or ["tokenizer=bpe_32k", "tokenizer.min_frequency=1"]
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several devices plain Trainer would take all
    cuda = asked.device == "cuda"
    result: dict[str, Any] = {
        "question": "tokens per second in training, beside plain Trainer and a plain compiled loop",
        "date": date.today().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "processor": torch.cuda.get_device_name() if cuda else "cpu",
            "cores": os.cpu_count(),
        },
        "versions": {name: _version(name) for name in PACKAGES},
        "tokens_per_step": asked.tokens, "steps": asked.steps, "rounds": asked.rounds, "words": asked.words,
        "models": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        os.environ["KRILL_OUTPUTS"] = place
        for model in asked.models:
            for length in asked.lengths:
                found = measured(asked, model, length)
                result["models"].setdefault(model, {})[str(length)] = found
                asked.result.write_text(json.dumps(result, indent=2) + "\n")
                print(f"{model}, rows of {length}")
                for name, figures in found.items():
                    print(f"    {name:<16} {figures}", flush=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
