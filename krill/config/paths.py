"""Where configurations are read from and results are written to. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from krill.errors import UsageError

_PACKAGE_DIR = Path(__file__).resolve().parent.parent

CONF_DIR: Path = next(
    (
        folder
        for folder in (_PACKAGE_DIR / "conf", _PACKAGE_DIR.parent / "conf")
        if (folder / "train.yaml").is_file()
    ),
    _PACKAGE_DIR / "conf",
)
"""krill's own configurations: inside the package in a wheel, beside it in a checkout."""

SITE_CONFIG_FILE = "_site.yaml"
"""In hardware/: empty in krill's own configurations, there to be hidden by a person's."""


def get_outputs_root() -> Path:
    """The folder of all results: $KRILL_OUTPUTS, else outputs/ of the working directory."""
    return Path(os.environ.get("KRILL_OUTPUTS") or "outputs").absolute()


def find_user_config_dirs(asked: Sequence[str]) -> list[Path]:
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
    if any((here / group).is_dir() for group in list_config_groups()):
        found.append(here)
    return [
        folder for index, folder in enumerate(found) if folder != CONF_DIR and folder not in found[:index]
    ]


def list_config_groups(folder: Path = CONF_DIR) -> list[str]:
    """The configuration groups of a folder: model, data, tokenizer, … (hydra/ holds those of Hydra itself)"""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "hydra")


def list_config_options(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    """Option name → file, of one group over several folders, the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted((folder / group).glob("*.yaml")):
            if not file.name.startswith("_"):
                found.setdefault(file.stem, file)
    return found


def find_shadowed_configs(folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs (file used, file hidden behind it) of the same name in several folders."""
    used: dict[Path, Path] = {}
    hidden = []
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            first = used.setdefault(file.relative_to(folder), file)
            if first is not file and file.name != SITE_CONFIG_FILE:
                hidden.append((first, file))
    return hidden


def read_config_description(file: Path) -> str:
    """The sentence a configuration begins with: its first comment that is no directive."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("#"):
                break
            if not line.startswith("# @"):
                return line.lstrip("# ").strip()
    return ""
