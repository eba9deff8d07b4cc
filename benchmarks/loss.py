"""Question: how much memory and time does the loss take, forward and backward, in chunks and with full logits?

4096 tokens, hidden size 256, vocabulary 32,000, fp32; the memory of each variant is measured in its own process:

    full        logits of all tokens, then torch's cross-entropy, as in transformers' models
    chunked     krill.training.compute.cross_entropy
    torch       torch.nn.functional.linear_cross_entropy in chunks, if this torch has it
    liger       Liger's fused linear cross-entropy (CUDA)

Memory is the peak above the inputs and the weight: of the process on the CPU (Linux), of the allocator on CUDA.
Times are measured in one process, one variant after the other in each round; CPU seconds of one thread, or seconds on
CUDA. Prints a table and writes results/loss.json, or the file of --result.

    python benchmarks/loss.py          (2 minutes on one core)

Must hold: chunked takes at most 0.25 of the memory of full, and no more time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from krill.runs.record import read_versions
from krill.tables import format_table
from krill.training.compute.backends import has_liger
from krill.training.compute.cross_entropy import chunked_cross_entropy
from krill.training.compute.head_loss import liger_cross_entropy

TOKENS, HIDDEN, VOCAB_SIZE = 4096, 256, 32_000
LIMIT = 0.25


def full_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def torch_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)


def get_variants(device: str) -> dict[str, Callable[..., Tensor]]:
    variants: dict[str, Callable[..., Tensor]] = {
        "full": full_cross_entropy,
        "chunked": chunked_cross_entropy,
    }
    if hasattr(F, "linear_cross_entropy"):
        variants["torch"] = torch_cross_entropy
    if device == "cuda" and has_liger():
        variants["liger"] = liger_cross_entropy
    return variants


def make_inputs(
    device: str, tokens: int = TOKENS, width: int = HIDDEN, vocab_size: int = VOCAB_SIZE
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocab_size, width, generator=generator).mul_(0.02)
    labels = torch.randint(vocab_size, (tokens,), generator=generator)
    return hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), labels.to(device)


def run_passes(
    loss_function: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[float, float]:
    """Runs forward and backward; returns the loss per token and the norm of the weight's gradient."""
    hidden, weight, labels = inputs
    hidden.grad = weight.grad = None
    loss = loss_function(hidden, weight, labels) / len(labels)
    loss.backward()
    assert weight.grad is not None
    return loss.item(), weight.grad.norm().item()


def _memory(field: str) -> int:
    """Returns the bytes of this process: VmRSS is the current memory, VmHWM the peak."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


def measure_peak(name: str, device: str) -> float:
    """Returns the peak memory in MB above the memory before; must run in a fresh process."""
    torch.set_num_threads(1)
    inputs, loss_function = make_inputs(device), get_variants(device)[name]
    run_passes(loss_function, make_inputs(device, 8, 16, 32))  # libraries load their code
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run_passes(loss_function, inputs)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _memory("VmRSS")
    run_passes(loss_function, inputs)
    return (_memory("VmHWM") - before) / 1e6


def measure_seconds(device: str, rounds: int) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    inputs, seconds = make_inputs(device), {name: list[float]() for name in get_variants(device)}
    expected = run_passes(full_cross_entropy, inputs)
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(rounds):
        for name, loss_function in get_variants(device).items():
            began = clock()
            values = run_passes(loss_function, inputs)  # reads a number, so the device is done
            seconds[name].append(clock() - began)
            for actual, reference in zip(values, expected, strict=True):
                assert abs(actual - reference) <= 1e-4 * reference, name
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "loss.json")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")

    def run_in_process(work: Callable[..., Any]) -> Any:
        with context.Pool(1) as pool:
            return pool.apply(work)

    # glibc would reuse freed memory and hide the next allocation of that size, so each gets its own pages
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    memory = {
        name: run_in_process(partial(measure_peak, name, arguments.device))
        for name in get_variants(arguments.device)
    }
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    seconds = run_in_process(partial(measure_seconds, arguments.device, arguments.rounds))
    rows = {
        name: {
            "peak_mb": round(memory[name], 1),
            "of_full": round(memory[name] / memory["full"], 3),
            "seconds": round(statistics.median(seconds[name]), 3),
            "time_of_full": round(
                statistics.median(a / b for a, b in zip(seconds[name], seconds["full"], strict=True)), 3
            ),
        }
        for name in memory
    }
    lines = [(name, *map(str, row.values())) for name, row in rows.items()]
    print("\n".join(format_table(lines, ("", "peak MB", "of full", "seconds", "of full"))))
    cuda = arguments.device == "cuda"
    result = {
        "question": "peak memory and time of the loss, forward and backward",
        "date": date.today().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "processor": torch.cuda.get_device_name() if cuda else "cpu",
            "cores": os.cpu_count(),
            "threads": 1,
        },
        "versions": read_versions("krill", "torch"),
        "tokens": TOKENS, "hidden": HIDDEN, "vocabulary": VOCAB_SIZE, "rounds": arguments.rounds,
        "ways": rows,
        "holds": {"memory": rows["chunked"]["of_full"] <= LIMIT, "time": rows["chunked"]["time_of_full"] <= 1.0},
    }  # fmt: skip
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
