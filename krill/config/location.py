"""Where configurations are read from and results are written to. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from krill.errors import UsageError

_HERE = Path(__file__).resolve().parent.parent

CONF_DIR: Path = next(
    (folder for folder in (_HERE / "conf", _HERE.parent / "conf") if (folder / "train.yaml").is_file()),
    _HERE / "conf",
)
"""krill's own configurations: inside the package in a wheel, beside it in a checkout."""

SITE = "_site.yaml"
"""In hardware/: empty in krill's own configurations, there to be hidden by a person's."""


def outputs_root() -> Path:
    """The folder of all results: $KRILL_OUTPUTS, else outputs/ of the working directory."""
    return Path(os.environ.get("KRILL_OUTPUTS") or "outputs").absolute()


def user_dirs(asked: Sequence[str]) -> list[Path]:
    """The person's own configurations, strongest first: --config-dir, $KRILL_CONF, ./conf.

    Raises UsageError when a folder that was asked for is not there. ./conf counts only if it holds one of
    krill's groups, since other tools use that name too.
    """
    named = [*asked, *filter(None, os.environ.get("KRILL_CONF", "").split(os.pathsep))]
    for folder in named:
        if not Path(folder).is_dir():
            raise UsageError(f"no such folder of configurations: {folder} (--config-dir or KRILL_CONF)")
    found = [Path(folder).resolve() for folder in named]
    here = Path("conf").resolve()
    if any((here / group).is_dir() for group in group_names()):
        found.append(here)
    return [
        folder for index, folder in enumerate(found) if folder != CONF_DIR and folder not in found[:index]
    ]


def group_names(folder: Path = CONF_DIR) -> list[str]:
    """The configuration groups of a folder: model, data, tokenizer, … (hydra/ holds those of Hydra itself)"""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "hydra")


def options(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    """Option name → file, of one group over several folders, the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted((folder / group).glob("*.yaml")):
            if not file.name.startswith("_"):
                found.setdefault(file.stem, file)
    return found


def shadowed(folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs (file used, file hidden behind it) of the same name in several folders."""
    used: dict[Path, Path] = {}
    hidden = []
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            first = used.setdefault(file.relative_to(folder), file)
            if first is not file and file.name != SITE:
                hidden.append((first, file))
    return hidden


def description(file: Path) -> str:
    """The sentence a configuration begins with: its first comment that is no directive."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("#"):
                break
            if not line.startswith("# @"):
                return line.lstrip("# ").strip()
    return ""
