"""What is to be said of a run or a sweep: in one line, all that is known, what to type next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krill.runs import table
from krill.runs.find import Run, Several
from krill.runs.record import shown
from krill.runs.table import Row


def summary(points: Sequence[Row]) -> str:
    """How the points of a sweep stand, and the best of them."""
    states = ", ".join(
        f"{count} {state}" for state, count in Counter(row.state for row in points).most_common()
    )
    ordered = table.best_first(points)
    best = next((row for row in ordered if row.eval_loss is not None), None)
    if best is None:
        return f"{len(points)} points: {states}"
    own = table.differing([row.overrides for row in ordered])[ordered.index(best)]
    said = f"{len(points)} points: {states}; best {best.eval_loss:.4f}, {Path(best.folder).name}"
    return said + (f" ({own})" if own else "")


def facts(run: Run) -> dict[str, Any]:
    """All that is known of a run, as JSON holds it."""
    status = run.status or {}
    known = {key: value for key, value in status.items() if key not in ("metrics", "error")}
    metrics = {key: table.finite(value) for key, value in (status.get("metrics") or {}).items()}
    return {
        **table.plain(table.rows_of([run])[0]),
        **metrics,
        **{key: value for key, value in known.items() if key not in ROW},
    }


ROW = frozenset(Row.__dataclass_fields__)
"""What a row tells of a run: its state there is the true one, not what status.json says."""


def sweep_facts(sweep: Several) -> dict[str, Any]:
    """What is known of a sweep and of its points, the best first, as JSON holds it."""
    points = table.best_first(table.rows_of(sweep.runs))
    return {"sweep": str(sweep.folder), **sweep.told, "points": [table.plain(row) for row in points]}


def next_words(run: Run, row: Row) -> list[str]:
    """The commands that a person may want now, the first one most."""
    place = shlex.quote(str(shown(run.folder)))
    if row.state == "finished":
        return _of_finished(run, row.command, place)
    if row.state == "running":
        return [f"krill-runs tail -f {place}", f"krill-runs cancel {place}"]
    if row.state == "queued":
        return [f"krill-runs watch {place}", f"krill-runs cancel {place}"]
    again = f"krill-{row.command} {shlex.join(row.overrides)}".rstrip()
    if row.sweep:
        again = sweep_again(Path(row.sweep)) or again
    return [*([f"krill-runs tail {place}"] if row.state == "failed" else []), again]


def sweep_again(sweep: Path) -> str:
    """The command that makes what is missing in a sweep; empty where that is not known."""
    from krill.config.location import outputs_root
    from krill.runs.find import read_sweep

    told = read_sweep(sweep)
    if not isinstance(told.get("typed"), list) or not told.get("command"):
        return ""
    typed = [str(word) for word in told["typed"]]
    if not sweep.absolute().is_relative_to(outputs_root().absolute() / "sweeps"):
        typed.append(f"output={shown(sweep)}")
    return f"krill-{told['command']} -m {shlex.join(typed)}"


def _of_finished(run: Run, command: str, place: str) -> list[str]:
    result = (run.status or {}).get("result")
    if command == "train":
        return [f"krill-infer {place}"]
    if command == "preprocess" and result:
        return [f"krill-inspect {shlex.quote(str(shown(Path(result))))}"]
    return []
