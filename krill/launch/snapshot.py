"""A snapshot of the code at submission, so that a job that waits for days does not run later edits."""

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


def snapshot_code(folder: Path, custom_code: Iterable[str] = ()) -> Path:
    """Copies krill, its configurations and the user's code into `folder`, which jobs have in PYTHONPATH.

    `custom_code`: references from configurations, such as my_model.py:build. The whole package of a module is copied,
    unless it is installed.
    """
    package = Path(krill.__file__).parent
    shutil.copytree(package, folder / "krill", ignore=IGNORED_FILES)
    if not CONF_DIR.is_relative_to(package):
        shutil.copytree(CONF_DIR, folder / "conf")
    (folder / "git.json").write_text(json.dumps(read_git_state()), encoding="utf-8")
    for source in {reference.rpartition(":")[0] for reference in custom_code}:
        if source.endswith(".py"):
            copy = get_snapshot_path(Path(source), folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(source, copy)
        else:
            _copy_package(source.partition(".")[0], folder)
    return folder


def _copy_package(name: str, folder: Path) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or (folder / name).exists():
        return
    source = Path(spec.origin)
    install_folders = [
        Path(path) for key, path in sysconfig.get_paths().items() if key in ("purelib", "platlib", "stdlib")
    ]
    if any(source.is_relative_to(parent) for parent in install_folders):
        return
    if spec.submodule_search_locations:
        shutil.copytree(source.parent, folder / name, ignore=IGNORED_FILES)
    else:
        shutil.copy2(source, folder / source.name)
