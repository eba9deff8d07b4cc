"""The code as it is at submission: a job that waits for days must not run what was edited meanwhile."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import krill
from krill.config.custom_code import get_snapshot_path
from krill.config.paths import CONF_DIR
from krill.runs.record import read_git_state

IGNORED_FILES = shutil.ignore_patterns("__pycache__", ".*")


def snapshot_code(folder: Path, own: Iterable[str] = ()) -> Path:
    """Copy krill, its configurations and the person's own code into `folder`, which goes to PYTHONPATH.

    `own`: references such as my_model.py:build, as configurations name them. Of a package, all of it is copied unless
    it is installed.
    """
    package = Path(krill.__file__).parent
    shutil.copytree(package, folder / "krill", ignore=IGNORED_FILES)
    if not CONF_DIR.is_relative_to(package):
        shutil.copytree(CONF_DIR, folder / "conf")
    (folder / "git.json").write_text(json.dumps(read_git_state()), encoding="utf-8")
    for place in {reference.rpartition(":")[0] for reference in own}:
        if place.endswith(".py"):
            copied = get_snapshot_path(Path(place), folder)
            copied.parent.mkdir(exist_ok=True)
            shutil.copy2(place, copied)
        else:
            _copy_package(place.partition(".")[0], folder)
    return folder


def _copy_package(name: str, folder: Path) -> None:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None or (folder / name).exists():
        return
    source = Path(found.origin)
    installed = [
        Path(path) for key, path in sysconfig.get_paths().items() if key in ("purelib", "platlib", "stdlib")
    ]
    if any(source.is_relative_to(place) for place in installed):
        return
    if found.submodule_search_locations:
        shutil.copytree(source.parent, folder / name, ignore=IGNORED_FILES)
    else:
        shutil.copy2(source, folder / source.name)
