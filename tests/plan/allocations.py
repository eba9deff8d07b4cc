"""The peak of what torch's allocator hands out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def measure_moments(step: Callable[[], None]) -> dict[str, int]:
    """Returns the peak of the bytes that torch's allocator hands out in each part of `step` named by a mark."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    internals: Any = profiler.profiler
    events = internals.kineto_results.events()
    changes = [
        (
            event.start_ns(),
            event.name().removeprefix("mark "),
            event.nbytes() if event.name() == "[memory]" else 0,
        )
        for event in events
        if event.name() == "[memory]" or event.name().startswith("mark ")
    ]
    peaks: dict[str, int] = {}
    current, moment = 0, ""
    for _, name, size in sorted(changes):
        if name != "[memory]":
            moment = name
        current += size
        peaks[moment] = max(peaks.get(moment, 0), current)
    return peaks
