"""Question: how many tokens per second does krill train on a GPU, compared with plain Trainer and a compiled loop?

For one model and row length, each contestant runs in a process of its own, one after the other:

    krill_compiled    a run of krill-train with hardware.compile=true, which auto selects for long runs
    krill_eager       the same with hardware.compile=false: Liger's kernels if they are installed
    trainer           transformers.Trainer with its defaults, bf16, SDPA
    plain             a plain loop: torch.compile, bf16 autocast, causal SDPA, full logits
    krill_fp8         krill_compiled with hardware.precision=fp8; skipped where torchao or the GPU does not support it

All train on the same packed rows with fused AdamW, fp32 weights and the same tokens per optimizer step. The micro
batch is the largest power of two that fits by krill's estimate of the memory, and half of it if memory runs out after
all. The last two attend across documents, which is more work than needed. The clock runs after the first steps, and
stops before the last one, which krill logs, validates and saves; without --save the training ends with the clock.

    tokens_per_second   without padding; median of the rounds
    mfu                 the model's FLOPs for these tokens over the device's peak in bf16, both counted as krill-train
                        does
    memory_gb           peak of the allocator while the clock runs
    micro_batch         rows per forward pass in the end, which krill reduces when memory runs out

Prints a line per contestant as it ends and writes results/train_gpu.json, or the file of --result, each time: what
is measured is kept when the time is over, with the logs. A contestant that fails is recorded, and the next one
starts; on the CPU that is krill_compiled, which needs CUDA. --profile adds where the time of one more step goes
(gpu_profile.py); --smoke checks instead that krill computes the same on the GPU in each way (gpu_smoke.py).

    python benchmarks/train_gpu.py --smoke                                   (4 minutes; first contact with a GPU)
    python benchmarks/train_gpu.py --profile                                 (llama_350m in rows of 2048; 9 minutes)
    python benchmarks/train_gpu.py --model llama_1b                          (9 minutes; needs 80 GB)
    python benchmarks/train_gpu.py --model llama_small --length 8192         (9 minutes)
    python benchmarks/train_gpu.py --device cpu --tiny --result /tmp/train_gpu.json

Must hold on an H100 in rows of 2048: krill_compiled reaches 1.5 times trainer and 0.95 times plain, and an mfu of
0.22 (llama_small), 0.27 (llama_350m) and 0.38 (llama_1b). Counted bytes and FLOPs promise 0.25, 0.30 and 0.43; 0.5
would need a bf16 residual stream and a fused loss.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before torch is imported
    # Asking whether there is a GPU must not initialize CUDA in the process that forks.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as krill-train sets it
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # plain Trainer would use all devices

import gpu_smoke
import torch
from gpu_child import Outcome, Report, add_training_callback, find_start_method, run_in_child
from gpu_profile import format_profile, start_profiler, summarize_profile
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from krill import atomic
from krill.cli.compose import compose_config
from krill.cli.train import prepare_inputs
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.data.inputs import RunInputs
from krill.data.order import row_at
from krill.errors import UsageError
from krill.models.build import build_model
from krill.plan.memory import plan_memory
from krill.plan.run_plan import build_run_plan
from krill.plan.torch_device import describe_torch_device
from krill.runs.record import Record, read_json_object, read_status, read_versions
from krill.tokenizer.artifact import load_tokenizer
from krill.training import run as training
from krill.training.compute.device import resolve_precision
from krill.training.compute.setup import resolve_compute_setup
from krill.training.metrics.peak_flops import get_peak_flops
from krill.training.metrics.throughput import build_throughput_meter, get_peak_memory
from krill.training.oom_retry import MICRO_BATCH_KEY
from krill.training.setup import RunSetup, build_run_setup

WARMUP_STEPS = 3
"""Steps before the clock starts: compilation, allocation."""
MEMORY_SHARE = 0.8
"""Share of the device's memory that the plan may fill: its CUDA context and allocator are assumed."""
LEARNING_RATE = 1e-4
PACKAGES = ("krill", "torch", "transformers", "accelerate", "triton", "liger-kernel", "flash-attn-4")
RATIO_BARS = {"trainer": 1.5, "plain": 0.95}
MFU_BARS = {"llama_small": 0.22, "llama_350m": 0.27, "llama_1b": 0.38}
BAR_LENGTH = 2048


# --- one contestant, in its own process --------------------------------------------------------------------


class Finished(Exception):
    """Ends the training of a contestant when everything is measured."""


class Clock:
    """Measures the steps after the first WARMUP_STEPS, including the device's work, then profiles one more."""

    def __init__(self, setup: RunSetup, arguments: argparse.Namespace, report: Report):
        self.setup, self.arguments, self.report = setup, arguments, report
        self.started_at, self.profiler = 0.0, None

    def on_step_end(self, step: int) -> None:
        device, last = self.setup.device, WARMUP_STEPS + self.arguments.steps
        if step not in (WARMUP_STEPS, last, last + 1):
            return
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step == WARMUP_STEPS:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.started_at = time.perf_counter()
        elif step == last:
            self.report(self.collect_figures(time.perf_counter() - self.started_at))
            if self.arguments.profile:
                self.profiler = start_profiler(device.type)
        elif self.profiler:
            self.report({"profile": summarize_profile(self.profiler)})
        if step == last + self.arguments.profile and not self.arguments.save:
            raise Finished

    def collect_figures(self, seconds: float) -> dict[str, Any]:
        setup, steps, throughput = self.setup, self.arguments.steps, build_throughput_meter(self.setup)
        assert throughput.flops_per_token is not None
        tokens = steps * setup.tokens_per_step * (1 - setup.train_rows.padding_fraction)
        peak_flops = get_peak_flops(setup.device.type, setup.precision, torch.get_num_threads())
        planned = setup.batch_shape.micro_batch_size
        return {
            "micro_batch": (read_status(setup.folder) or {}).get(MICRO_BATCH_KEY, planned),
            "step_ms": round(1000 * seconds / steps, 2),
            "tokens_per_second": round(tokens / seconds, 1),
            "mfu": round(tokens * throughput.flops_per_token / seconds / peak_flops, 4),
            "memory_gb": round(get_peak_memory(setup.device) / 1e9, 2),
        }


class ClockCallback(TrainerCallback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock.on_step_end(state.global_step)


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
    add_training_callback(ClockCallback(clock))
    with Record(setup.folder).record_lifecycle(setup.config, "benchmark", []):
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
    device, shape = setup.device, setup.batch_shape
    model = _build_plain_model(setup).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    compiled: Any = torch.compile(model, backend="inductor" if device.type == "cuda" else "eager")
    batches = iter(
        DataLoader(PackedRows(setup), shape.micro_batch_size, pin_memory=device.type == "cuda")
    )  # fmt: skip
    for step in range(1, setup.length.steps + 1):
        for _ in range(shape.accumulation_steps):
            batch = {key: value.to(device, non_blocking=True) for key, value in next(batches).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=setup.precision == "bf16"):
                loss = compiled(**batch).loss / shape.accumulation_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.on_step_end(step)


def _build_plain_model(setup: RunSetup) -> PreTrainedModel:
    tokenizer = setup.tokenizer
    torch.manual_seed(setup.config.seed)
    ids = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    return build_model(setup.config.model, tokenizer.vocab_size, *ids, attention="sdpa")


Contestant = Callable[[RunSetup, Clock], None]
CONTESTANTS: dict[str, tuple[Contestant, tuple[str, ...]]] = {
    "krill_compiled": (run_krill, ("hardware.compile=true",)),
    "krill_eager": (run_krill, ("hardware.compile=false",)),
    "trainer": (run_trainer, ("hardware.compile=false", "hardware.loss=full")),
    "plain": (run_plain_loop, ("hardware.compile=false", "hardware.loss=full")),
    "krill_fp8": (run_krill, ("hardware.compile=true", "hardware.precision=fp8")),
}
"""The function that trains, and overrides: those of the plain ones are for the estimate of their memory."""


def build_config(arguments: argparse.Namespace, micro_batch_size: int, *extra_overrides: str) -> TrainConfig:
    overrides = [
        f"model={arguments.model}", f"sequence_len={arguments.length}",
        f"hardware={'gpu' if arguments.device == 'cuda' else 'cpu'}", "optimizer=adamw", f"lr={LEARNING_RATE}",
        f"steps={WARMUP_STEPS + arguments.steps + arguments.profile + 1}", f"batch.tokens={arguments.tokens}",
        f"batch.micro_batch_size={micro_batch_size}", "log_every=1000000", "eval_every=1000000",
        "save_every=1000000", "eval_tokens=100000",
    ]  # fmt: skip
    return validate_config(
        TrainConfig, compose_config("train", [*overrides, *extra_overrides, *arguments.overrides])
    )


def run_contestant(
    report: Report, arguments: argparse.Namespace, name: str, micro_batch_size: int | None
) -> None:
    """Trains as one contestant. `micro_batch_size`: None for the largest that should fit."""
    run, extra_overrides = CONTESTANTS[name]
    config = build_config(arguments, micro_batch_size or 1, *extra_overrides)
    try:
        resolve_precision(config.hardware.precision, arguments.device)
    except UsageError as error:
        report({"skipped": str(error)})
        return
    inputs = RunInputs(config.data, config.tokenizer, Path(os.environ["KRILL_OUTPUTS"]))
    tokenizer, store = prepare_inputs(config, inputs)
    if micro_batch_size is None:
        micro_batch_size = estimate_micro_batch_size(config, load_tokenizer(tokenizer).vocab_size)
        config = build_config(arguments, micro_batch_size, *extra_overrides)
    report({"micro_batch": micro_batch_size})
    with tempfile.TemporaryDirectory() as temporary:
        setup = build_run_setup(config, Path(temporary), store, tokenizer, resolve_compute_setup(config))
        try:
            run(setup, Clock(setup, arguments, report))
        except Finished:
            return


def estimate_micro_batch_size(config: TrainConfig, vocab_size: int) -> int:
    """Returns the largest power of two, at most the rows of a step, that should fit."""
    assert config.batch.fixed_tokens
    plan = build_run_plan(config, vocab_size, describe_torch_device(config))
    available = MEMORY_SHARE * plan.setting.memory_per_rank
    size = 2 ** ((config.batch.fixed_tokens // config.sequence_len).bit_length() - 1)
    while size > 1 and plan_memory(config, plan.architecture, plan.setting, size).total > available:
        size //= 2
    return int(size)


# --- all contestants ---------------------------------------------------------------------------------------


def measure(
    arguments: argparse.Namespace, start_method: str, write: Callable[[dict[str, Any]], None]
) -> None:
    """Runs all contestants, and hands the figures so far to `write` whenever there are new ones."""
    ends_at = time.monotonic() + 60 * arguments.minutes
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.contestants}
    failures: dict[str, dict[str, Any]] = {}
    queue = [name for _ in range(arguments.rounds) for name in arguments.contestants]
    for position, name in enumerate(queue):
        if name in failures:
            continue
        left = ends_at - time.monotonic()
        seconds = (
            left if position == len(queue) - 1 else left / 2
        )  # one that hangs leaves time for the others

        def on_report(values: dict[str, Any], name: str = name) -> None:
            if "tokens_per_second" in values:
                write(summarize(arguments, {**rounds, name: [*rounds[name], values]}, failures))

        outcome = run_until_it_fits(arguments, name, seconds, on_report, start_method)
        if "tokens_per_second" in outcome.values:
            rounds[name].append(outcome.values | outcome.describe_end())
        if outcome.error:
            failures[name] = outcome.describe_end()
        elif "skipped" in outcome.values:
            failures[name] = {"skipped": outcome.values["skipped"]}
        write(summarize(arguments, rounds, failures))
        print_contestant(name, outcome)


def run_until_it_fits(
    arguments: argparse.Namespace,
    name: str,
    seconds: float,
    on_report: Callable[[dict[str, Any]], None],
    start_method: str,
) -> Outcome:
    """Runs a contestant, again with half of the micro batch as long as memory runs out."""
    ends_at, size = time.monotonic() + seconds, arguments.micro_batch_size
    while True:
        if (left := ends_at - time.monotonic()) <= 0:
            return Outcome(error="not started: the time is over")
        outcome = run_in_child(
            run_contestant, arguments, name, size,
            seconds=left, on_report=on_report, start_method=start_method,
        )  # fmt: skip
        size = outcome.values.get("micro_batch", 1) // 2
        if not (outcome.is_out_of_memory and size):
            return outcome
        print(f"    {name:<16} out of memory with {2 * size} rows, again with {size}", flush=True)


def summarize(
    arguments: argparse.Namespace,
    rounds: dict[str, list[dict[str, Any]]],
    failures: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Returns the median figures of each contestant, how krill compares with the others, and the bars."""
    result: dict[str, Any] = {}
    for name, figures in rounds.items():
        if figures:
            result[name] = {
                key: statistics.median(values[key] for values in figures)
                for key, value in figures[0].items()
                if isinstance(value, (int, float))
            } | {key: value for key, value in figures[-1].items() if key in ("profile", "log")}
        if name in failures:
            result[name] = result.get(name, {}) | failures[name]
    speeds = {name: result.get(name, {}).get("tokens_per_second") for name in CONTESTANTS}
    bars, krill = {}, speeds["krill_compiled"]
    for other, bar in RATIO_BARS.items():
        if krill and speeds[other]:
            bars[f"krill_compiled / {other}"] = {"bar": bar, "measured": round(krill / speeds[other], 3)}
    if krill and arguments.model in MFU_BARS and arguments.length == BAR_LENGTH:
        bars["mfu"] = {"bar": MFU_BARS[arguments.model], "measured": result["krill_compiled"]["mfu"]}
    return {"contestants": result, "bars": bars}


def print_contestant(name: str, outcome: Outcome) -> None:
    figures = "  ".join(f"{key} {value}" for key, value in outcome.values.items() if key != "profile")
    failure = f"FAILED: {outcome.error}" if outcome.error else ""
    print(f"    {name:<16} {figures}  {failure}".rstrip(), flush=True)
    for line in format_profile(outcome.values["profile"]) if "profile" in outcome.values else []:
        print(f"        {line}", flush=True)


def run_benchmark(arguments: argparse.Namespace) -> None:
    start_method, hardware = find_start_method(arguments.device)
    run = {
        "date": date.today().isoformat(), "hardware": hardware, "versions": read_versions(*PACKAGES),
        "tokens_per_step": arguments.tokens, "steps": arguments.steps, "rounds": arguments.rounds,
        "overrides": arguments.overrides,
    }  # fmt: skip
    question = "tokens per second in training, compared with plain Trainer and a plain compiled loop"
    runs = read_json_object(arguments.result).get("runs", {})
    name = f"{arguments.model}, rows of {arguments.length}"
    print(f"{name}: {json.dumps(hardware)} {json.dumps(run['versions'])}", flush=True)

    def write(summary: dict[str, Any]) -> None:
        atomic.write_json(arguments.result, {"question": question, "runs": runs | {name: run | summary}})

    write({"contestants": {}, "bars": {}})
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["KRILL_OUTPUTS"] = temporary
        measure(arguments, start_method, write)
    for what, values in read_json_object(arguments.result)["runs"][name]["bars"].items():
        verdict = "holds" if values["measured"] >= values["bar"] else "MISSED"
        print(f"    {what:<28} {values['measured']:<8} at least {values['bar']}: {verdict}")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--smoke", action="store_true", help="check that everything runs and computes the same"
    )
    parser.add_argument("--model", default="llama_350m")
    parser.add_argument("--length", type=int, default=2048, help="tokens per row")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--tiny", action="store_true", help="use a model with a few thousand parameters, to test this script"
    )
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12, help="timed steps per round")
    parser.add_argument("--tokens", type=int, default=131_072, help="per optimizer step")
    parser.add_argument(
        "--micro-batch-size", type=int, help="rows per forward pass; default: the largest that should fit"
    )
    parser.add_argument("--minutes", type=float, help="time limit; default: 9, or 4 for --smoke")
    parser.add_argument("--profile", action="store_true", help="also write where the time of a step goes")
    parser.add_argument("--save", action="store_true", help="also validate and save, after the clock")
    parser.add_argument("--result", type=Path, help="default: results/train_gpu.json or gpu_smoke.json")
    parser.add_argument(
        "overrides", nargs="*", help="overrides of krill-train, for another text or tokenizer"
    )
    arguments = parser.parse_intermixed_args(argv)
    name = "gpu_smoke" if arguments.smoke else "train_gpu"
    arguments.result = arguments.result or Path(__file__).parent / "results" / f"{name}.json"
    arguments.minutes = arguments.minutes or (4 if arguments.smoke else 9)
    if not arguments.smoke:
        arguments.overrides = arguments.overrides or ["tokenizer=bpe_32k", "tokenizer.min_frequency=1"]
    if arguments.tiny:
        arguments.model, arguments.length, arguments.steps, arguments.tokens = "llama_pico", 64, 2, 256
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    if arguments.smoke:
        return gpu_smoke.run_smoke(arguments)
    run_benchmark(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
