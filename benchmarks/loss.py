"""Question: what memory and time does the loss take, forward and backward, by chunks and by full logits?

4096 tokens, hidden 256, vocabulary 32,000, fp32; each way's memory in a process of its own:

    full        logits of all tokens, then torch's cross-entropy, as transformers' models do
    chunked     krill.training.compute.cross_entropy
    torch       torch.nn.functional.linear_cross_entropy in chunks, where this torch has it
    liger       Liger's fused linear cross-entropy (CUDA)

Memory is the peak above what inputs and weight take: of the process on the CPU (Linux), of the allocator on CUDA.
Times are of one process, the ways one after the other in each round; CPU seconds of one thread, on CUDA seconds.
Prints a table and writes results/loss.json; with another --result, that file.

    python benchmarks/loss.py          (2 minutes on one core)

Must hold: chunked takes ≤ 0.25 of the memory of full, and no more time.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from krill.tables import format_table
from krill.training.compute.cross_entropy import chunked_cross_entropy
from krill.training.compute.head_loss import liger_cross_entropy
from krill.training.compute.liger import has_liger

TOKENS, HIDDEN, VOCABULARY = 4096, 256, 32_000
LIMIT = 0.25


def full(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def torchs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)


def ways(device: str) -> dict[str, Callable[..., Tensor]]:
    found: dict[str, Callable[..., Tensor]] = {"full": full, "chunked": chunked_cross_entropy}
    if hasattr(F, "linear_cross_entropy"):
        found["torch"] = torchs
    if device == "cuda" and has_liger():
        found["liger"] = liger_cross_entropy
    return found


def inputs(
    device: str, tokens: int = TOKENS, width: int = HIDDEN, vocabulary: int = VOCABULARY
) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=chance)
    weight = torch.randn(vocabulary, width, generator=chance).mul_(0.02)
    labels = torch.randint(vocabulary, (tokens,), generator=chance)
    return hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), labels.to(device)


def passes(way: Callable[..., Tensor], given: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Loss per token and the norm of the weight's gradient, which is what must not differ."""
    hidden, weight, labels = given
    hidden.grad = weight.grad = None
    loss = way(hidden, weight, labels) / len(labels)
    loss.backward()
    assert weight.grad is not None
    return loss.item(), weight.grad.norm().item()


def _memory(field: str) -> int:
    """Bytes of this process: VmRSS, now; VmHWM, at most."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


def peak(name: str, device: str) -> float:
    """MB above what was there before, in a fresh process."""
    torch.set_num_threads(1)
    given, way = inputs(device), ways(device)[name]
    passes(way, inputs(device, 8, 16, 32))  # libraries load their code
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        passes(way, given)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = _memory("VmRSS")
    passes(way, given)
    return (_memory("VmHWM") - before) / 1e6


def seconds(device: str, rounds: int) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    given, taken = inputs(device), {name: list[float]() for name in ways(device)}
    expected = passes(full, given)
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(rounds):
        for name, way in ways(device).items():
            began = clock()
            found = passes(way, given)  # reads a number: the device is done
            taken[name].append(clock() - began)
            for mine, theirs in zip(found, expected, strict=True):
                assert abs(mine - theirs) <= 1e-4 * theirs, name
    return taken


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "loss.json")
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")

    def apart(work: Callable[..., Any]) -> Any:
        with context.Pool(1) as pool:
            return pool.apply(work)

    # glibc would keep what is freed and hide the next allocation of that size; so each has pages of its own
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    memory = {name: apart(partial(peak, name, asked.device)) for name in ways(asked.device)}
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    taken = apart(partial(seconds, asked.device, asked.rounds))
    rows = {
        name: {
            "peak_mb": round(memory[name], 1),
            "of_full": round(memory[name] / memory["full"], 3),
            "seconds": round(statistics.median(taken[name]), 3),
            "time_of_full": round(
                statistics.median(a / b for a, b in zip(taken[name], taken["full"], strict=True)), 3
            ),
        }
        for name in memory
    }
    lines = [(name, *map(str, row.values())) for name, row in rows.items()]
    print("\n".join(format_table(lines, ("", "peak MB", "of full", "seconds", "of full"))))
    cuda = asked.device == "cuda"
    result = {
        "question": "peak memory and time of the loss, forward and backward",
        "date": date.today().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "processor": torch.cuda.get_device_name() if cuda else "cpu",
            "cores": os.cpu_count(),
            "threads": 1,
        },
        "versions": {name: version(name) for name in ("krill", "torch")},
        "tokens": TOKENS, "hidden": HIDDEN, "vocabulary": VOCABULARY, "rounds": asked.rounds,
        "ways": rows,
        "holds": {"memory": rows["chunked"]["of_full"] <= LIMIT, "time": rows["chunked"]["time_of_full"] <= 1.0},
    }  # fmt: skip
    asked.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
