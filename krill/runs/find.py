"""Runs and sweeps by what a person calls them; each status is read once."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from krill.errors import UsageError
from krill.runs import slurm
from krill.runs.record import read_json_object, read_status, relative_path
from krill.runs.run_state import read_run_or_submission_status, read_submission_status

MAX_SEARCH_DEPTH = 3
"""Folders below one that is named in which runs are looked for: outputs/runs/<name>/<run>."""


@dataclass(frozen=True)
class Run:
    """A run, or the point of a sweep."""

    folder: Path
    status: dict[str, Any] | None
    """What it wrote of itself; None: it has not begun."""
    sweep: Path | None = None
    sweep_entry: dict[str, Any] = field(default_factory=dict)
    """What its sweep says of it: command, overrides."""


@dataclass(frozen=True)
class RunGroup:
    """A sweep, or any folder with runs in it."""

    folder: Path
    sweep_record: dict[str, Any]
    """Its sweep.json; empty for what is no sweep."""
    runs: list[Run]


RunOrGroup = Run | RunGroup


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds the points of a sweep."""
    return (folder / "sweep.json").is_file()


def read_sweep(folder: Path) -> dict[str, Any]:
    """sweep.json of a sweep; empty where it cannot be read."""
    return read_json_object(folder / "sweep.json")


def list_point_folders(sweep: Path) -> list[Path]:
    """Folders of a sweep's points: those of the sweep that was given last, and what else is there."""
    return [run.folder for run in _iterate_points(sweep, read_sweep(sweep))]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The run in each of these folders, begun or not."""
    points = cache(lambda sweep: _index_points(read_sweep(sweep)) if is_sweep(sweep) else None)
    return [
        _make_run(folder, read_run_or_submission_status(folder), points(folder.parent)) for folder in folders
    ]


def runs_under(root: Path) -> list[RunOrGroup]:
    """Every single run and every sweep below an outputs folder, the newest first; and what was submitted that has no
    folder of its own."""
    runs = [run for name in _list_subfolders(root / "runs") for run in _list_runs(name)]
    jobs = [
        Run(folder, status)
        for folder in _list_subfolders(root / "jobs")
        if (status := read_submission_status(folder))
    ]
    sweeps = [place for folder in _list_subfolders(root / "sweeps") if (place := run_at(folder))]
    return sorted([*runs, *jobs, *sweeps], key=_get_start_time, reverse=True)


def run_at(folder: Path) -> RunOrGroup | None:
    """What lies in `folder`: a run, a sweep, or runs."""
    if (status := read_run_or_submission_status(folder)) is not None:
        return read_runs([folder])[0] if is_sweep(folder.parent) else Run(folder, status)
    if is_sweep(folder):
        told = read_sweep(folder)
        return RunGroup(folder, told, list(_iterate_points(folder, told)))
    runs = list(_iterate_runs(folder, MAX_SEARCH_DEPTH))
    return RunGroup(folder, {}, runs) if runs else None


def expand_runs(place: RunOrGroup) -> list[Run]:
    """The runs that a place stands for: itself, or those in it."""
    return [place] if isinstance(place, Run) else place.runs


def resolve_run(text: str, root: Path) -> RunOrGroup:
    """The run or sweep that `text` means: its folder, a glob (the newest), or the beginning of its name or signature.

    Raises UsageError when there is none, or more than one.
    """
    if place := run_at(Path(text).absolute()):
        return place
    matches = [place for path in glob.glob(text) if (place := run_at(Path(path).absolute()))]
    if matches:
        return max(matches, key=_get_start_time)
    every = runs_under(root)
    every += [run for place in every if isinstance(place, RunGroup) for run in place.runs]
    fitting = [place for place in every if text in (place.folder.name, _get_signature(place)[:8])]
    fitting = fitting or [
        place
        for place in every
        if place.folder.name.startswith(text) or _get_signature(place).startswith(text)
    ]
    if not fitting:
        raise UsageError(f"{text}: no run or sweep of this name; krill-runs lists all")
    if len(fitting) > 1:
        raise UsageError(
            f"{text} may be {', '.join(str(relative_path(place.folder)) for place in fitting)}: write more of it"
        )
    return fitting[0]


def _make_run(folder: Path, status: dict[str, Any] | None, points: dict[str, dict[str, Any]] | None) -> Run:
    """`points`: those that the sweep in the parent folder knows; None: there is none."""
    return Run(
        folder, status, folder.parent if points is not None else None, (points or {}).get(folder.name, {})
    )


def _iterate_points(sweep: Path, told: dict[str, Any]) -> Iterator[Run]:
    listed = _index_points(told)
    for name in listed:
        yield _make_run(sweep / name, read_status(sweep / name), listed)
    for folder in _list_subfolders(sweep):
        if folder.name not in listed and (status := read_status(folder)) is not None:
            yield Run(folder, status, sweep, {"command": told.get("command")})


def _index_points(sweep: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of its folder → what sweep.json says of a point, and the sweep's command."""
    points = sweep.get("points")
    points = [point for point in points if isinstance(point, dict)] if isinstance(points, list) else []
    command = {"command": sweep.get("command")}
    return {point["folder"]: point | command for point in points if isinstance(point.get("folder"), str)}


def _iterate_runs(folder: Path, depth: int) -> Iterator[Run]:
    for child in _list_subfolders(folder):
        if (status := read_status(child)) is not None:
            yield Run(child, status)
        elif is_sweep(child):
            yield from _iterate_points(child, read_sweep(child))
        elif depth > 1:
            yield from _iterate_runs(child, depth - 1)


def _list_runs(folder: Path) -> list[Run]:
    return [Run(run, status) for run in _list_subfolders(folder) if (status := read_status(run)) is not None]


def _list_subfolders(parent: Path) -> Sequence[Path]:
    try:
        return sorted(
            entry for entry in parent.iterdir() if not entry.name.startswith(".") and entry.is_dir()
        )
    except OSError:  # not there, or somebody else's
        return []


def _get_signature(place: RunOrGroup) -> str:
    return str((place.status or {}).get("signature", "")) if isinstance(place, Run) else ""


def _get_start_time(place: RunOrGroup) -> str:
    """When it began, as it says; of what only waits so far: when it was written."""
    if isinstance(place, RunGroup):
        start = place.sweep_record.get("start")
        return start if isinstance(start, str) else max(map(_get_start_time, place.runs), default="")
    if place.status is None:
        return ""
    if start := place.status.get("start"):
        return str(start)
    for name in ("status.json", slurm.JOBS_FILE):
        try:
            written = (place.folder / name).stat().st_mtime
        except OSError:
            continue
        return datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")
    return ""
