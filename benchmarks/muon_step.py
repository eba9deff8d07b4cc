"""Question: what does an optimizer step cost for a whole model, and what share of a training step is it?

For each model, built once, these optimizers step on the same gradients, one after the other (their states together do
not fit on a device), median of several rounds:

    adamw             krill's optimizer=adamw (fused)
    muon_*            krill's presets: its own, which adds NorMuon, and the published conventions
    polar_express, cautious, normuon    options of muon_moonlight
    torch             torch.optim.Muon on the hidden matrices, fused AdamW on the rest
    upstream          pytorch_optimizer 4.1 on the parameter groups of optimizer=muon_pto; left out if not installed

`share` is the step's part of the step together with the forward and backward passes of 262,144 tokens, which are
timed in rows of 2048 (bf16 autocast on CUDA). Prints a line per optimizer as it ends and writes
results/muon_step.json, or the file of --result, each time. An optimizer or a model that fails is recorded, and the
next one starts.

    python benchmarks/muon_step.py                                  (needs a CUDA device with 48 GB; 10 minutes)
    python benchmarks/muon_step.py --models llama_nano --device cpu --rounds 3 --tokens 4096 --result /tmp/a.json

Must hold on CUDA: muon_moonlight, muon_keller and muon_pto are faster than torch and upstream; every muon_* takes
less than 5 % of the step.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from upstream_muon import build_upstream_muon

from krill import atomic
from krill.cli.compose import compose_config
from krill.config.schema import MuonConfig, TrainConfig
from krill.config.validation import validate_config
from krill.errors import get_first_line
from krill.models.build import build_model
from krill.optim.build import build_optimizer
from krill.optim.groups import build_param_groups
from krill.runs.record import read_versions

VOCAB_SIZE, ROW = 32_000, 2048
VARIANTS = {
    "adamw": ("optimizer=adamw",),
    "muon_krill": ("optimizer=muon_krill",),
    "muon_moonlight": ("optimizer=muon_moonlight",),
    "muon_keller": ("optimizer=muon_keller",),
    "muon_pto": ("optimizer=muon_pto",),
    "polar_express": ("optimizer=muon_moonlight", "optimizer.ns_coefficients=polar_express"),
    "cautious": ("optimizer=muon_moonlight", "optimizer.cautious=true"),
    "normuon": ("optimizer=muon_moonlight", "optimizer.normuon=true"),
}


class TorchMuon:
    """torch.optim.Muon for the hidden matrices and AdamW for the rest."""

    def __init__(self, model: PreTrainedModel, config: TrainConfig):
        assert isinstance(config.optimizer, MuonConfig)
        groups = build_param_groups(model, config.optimizer)
        matrices = [p for group in groups if group["kind"] == "muon" for p in group["params"]]
        rest = [p for group in groups if group["kind"] == "adamw" for p in group["params"]]
        self.both = (
            torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=1e-3, fused=True),
        )

    def step(self) -> None:
        for optimizer in self.both:
            optimizer.step()


def build_config(*overrides: str) -> TrainConfig:
    return validate_config(TrainConfig, compose_config("train", list(overrides)))


def measure_seconds(work: Callable[[], object], device: str) -> float:
    """Returns the seconds of `work`, including the device's work."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(
    preset: str, device: str, rounds: int, tokens: int, write: Callable[[dict[str, Any]], None]
) -> None:
    """Times the passes of a model, then the step of each optimizer; hands all figures so far to `write` each time."""
    configs = {
        name: build_config(f"model={preset}", f"sequence_len={ROW}", *overrides)
        for name, overrides in VARIANTS.items()
    }
    torch.manual_seed(0)
    model = build_model(configs["adamw"].model, VOCAB_SIZE, bos_id=0, eos_id=1, pad_id=2).to(device)
    ids = torch.randint(VOCAB_SIZE, (1, ROW), device=device)

    def run_passes() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()

    run_passes()
    passes_seconds = (
        statistics.median(measure_seconds(run_passes, device) for _ in range(rounds)) * tokens / ROW
    )
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "passes_ms": round(1000 * passes_seconds, 2),
        "step_ms": {}, "share": {}, "failed": {},
    }  # fmt: skip
    print(f"{preset}: {figures['parameters']:,} parameters, passes {figures['passes_ms']:,} ms", flush=True)
    for name, build in list_optimizers(model, configs).items():
        try:
            seconds = measure_step_seconds(build(), device, rounds)
        except Exception as error:
            figures["failed"][name] = f"{type(error).__name__}: {get_first_line(error)}"
            print(f"    {name:<16} FAILED: {figures['failed'][name]}", flush=True)
        else:
            share = seconds / (seconds + passes_seconds)
            figures["step_ms"][name], figures["share"][name] = round(1000 * seconds, 3), round(share, 4)
            print(f"    {name:<16} {1000 * seconds:>10.3f} ms   {100 * share:6.2f} % of the step", flush=True)
        write(figures)


def list_optimizers(model: PreTrainedModel, configs: dict[str, TrainConfig]) -> dict[str, Callable[[], Any]]:
    """Returns a function that builds it for each optimizer: none is built before the state of the others is freed."""
    optimizers: dict[str, Callable[[], Any]] = {
        name: partial(build_optimizer, model, config.optimizer) for name, config in configs.items()
    }
    if find_spec("pytorch_optimizer"):
        pto = configs["muon_pto"].optimizer
        optimizers["upstream"] = lambda: build_upstream_muon(build_optimizer(model, pto).param_groups)
    optimizers["torch"] = partial(TorchMuon, model, configs["muon_moonlight"])
    return optimizers


def measure_step_seconds(optimizer: Any, device: str, rounds: int) -> float:
    optimizer.step()
    return statistics.median(measure_seconds(optimizer.step, device) for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["tiny_ko", "llama_1b"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=262_144, help="per training step")
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "muon_step.json")
    arguments = parser.parse_args()
    cuda = arguments.device == "cuda"
    result: dict[str, Any] = {
        "question": "milliseconds of one optimizer step, and its share of a training step",
        "date": date.today().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "processor": torch.cuda.get_device_name() if cuda else "cpu",
            "cores": os.cpu_count(),
        },
        "versions": read_versions("krill", "torch", "transformers", "pytorch_optimizer"),
        "tokens_per_step": arguments.tokens,
        "models": {},
    }
    for name in arguments.models:

        def write(figures: dict[str, Any], name: str = name) -> None:
            result["models"][name] = figures
            atomic.write_json(arguments.result, result)

        try:
            measure(name, arguments.device, arguments.rounds, arguments.tokens, write)
        except Exception as error:  # such as out of memory
            write({"failed": f"{type(error).__name__}: {get_first_line(error)}"})
            print(f"{name}: FAILED: {result['models'][name]['failed']}", flush=True)


if __name__ == "__main__":
    main()
