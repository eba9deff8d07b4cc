"""Question: how many tokens per second does krill train on a GPU, compared with plain Trainer and a compiled loop?

For each model (187 million, about 350 million and about 1 billion parameters) and row length, each contestant runs in
its own process, one after the other, in several rounds:

    krill             a run of krill-train: isolated documents (varlen), Liger if installed, no full logits
    krill_compiled    the same with hardware.compile=true
    trainer           transformers.Trainer with its defaults, bf16, SDPA
    plain             a plain loop: torch.compile, bf16 autocast, causal SDPA, full logits

All train on the same packed rows with fused AdamW, fp32 weights and the same tokens per optimizer step, each with the
largest micro batch (a power of two) that fits. The last two attend across documents, which is more work than needed.

    tokens_per_second   without padding, after the first steps; median of the rounds
    mfu                 the model's FLOPs for these tokens over the device's peak, both counted as krill-train does
    memory_gb           peak of the allocator

Prints a table and writes results/train_gpu.json, or the file of --result.

    python benchmarks/train_gpu.py                                   (needs a CUDA device with 80 GB; an hour or two)
    python benchmarks/train_gpu.py --device cpu --tiny --result /tmp/train_gpu.json

Must hold on an H100: the better krill reaches at least 1.5 times trainer and 0.95 times plain; with 1 billion
parameters its mfu is at least 0.5.
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
from krill.runs.record import read_versions
from krill.training import run as training
from krill.training.compute.setup import resolve_compute_setup
from krill.training.metrics.peak_flops import get_peak_flops
from krill.training.metrics.throughput import build_throughput_meter, get_peak_memory
from krill.training.setup import RunSetup, build_run_setup
from krill.training.trainer import KrillTrainer

MODELS, LENGTHS = ("llama_small", "llama_350m", "llama_1b"), (2048, 8192)
WARMUP_STEPS = 3
"""Steps before the clock starts: compilation, allocation."""
OUT_OF_MEMORY_CODE = 3
"""Exit code of a contestant whose micro batch does not fit."""
LEARNING_RATE = 1e-4
PACKAGES = ("krill", "torch", "transformers", "accelerate", "liger-kernel")


# --- one contestant, in its own process --------------------------------------------------------------------


class Clock:
    """Measures the seconds of the steps after the first WARMUP_STEPS, including the device's work."""

    def __init__(self, device: torch.device):
        self.device, self.began, self.seconds = device, 0.0, 0.0

    def on_step_end(self, step: int, steps: int) -> None:
        if step in (WARMUP_STEPS, steps):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.began, self.seconds = time.perf_counter(), time.perf_counter() - self.began


class ClockCallback(TrainerCallback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock.on_step_end(state.global_step, state.max_steps)


class PackedRows(Dataset[dict[str, torch.Tensor]]):
    """The rows of a run in its order, without document boundaries."""

    def __init__(self, setup: RunSetup):
        self.setup, self.size = setup, setup.length.steps * setup.batch_shape.rows_per_step

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        rows = self.setup.train_rows
        row = rows.get_row(row_at(self.setup.config.seed, *divmod(position, len(rows)), len(rows)))
        return {"input_ids": torch.from_numpy(row.input_ids), "labels": torch.from_numpy(row.labels)}


def run_krill(setup: RunSetup, clock: Clock) -> None:
    class ClockedTrainer(KrillTrainer):
        def train(self, **rest: Any) -> Any:
            self.add_callback(ClockCallback(clock))
            return super().train(**rest)

    vars(training)["KrillTrainer"] = ClockedTrainer
    training.run_training(setup.config, setup.folder, setup.store.folder, setup.tokenizer.folder)


def run_trainer(setup: RunSetup, clock: Clock) -> None:
    arguments = TrainingArguments(
        output_dir=str(setup.folder),
        max_steps=setup.length.steps,
        per_device_train_batch_size=setup.batch_shape.micro_batch_size,
        gradient_accumulation_steps=setup.batch_shape.accumulation_steps,
        learning_rate=LEARNING_RATE,
        bf16=setup.precision == "bf16",
        use_cpu=setup.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = _build_plain_model(setup)
    Trainer(model, arguments, train_dataset=PackedRows(setup), callbacks=[ClockCallback(clock)]).train()


def run_plain_loop(setup: RunSetup, clock: Clock) -> None:
    device, steps, shape = setup.device, setup.length.steps, setup.batch_shape
    model = _build_plain_model(setup).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    compiled: Any = torch.compile(model, backend="inductor" if device.type == "cuda" else "eager")
    batches = iter(
        DataLoader(PackedRows(setup), shape.micro_batch_size, pin_memory=device.type == "cuda")
    )  # fmt: skip
    for step in range(1, steps + 1):
        for _ in range(shape.accumulation_steps):
            batch = {key: value.to(device, non_blocking=True) for key, value in next(batches).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=setup.precision == "bf16"):
                loss = compiled(**batch).loss / shape.accumulation_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.on_step_end(step, steps)


def _build_plain_model(setup: RunSetup) -> PreTrainedModel:
    tokenizer = setup.tokenizer
    torch.manual_seed(setup.config.seed)
    ids = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    return build_model(setup.config.model, tokenizer.vocab_size, *ids, attention="sdpa")


Contestant = Callable[[RunSetup, Clock], None]
CONTESTANTS: dict[str, tuple[Contestant, tuple[str, ...]]] = {
    "krill": (run_krill, ()),
    "krill_compiled": (run_krill, ("hardware.compile=true",)),
    "trainer": (run_trainer, ()),
    "plain": (run_plain_loop, ()),
}


def build_config(
    arguments: argparse.Namespace,
    model: str,
    length: int,
    micro_batch_size: int,
    extra_overrides: tuple[str, ...] = (),
) -> TrainConfig:
    overrides = [
        f"model={model}", f"sequence_len={length}", f"hardware={'gpu' if arguments.device == 'cuda' else 'cpu'}",
        "optimizer=adamw", f"lr={LEARNING_RATE}", f"steps={WARMUP_STEPS + arguments.steps}",
        f"batch.micro_batch_size={micro_batch_size}",
        f"batch.tokens={arguments.tokens}", "log_every=1000000", "eval_every=1000000", "save_every=1000000",
    ]  # fmt: skip
    return validate_config(
        TrainConfig, compose_config("train", [*overrides, *extra_overrides, *arguments.overrides])
    )


def run_contestant(arguments: argparse.Namespace) -> None:
    """Prints a contestant's figures as the last line; exits with OUT_OF_MEMORY_CODE if it does not fit."""
    run, extra_overrides = CONTESTANTS[arguments.contestant]
    config = build_config(
        arguments, arguments.models[0], arguments.lengths[0], arguments.micro_batch_size, extra_overrides
    )
    tokenizer, store = prepare_inputs(
        config, RunInputs(config.data, config.tokenizer, Path(os.environ["KRILL_OUTPUTS"]))
    )
    with tempfile.TemporaryDirectory() as temporary:
        setup = build_run_setup(config, Path(temporary), store, tokenizer, resolve_compute_setup(config))
        clock, throughput = Clock(setup.device), build_throughput_meter(setup)
        try:
            run(setup, clock)
        except torch.OutOfMemoryError:
            raise SystemExit(OUT_OF_MEMORY_CODE) from None
    tokens = arguments.steps * setup.tokens_per_step * (1 - setup.train_rows.padding_fraction)
    assert throughput.flops_per_token is not None
    peak_flops = get_peak_flops(setup.device.type, setup.precision, torch.get_num_threads())
    figures = {
        "micro_batch": setup.batch_shape.micro_batch_size,
        "step_ms": round(1000 * clock.seconds / arguments.steps, 2),
        "tokens_per_second": round(tokens / clock.seconds, 1),
        "mfu": round(tokens * throughput.flops_per_token / clock.seconds / peak_flops, 4),
        "memory_gb": round(get_peak_memory(setup.device) / 1e9, 2),
    }
    print(json.dumps(figures))


# --- all contestants ---------------------------------------------------------------------------------------


def start_contestant(
    arguments: argparse.Namespace, name: str, model: str, length: int, micro_batch_size: int
) -> dict[str, Any] | None:
    """Runs a contestant; returns its figures, or None if the micro batch does not fit."""
    command = [
        sys.executable, __file__, *arguments.overrides, "--contestant", name, "--models", model,
        "--lengths", str(length), "--micro-batch-size", str(micro_batch_size), "--device", arguments.device,
        "--steps", str(arguments.steps), "--tokens", str(arguments.tokens),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == OUT_OF_MEMORY_CODE:
        return None
    if done.returncode:
        raise SystemExit(f"{done.stderr[-3000:]}\n{name} of {model} ended with {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(arguments: argparse.Namespace, model: str, length: int) -> dict[str, Any]:
    """Returns the median figures of each contestant with the largest micro batch that fits."""
    names = [name for name in CONTESTANTS if arguments.device == "cuda" or name != "krill_compiled"]
    first_size = arguments.micro_batch_size or 2 ** (arguments.tokens // length).bit_length() // 2
    sizes = dict.fromkeys(names, first_size)
    figures_by_name: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            while (figures := start_contestant(arguments, name, model, length, sizes[name])) is None:
                sizes[name] //= 2
                if not sizes[name]:
                    raise SystemExit(f"{name}: one row of {length} tokens does not fit with {model}")
            figures_by_name[name].append(figures)
    result = {
        name: {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
        for name, rounds in figures_by_name.items()
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
        "--tiny", action="store_true", help="use a model with a few thousand parameters, to test this script"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed steps per round")
    parser.add_argument("--tokens", type=int, default=131_072, help="per optimizer step")
    parser.add_argument(
        "--micro-batch-size", type=int, help="rows per forward pass; default: the largest that fits"
    )
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "train_gpu.json")
    parser.add_argument(
        "overrides", nargs="*", help="overrides of krill-train, for another text or tokenizer"
    )
    arguments = parser.parse_args()
    if arguments.contestant:
        run_contestant(arguments)
        return
    if arguments.tiny:
        arguments.models, arguments.lengths = ["llama_pico"], [64]
        arguments.rounds, arguments.steps, arguments.tokens = 1, 2, 256
    arguments.overrides = arguments.overrides or ["tokenizer=bpe_32k", "tokenizer.min_frequency=1"]
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # plain Trainer would use all devices
    cuda = arguments.device == "cuda"
    result: dict[str, Any] = {
        "question": "tokens per second in training, compared with plain Trainer and a plain compiled loop",
        "date": date.today().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "processor": torch.cuda.get_device_name() if cuda else "cpu",
            "cores": os.cpu_count(),
        },
        "versions": read_versions(*PACKAGES),
        "tokens_per_step": arguments.tokens, "steps": arguments.steps, "rounds": arguments.rounds,
        "words": arguments.overrides, "models": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["KRILL_OUTPUTS"] = temporary
        for model in arguments.models:
            for length in arguments.lengths:
                figures_by_name = measure(arguments, model, length)
                result["models"].setdefault(model, {})[str(length)] = figures_by_name
                arguments.result.write_text(json.dumps(result, indent=2) + "\n")
                print(f"{model}, rows of {length}")
                for name, figures in figures_by_name.items():
                    print(f"    {name:<16} {figures}", flush=True)


if __name__ == "__main__":
    main()
