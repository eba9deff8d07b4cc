"""Finds runs and sweeps; each status is read once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from krill.checksum import ChecksumError, has_no_checksum, read_checksummed_json
from krill.config.paths import relative_path
from krill.errors import KrillError, UsageError
from krill.runs import slurm
from krill.runs.record import find_status_damage, read_status
from krill.runs.run_state import read_run_or_submission_status, read_submission_status

log = logging.getLogger("krill")

MAX_SEARCH_DEPTH = 3
"""Levels of subfolders that are searched for runs: outputs/runs/<name>/<run>."""


@dataclass(frozen=True)
class Run:
    """A run, or the point of a sweep."""

    folder: Path
    status: dict[str, Any] | None
    """Its status.json; None: it has not started, or the file is damaged."""
    sweep: Path | None = None
    sweep_entry: dict[str, Any] = field(default_factory=dict)
    """Its entry in sweep.json: command, overrides."""


@dataclass(frozen=True)
class RunGroup:
    """A sweep, or any other folder with runs."""

    folder: Path
    sweep_record: dict[str, Any]
    """Its sweep.json; empty if it is not a sweep."""
    runs: list[Run]


RunOrGroup = Run | RunGroup


def is_sweep(folder: Path) -> bool:
    """Returns whether a folder holds the points of a sweep."""
    return (folder / "sweep.json").is_file()


def read_sweep(folder: Path) -> dict[str, Any]:
    """Reads sweep.json; empty if it is missing. Raises UsageError if it is damaged, KrillError if unreadable."""
    file = folder / "sweep.json"
    try:
        return read_checksummed_json(file, has_no_checksum)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise KrillError(f"{relative_path(file)} cannot be read ({error.strerror})") from error
    except ChecksumError as error:
        raise UsageError(
            f"{relative_path(file)} {error.problem}; remove it, and run the command of the sweep again: finished "
            "points are not repeated"
        ) from error


def read_sweep_or_warn(folder: Path) -> dict[str, Any]:
    """Reads sweep.json; if it is damaged, logs that and returns an empty record."""
    try:
        return read_sweep(folder)
    except KrillError as error:
        log.warning("%s", error)
        return {}


def list_point_folders(sweep: Path) -> list[Path]:
    """Lists the folders of a sweep's points: those in sweep.json first, then other runs in its folder."""
    return [run.folder for run in _iterate_points(sweep, read_sweep(sweep))]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads the run in each of these folders, started or not."""
    points = cache(lambda sweep: _index_points(read_sweep_or_warn(sweep)) if is_sweep(sweep) else None)
    return [
        _make_run(folder, read_run_or_submission_status(folder), points(folder.parent)) for folder in folders
    ]


def runs_under(root: Path) -> list[RunOrGroup]:
    """Returns all single runs and sweeps in an outputs folder, and submissions without a run folder, newest first."""
    runs = [run for name in _list_subfolders(root / "runs") for run in _list_runs(name)]
    jobs = [
        Run(folder, status)
        for folder in _list_subfolders(root / "jobs")
        if (status := read_submission_status(folder))
    ]
    sweeps = [item for folder in _list_subfolders(root / "sweeps") if (item := run_at(folder))]
    return sorted([*runs, *jobs, *sweeps], key=get_time_key, reverse=True)


def run_at(folder: Path) -> RunOrGroup | None:
    """Returns the run, the sweep or the runs in `folder`; None if there is none."""
    status = read_run_or_submission_status(folder)
    if status is not None or find_status_damage(folder):
        return read_runs([folder])[0] if is_sweep(folder.parent) else Run(folder, status)
    if is_sweep(folder):
        record = read_sweep_or_warn(folder)
        return RunGroup(folder, record, list(_iterate_points(folder, record)))
    runs = list(_iterate_runs(folder, MAX_SEARCH_DEPTH))
    return RunGroup(folder, {}, runs) if runs else None


def find_run_folder(model_folder: Path) -> Path | None:
    """Returns the folder of the run to which the weights in `model_folder` belong: a model or a checkpoint of it."""
    for folder in (model_folder, *model_folder.resolve().parents[:2]):
        if read_status(folder):
            return folder
    return None


def expand_runs(item: RunOrGroup) -> list[Run]:
    """Returns the run itself, or the runs of the group."""
    return [item] if isinstance(item, Run) else item.runs


def get_time_key(item: RunOrGroup) -> tuple[str, float]:
    """Returns what sorts runs by time: the recorded start, then, within its second, the last write of the status."""
    return _get_start_time(item), _get_modification_time(item.folder / "status.json") or 0.0


def _make_run(folder: Path, status: dict[str, Any] | None, points: dict[str, dict[str, Any]] | None) -> Run:
    """Builds a run; `points` are the points in the sweep.json of the parent folder, None if it is not a sweep."""
    return Run(
        folder, status, folder.parent if points is not None else None, (points or {}).get(folder.name, {})
    )


def _iterate_points(sweep: Path, sweep_record: dict[str, Any]) -> Iterator[Run]:
    listed = _index_points(sweep_record)
    for name in listed:
        yield _make_run(sweep / name, read_status(sweep / name), listed)
    for folder in _list_subfolders(sweep):
        if folder.name not in listed:
            command = {"command": sweep_record.get("command")}
            yield from (Run(run.folder, run.status, sweep, command) for run in _read_run(folder))


def _index_points(sweep: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns folder name → entry of each point in sweep.json, with the command of the sweep."""
    points = sweep.get("points")
    points = [point for point in points if isinstance(point, dict)] if isinstance(points, list) else []
    command = {"command": sweep.get("command")}
    return {point["folder"]: point | command for point in points if isinstance(point.get("folder"), str)}


def _iterate_runs(folder: Path, depth: int) -> Iterator[Run]:
    for child in _list_subfolders(folder):
        if runs := _read_run(child):
            yield from runs
        elif is_sweep(child):
            yield from _iterate_points(child, read_sweep_or_warn(child))
        elif depth > 1:
            yield from _iterate_runs(child, depth - 1)


def _list_runs(folder: Path) -> list[Run]:
    return [run for child in _list_subfolders(folder) for run in _read_run(child)]


def _read_run(folder: Path) -> list[Run]:
    """Returns the run in `folder`, also if its status.json is damaged; an empty list if there is none."""
    status = read_status(folder)
    return [Run(folder, status)] if status is not None or find_status_damage(folder) else []


def _list_subfolders(parent: Path) -> Sequence[Path]:
    try:
        return sorted(
            entry for entry in parent.iterdir() if not entry.name.startswith(".") and entry.is_dir()
        )
    except OSError:  # missing, or of another user
        return []


def _get_start_time(item: RunOrGroup) -> str:
    """Returns the recorded start time; else when status.json was written, for a queued run by its submission."""
    if isinstance(item, RunGroup):
        start = item.sweep_record.get("start")
        return start if isinstance(start, str) else max(map(_get_start_time, item.runs), default="")
    if start := (item.status or {}).get("start"):
        return str(start)
    files = [item.folder / "status.json", item.folder / slurm.JOBS_FILE] if item.status else [item.folder]
    written = next(filter(None, map(_get_modification_time, files)), None)
    return "" if written is None else datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")


def _get_modification_time(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
