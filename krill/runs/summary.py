"""What is to be said of a run or a sweep: in one line, all that is known, what to type next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krill.runs import table
from krill.runs.find import Run, RunGroup
from krill.runs.record import relative_path
from krill.runs.table import RunRow


def summarize_sweep(points: Sequence[RunRow]) -> str:
    """How the points of a sweep stand, and the best of them."""
    states = ", ".join(
        f"{count} {state}" for state, count in Counter(row.state for row in points).most_common()
    )
    ordered = table.sort_best_first(points)
    best = next((row for row in ordered if row.eval_loss is not None), None)
    if best is None:
        return f"{len(points)} points: {states}"
    own = table.find_differing_overrides([row.overrides for row in ordered])[ordered.index(best)]
    said = f"{len(points)} points: {states}; best {best.eval_loss:.4f}, {Path(best.folder).name}"
    return said + (f" ({own})" if own else "")


def describe_run(run: Run) -> dict[str, Any]:
    """All that is known of a run, as JSON holds it."""
    status = run.status or {}
    known = {key: value for key, value in status.items() if key not in ("metrics", "error")}
    metrics = {key: table.finite_or_none(value) for key, value in (status.get("metrics") or {}).items()}
    return {
        **table.row_to_dict(table.build_rows([run])[0]),
        **metrics,
        **{key: value for key, value in known.items() if key not in ROW_FIELDS},
    }


ROW_FIELDS = frozenset(RunRow.__dataclass_fields__)
"""What a row tells of a run: its state there is the true one, not what status.json says."""


def describe_sweep(sweep: RunGroup) -> dict[str, Any]:
    """What is known of a sweep and of its points, the best first, as JSON holds it."""
    points = table.sort_best_first(table.build_rows(sweep.runs))
    return {
        "sweep": str(sweep.folder),
        **sweep.sweep_record,
        "points": [table.row_to_dict(row) for row in points],
    }


def suggest_commands(run: Run, row: RunRow) -> list[str]:
    """The commands that a person may want now, the first one most."""
    place = shlex.quote(str(relative_path(run.folder)))
    if row.state == "finished":
        return _suggest_after_finish(run, row.command, place)
    if row.state == "running":
        return [f"krill-runs tail -f {place}", f"krill-runs cancel {place}"]
    if row.state == "queued":
        return [f"krill-runs watch {place}", f"krill-runs cancel {place}"]
    again = f"krill-{row.command} {shlex.join(row.overrides)}".rstrip()
    if row.sweep:
        again = build_sweep_command(Path(row.sweep)) or again
    return [*([f"krill-runs tail {place}"] if row.state == "failed" else []), again]


def build_sweep_command(sweep: Path) -> str:
    """The command that makes what is missing in a sweep; empty where that is not known."""
    from krill.config.paths import get_outputs_root
    from krill.runs.find import read_sweep

    told = read_sweep(sweep)
    if not isinstance(told.get("typed"), list) or not told.get("command"):
        return ""
    typed = [str(word) for word in told["typed"]]
    if not sweep.absolute().is_relative_to(get_outputs_root().absolute() / "sweeps"):
        typed.append(f"output={relative_path(sweep)}")
    return f"krill-{told['command']} -m {shlex.join(typed)}"


def _suggest_after_finish(run: Run, command: str, place: str) -> list[str]:
    result = (run.status or {}).get("result")
    if command == "train":
        return [f"krill-infer {place}"]
    if command == "preprocess" and result:
        return [f"krill-inspect {shlex.quote(str(relative_path(Path(result))))}"]
    return []
