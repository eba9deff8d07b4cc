"""The dry run of a sweep on this machine: some of its points in full, the warnings of the others, the total cost."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from krill.config.schema import TrainConfig
from krill.launch.job_files import Point, label_points
from krill.sweep.session import Sweep
from krill.tables import get_terminal_width, print_wrapped

LISTED_POINTS = 10
"""The number of points up to which all are printed."""
NUM_FIRST, NUM_LAST = 3, 2
"""The numbers of points that are printed of a longer sweep."""


def print_points(points: Sequence[Point], run_point: Callable[[Any], Any]) -> None:
    """Prints what would be done for `points`. All are checked, but of many only the first and the last are printed.

    `run_point`: makes the dry run of a point's invocation, and raises its error.
    """
    labels = label_points(points)
    omitted = range(NUM_FIRST, len(points) - NUM_LAST) if len(points) > LISTED_POINTS else range(0)
    warnings: Counter[str] = Counter()
    first: dict[str, str] = {}
    for index, (point, label) in enumerate(zip(points, labels, strict=True)):
        if index in omitted:
            for warning in _find_warnings(point, run_point):
                warnings[warning] += 1
                first.setdefault(warning, label)
            continue
        if omitted and index == omitted.stop:
            print_wrapped(f"            {len(omitted):,} more points in {point.folder.parent}")
            for warning, count in warnings.items():
                print_wrapped(f"warning     {count:,} of them, the first {first[warning]}: {warning}")
        print_wrapped(f"point       {index + 1:,} of {len(points):,}: {label}")
        run_point(point.invocation)


def print_plans(points: Sequence[Point], run_point: Callable[[Any], Any]) -> None:
    """Prints the plans of `points` as one table, or as a list of JSON. `run_point`: returns the plan of a point."""
    from krill.plan.report import format_plan_table

    labels = label_points(points)
    plans = [run_point(point.invocation) for point in points]
    if getattr(points[0].config, "format", "text") == "json":
        values = [{"point": label, **plan.to_json()} for label, plan in zip(labels, plans, strict=True)]
        print(json.dumps(values, ensure_ascii=False, indent=2, allow_nan=False))
        return
    print("\n".join(format_plan_table(labels, plans, get_terminal_width(sys.stdout))))


def _find_warnings(point: Point, run_point: Callable[[Any], Any]) -> list[str]:
    """Returns the warnings in what the dry run of `point` prints."""
    with redirect_stdout(io.StringIO()) as printed:
        run_point(point.invocation)
    lines = (line.partition(" ") for line in printed.getvalue().splitlines())
    return [text.strip() for name, _, text in lines if name == "warning"]


def print_total_cost(sweep: Sweep) -> None:
    """Prints what all points of a training sweep will cost on this machine."""
    runs = [
        (point.config, point.invocation.inputs)
        for point in sweep.points
        if isinstance(point.config, TrainConfig)
        and point.invocation.inputs
        and not point.invocation.is_for_slurm
    ]
    if sweep.command == "train" and runs:
        from krill.plan.dry_run import summarize_sweep_cost

        print(summarize_sweep_cost(runs))
