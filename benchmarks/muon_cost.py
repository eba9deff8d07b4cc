"""Question: what does a step of Muon cost, compared with other implementations and with its matrix products alone?

One layer of tiny_ko (seven matrices, hidden size 768, intermediate size 1920), the same gradients, one thread,
alternating, median of several rounds. The step is linear in layers, so the ratios hold for the whole model.

    krill             krill.optim.muon, with each preset's scale, in fp32 and in bf16
    torch             torch.optim.Muon, match_rms_adamw
    pto               pytorch_optimizer 4.1 Muon with foreach, and matrix by matrix
    floor             5·(4·m²·n + 2·m³) operations per matrix at the rate of a 1024³ product of the same dtype

The others iterate in bf16 only. Prints a table and writes results/muon_cost.json.

    python benchmarks/muon_cost.py          (3 minutes on one core)

Must hold: krill in bf16 ≤ 1.05 × the fastest other implementation and ≤ 1.25 × the floor.
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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from krill.optim.distributed import compute_newton_schulz_flops
from krill.optim.muon import Muon
from krill.runs.record import read_versions

SHAPES = [(768, 768), (256, 768), (256, 768), (768, 768), (1920, 768), (1920, 768), (768, 1920)]
STEPS = 5
"""Newton–Schulz iterations."""


def make_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in SHAPES]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    return parameters


def build_optimizers() -> dict[str, torch.optim.Optimizer]:
    from pytorch_optimizer import Muon as Upstream

    def krill(**options: Any) -> torch.optim.Optimizer:
        return Muon([{"params": make_parameters(), "kind": "muon", "lr": 1e-3, **options}])

    def pto(foreach: bool) -> torch.optim.Optimizer:
        group = {"params": make_parameters(), "lr": 1e-3, "use_muon": True, "use_adjusted_lr": True}
        return Upstream([group], foreach=foreach)

    return {
        "krill rms bf16": krill(scale="rms", ns_dtype="bf16"),
        "krill spectral bf16": krill(scale="spectral", ns_dtype="bf16"),
        "torch bf16": torch.optim.Muon(make_parameters(), lr=1e-3, adjust_lr_fn="match_rms_adamw"),
        "pto foreach bf16": pto(True),
        "pto loop bf16": pto(False),
        "krill rms fp32": krill(scale="rms", ns_dtype="fp32"),
        "adamw fused": torch.optim.AdamW(make_parameters(), lr=1e-3, fused=True),
        "adamw foreach": torch.optim.AdamW(make_parameters(), lr=1e-3, foreach=True),
    }


def measure_seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def make_product(matrix: Tensor) -> Callable[[], object]:
    return lambda: matrix @ matrix


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    steps = {name: optimizer.step for name, optimizer in build_optimizers().items()}
    products = {
        name: make_product(torch.randn(1024, 1024, dtype=dtype))
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    everything: dict[str, Callable[[], object]] = {**steps, **products}
    for step in everything.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in everything}
    for _ in range(rounds):
        for name, step in everything.items():
            times[name].append(measure_seconds(step))
    work = STEPS * sum(compute_newton_schulz_flops(*shape) for shape in SHAPES)
    floor = {name: [work / (2 * 1024**3) * value for value in times[name]] for name in products}

    def ratio(name: str, other: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(times[name], other, strict=True)), 3)

    others = [name for name in steps if name.endswith("bf16") and not name.startswith("krill")]
    fastest = min(others, key=lambda name: statistics.median(times[name]))
    ratios = {
        name: {fastest: ratio(name, times[fastest]), "floor": ratio(name, floor[dtype])}
        for name, dtype in (("krill rms bf16", "bf16"), ("krill spectral bf16", "bf16"), ("krill rms fp32", "fp32"))
    }  # fmt: skip
    medians = {
        name: round(1000 * statistics.median(values), 2) for name, values in times.items() if name in steps
    }
    medians |= {f"floor {name}": round(1000 * statistics.median(values), 2) for name, values in floor.items()}
    for name, value in medians.items():
        print(f"{name:<20} {value:>9.2f} ms   {ratios.get(name, '')}")
    result = {
        "question": "milliseconds of one optimizer step for one layer of tiny_ko, ratios within a round",
        "date": date.today().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "processor": "cpu",
            "cores": os.cpu_count(),
            "threads": 1,
        },
        "versions": read_versions("krill", "torch", "pytorch_optimizer"),
        "rounds": rounds,
        "milliseconds": medians,
        "ratios": ratios,
    }
    path = Path(__file__).parent / "results" / "muon_cost.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
