"""Summarizes a trace of torch.profiler: where the time of a training step goes, by kind of work and by kernel.

    attention       Flash Attention, SDPA
    matmul          matrix products
    optimizer       whatever Optimizer.step starts, also its matrix products
    copy            between host and device, and memset
    elementwise     everything else: norms, activations, casts, loss, reductions

On the CPU, an operator counts with its time without the operators that it calls.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

KINDS = {
    "attention": re.compile(r"flash|fmha|attention|attn|sdpa", re.IGNORECASE),
    "matmul": re.compile(
        r"gemm|gemv|matmul|cutlass|cublas|nvjet|xmma|wgmma|splitKreduce|triton_tem|aten::(mm|bmm|addmm|baddbmm)\b",
        re.IGNORECASE,
    ),
    "copy": re.compile(r"memcpy|memset", re.IGNORECASE),
}
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
OPTIMIZER_RANGE = "Optimizer.step#"
TOP = 20

Work = tuple[str, float, bool]
"""Name, microseconds, and whether the optimizer started it."""


def start_profiler(device: str) -> Any:
    """Returns a running profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)
    profiler.start()
    return profiler


def summarize_profile(profiler: Any) -> dict[str, Any]:
    """Stops the profiler and summarizes its trace."""
    profiler.stop()
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return summarize_trace(json.loads(file.read_text(encoding="utf-8"))["traceEvents"])


def summarize_trace(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the milliseconds of a trace, the share of each kind of work, and the kernels that take the most time.

    `busy`: the share of the time between the first and the last kernel in which one was running; the shares of
    `kinds` and `top` are of the busy time.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    on_device = [event for event in complete if event.get("cat") in ON_DEVICE]
    operators = [event for event in complete if event.get("cat") == "cpu_op"]
    ranges = [
        (event["tid"], event["ts"], event["ts"] + event["dur"])
        for event in complete
        if event.get("cat") == "user_annotation" and event["name"].startswith(OPTIMIZER_RANGE)
    ]
    measured = on_device or operators
    if not measured:
        return {"failed": "the profiler recorded no kernel"}
    if on_device:
        work = _iterate_device_work(on_device, complete, ranges)
    else:
        work = _iterate_operator_work(operators, ranges)
    kinds: dict[str, float] = dict.fromkeys(("matmul", "attention", "elementwise", "optimizer", "copy"), 0.0)
    kernels: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, duration, in_optimizer in work:
        kind = "optimizer" if in_optimizer else classify(name)
        kinds[kind] += duration
        kernels[name, kind].append(duration)
    busy = sum(kinds.values())
    span = max(event["ts"] + event["dur"] for event in measured) - min(event["ts"] for event in measured)
    top = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:TOP]
    return {
        "milliseconds": round(span / 1000, 3),
        "busy": round(busy / span, 4),
        "kinds": {kind: round(duration / busy, 4) for kind, duration in kinds.items()},
        "top": [
            {
                "kernel": name[:120], "kind": kind, "calls": len(durations),
                "milliseconds": round(sum(durations) / 1000, 3), "share": round(sum(durations) / busy, 4),
            }
            for (name, kind), durations in top
        ],
    }  # fmt: skip


def classify(name: str) -> str:
    """Returns the kind of work of a kernel or an operator."""
    return next((kind for kind, pattern in KINDS.items() if pattern.search(name)), "elementwise")


def _iterate_device_work(
    on_device: list[dict[str, Any]], complete: list[dict[str, Any]], ranges: list[tuple[Any, float, float]]
) -> Iterator[Work]:
    launched_by_optimizer = {
        event["args"]["correlation"]
        for event in complete
        if event.get("cat") in LAUNCHES
        and "correlation" in event.get("args", {})
        and _is_within(event, ranges)
    }
    for event in on_device:
        yield event["name"], event["dur"], event.get("args", {}).get("correlation") in launched_by_optimizer


def _iterate_operator_work(
    operators: list[dict[str, Any]], ranges: list[tuple[Any, float, float]]
) -> Iterator[Work]:
    threads: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in operators:
        threads[event["tid"]].append(event)
    for thread in threads.values():
        own_time = [event["dur"] for event in thread]
        open_operators: list[int] = []
        order = sorted(range(len(thread)), key=lambda index: (thread[index]["ts"], -thread[index]["dur"]))
        for index in order:
            event = thread[index]
            while open_operators and _end(thread[open_operators[-1]]) <= event["ts"]:
                open_operators.pop()
            if open_operators:
                own_time[open_operators[-1]] -= event["dur"]
            open_operators.append(index)
        for event, duration in zip(thread, own_time, strict=True):
            yield event["name"], max(0.0, duration), _is_within(event, ranges)


def _end(event: dict[str, Any]) -> float:
    return float(event["ts"] + event["dur"])


def _is_within(event: dict[str, Any], ranges: Iterable[tuple[Any, float, float]]) -> bool:
    return any(thread == event["tid"] and first <= event["ts"] < last for thread, first, last in ranges)


def format_profile(profile: dict[str, Any]) -> list[str]:
    """Returns the lines of a table."""
    if "failed" in profile:
        return [f"profile: {profile['failed']}"]
    kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in profile["kinds"].items())
    lines = [f"{profile['milliseconds']:.1f} ms, busy {profile['busy']:.1%}: {kinds}"]
    for kernel in profile["top"]:
        lines.append(
            f"{kernel['milliseconds']:>10.3f} ms {kernel['share']:>6.1%} {kernel['calls']:>6} × "
            f"{kernel['kind']:<12} {kernel['kernel']}"
        )
    return lines
