"""Summarizes runs and sweeps: one line, all known values, and the commands to run next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krill.config.paths import get_outputs_root, quote_path, relative_path
from krill.runs import table
from krill.runs.find import Run, RunGroup, read_sweep_or_warn
from krill.runs.plan_record import read_plan_record
from krill.runs.ranking import rank_by_validation_set
from krill.runs.table import RunRow

RUN = "RUN"
"""The run in the command of its verdict."""


def format_next_command(verdict: Mapping[str, Any], folder: Path) -> str:
    """Returns the command that the verdict of the run in `folder` suggests; empty if it has none."""
    return str(verdict.get("next") or "").replace(f"={RUN}", f"={quote_path(folder)}")


def summarize_sweep(points: Sequence[RunRow]) -> str:
    """Returns one line with the states of the points of a sweep and its best point, of each held-out set."""
    states = ", ".join(
        f"{count} {state}" for state, count in Counter(row.state for row in points).most_common()
    )
    line = f"{len(points)} points: {states}"
    ranked, _ = rank_by_validation_set(points)
    differing = dict(
        zip(
            (row.folder for row in points),
            table.find_differing_overrides([row.overrides for row in points]),
            strict=True,
        )
    )
    for best in (group[0] for group in ranked):
        of_set = f" of held-out set {str(best.validation_set)[:8]}" if len(ranked) > 1 else ""
        line += f"; best{of_set} {best.eval_loss:.4f}, {Path(best.folder).name}"
        line += f" ({differing[best.folder]})" if differing[best.folder] else ""
    return line


def describe_run(run: Run, row: RunRow) -> dict[str, Any]:
    """Returns all known values of a run and its `row`, as JSON types."""
    status = run.status or {}
    recorded = {key: value for key, value in status.items() if key not in ("metrics", "error")}
    metrics = {key: table.finite_or_none(value) for key, value in (status.get("metrics") or {}).items()}
    planned = read_plan_record(run.folder)
    return {
        **table.row_to_dict(row),
        **metrics,
        **{key: value for key, value in recorded.items() if key not in ROW_FIELDS},
        **({"planned": planned.to_json()} if planned else {}),
    }


ROW_FIELDS = frozenset(RunRow.__dataclass_fields__)
"""Fields of a table row; its state is the actual one, not the recorded one."""


def describe_sweep(sweep: RunGroup) -> dict[str, Any]:
    """Returns all known values of a sweep and of its points, best first, as JSON types."""
    points = table.sort_best_first(table.build_rows(sweep.runs))
    return {
        "sweep": str(sweep.folder),
        **sweep.sweep_record,
        "points": [table.row_to_dict(row) for row in points],
    }


def suggest_commands(run: Run, row: RunRow) -> list[str]:
    """Returns the commands that are useful next, the most useful first."""
    path = quote_path(run.folder)
    if row.state == "finished":
        return _suggest_after_finish(run, row.command, path)
    if row.state == "running":
        return [f"krill-runs tail -f {path}", f"krill-runs cancel {path}"]
    if row.state == "queued":
        return [f"krill-runs watch {path}", f"krill-runs cancel {path}"]
    if row.state == "damaged":
        return (
            [f"krill-train from={path} resume={path} resume_changed=true"] if row.command == "train" else []
        )
    repeat = f"krill-{row.command} {shlex.join(row.overrides)}".rstrip()
    if row.sweep:
        repeat = build_sweep_command(Path(row.sweep), read_sweep_or_warn(Path(row.sweep))) or repeat
    return [*([f"krill-runs tail {path}"] if row.state == "failed" else []), repeat]


def build_sweep_command(sweep: Path, record: dict[str, Any]) -> str:
    """Returns the command that runs the missing points of a sweep; empty if its `record` does not have it."""
    if not isinstance(record.get("typed"), list) or not record.get("command"):
        return ""
    arguments = [str(argument) for argument in record["typed"]]
    if any(argument.endswith("=null") for argument in arguments):
        from krill.config.overrides import exclude_cleared_keys  # imports Hydra, for a fifth of a second

        arguments = exclude_cleared_keys(arguments)
    if not sweep.absolute().is_relative_to(get_outputs_root().absolute() / "sweeps"):
        arguments.append(f"output={relative_path(sweep)}")
    return f"krill-{record['command']} -m {shlex.join(arguments)}"


def _suggest_after_finish(run: Run, command: str, path: str) -> list[str]:
    result = (run.status or {}).get("result")
    if command == "train":
        verdict = (run.status or {}).get("verdict") or {}
        return [f"krill-infer {path}", *filter(None, [format_next_command(verdict, run.folder)])]
    if command == "preprocess" and result:
        return [f"krill-inspect {quote_path(Path(result))}"]
    return []
