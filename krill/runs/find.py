"""Runs and sweeps by what a person calls them."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krill.errors import UsageError
from krill.runs.record import read_status, shown


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds the points of a sweep."""
    return (folder / "sweep.json").is_file()


def read_sweep(folder: Path) -> dict[str, Any]:
    """sweep.json of a sweep; empty where it cannot be read."""
    try:
        sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return sweep if isinstance(sweep, dict) else {}


def points_of(sweep: Path) -> list[Path]:
    """Folders of a sweep's points: those of the sweep that was given last, and what else is there."""
    last = [sweep / point["folder"] for point in read_sweep(sweep).get("points", [])]
    return [*last, *(folder for folder in _runs_in(sweep) if folder not in last)]


def below(root: Path) -> list[Path]:
    """Every single run and every sweep below an outputs folder, the newest first."""
    runs = [folder for name in _folders(root / "runs") for folder in _runs_in(name)]
    sweeps = [folder for folder in _folders(root / "sweeps") if is_sweep(folder) or _runs_in(folder)]
    return sorted([*runs, *sweeps], key=_begun, reverse=True)


def runs_of(folder: Path) -> list[Path]:
    """The runs that a folder stands for: itself, its points, or what lies in it."""
    if read_status(folder) is not None:
        return [folder]
    return points_of(folder) if is_sweep(folder) else _runs_in(folder)


def named(text: str, root: Path) -> Path:
    """The run or sweep that `text` means: its folder, a glob (the newest), or the beginning of its name or signature.

    Raises UsageError when there is none, or more than one.
    """
    if _is_known(Path(text)):
        return Path(text).absolute()
    matches = [path for path in map(Path, glob.glob(text)) if _is_known(path)]
    if matches:
        return max(matches, key=_begun).absolute()
    every = below(root)
    every += [point for sweep in every if read_status(sweep) is None for point in points_of(sweep)]
    fitting = [folder for folder in every if text in (folder.name, _signature(folder)[:8])]
    fitting = fitting or [
        folder for folder in every if folder.name.startswith(text) or _signature(folder).startswith(text)
    ]
    if not fitting:
        raise UsageError(f"{text}: no run or sweep of this name; krill-runs lists all")
    if len(fitting) > 1:
        raise UsageError(
            f"{text} may be {', '.join(str(shown(folder)) for folder in fitting)}: write more of it"
        )
    return fitting[0]


def _is_known(folder: Path) -> bool:
    return read_status(folder) is not None or is_sweep(folder) or bool(_runs_in(folder))


def _signature(folder: Path) -> str:
    return str((read_status(folder) or {}).get("signature", ""))


def _runs_in(folder: Path) -> list[Path]:
    return [run for run in _folders(folder) if read_status(run) is not None]


def _folders(parent: Path) -> Sequence[Path]:
    if not parent.is_dir():
        return []
    return sorted(entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _begun(folder: Path) -> str:
    return str((read_status(folder) or read_sweep(folder)).get("start") or "")
