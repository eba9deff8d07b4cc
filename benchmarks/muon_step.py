"""Question: what does an optimizer step cost for a whole model, and what share of a training step is it?

For each model, built once, these optimizers step on the same gradients, one after the other (their states together do
not fit on a device), median of several rounds:

    adamw             krill's optimizer=adamw (fused)
    muon_*            krill's presets, and options of muon_moonlight
    torch             torch.optim.Muon on the hidden matrices, fused AdamW on the rest
    upstream          pytorch_optimizer 4.1 on the parameter groups of optimizer=muon_pto; left out if not installed

`share` is the step's part of the step together with the forward and backward passes of 262,144 tokens, which are
timed in rows of 2048 (bf16 autocast on CUDA). Prints a table and writes results/muon_step.json, or the file of
--result, after each model.

    python benchmarks/muon_step.py                                  (needs a CUDA device with 48 GB; 10 minutes)
    python benchmarks/muon_step.py --models llama_nano --device cpu --rounds 3 --tokens 4096 --result /tmp/a.json

Must hold on CUDA: every muon_* is the fastest Muon, and < 5 % of the step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from upstream_muon import build_upstream_muon

from krill.cli.compose import compose_config
from krill.config.schema import MuonConfig, TrainConfig
from krill.config.validation import validate_config
from krill.models.build import build_model
from krill.optim.build import build_optimizer
from krill.optim.groups import build_param_groups
from krill.runs.record import read_versions

VOCAB_SIZE, ROW = 32_000, 2048
VARIANTS = {
    "adamw": ("optimizer=adamw",),
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


def measure(preset: str, device: str, rounds: int, tokens: int) -> dict[str, Any]:
    """Returns the number of parameters and the milliseconds of the passes and of each optimizer's step."""
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
    steps = {
        name: measure_step_seconds(build_optimizer(model, config.optimizer), device, rounds)
        for name, config in configs.items()
    }
    if find_spec("pytorch_optimizer"):
        groups = build_optimizer(model, configs["muon_pto"].optimizer).param_groups
        steps["upstream"] = measure_step_seconds(build_upstream_muon(groups), device, rounds)
    steps["torch"] = measure_step_seconds(TorchMuon(model, configs["muon_moonlight"]), device, rounds)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "passes_ms": round(1000 * passes_seconds, 2),
        "step_ms": {name: round(1000 * value, 3) for name, value in steps.items()},
        "share": {name: round(value / (value + passes_seconds), 4) for name, value in steps.items()},
    }


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
        figures = measure(name, arguments.device, arguments.rounds, arguments.tokens)
        result["models"][name] = figures
        arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {figures['parameters']:,} parameters, passes {figures['passes_ms']:,} ms")
        for optimizer, value in figures["step_ms"].items():
            share = 100 * figures["share"][optimizer]
            print(f"    {optimizer:<16} {value:>10.3f} ms   {share:6.2f} % of the step", flush=True)


if __name__ == "__main__":
    main()
