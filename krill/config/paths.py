"""The folders that configurations are read from and results are written to. Imports the standard library only."""

from __future__ import annotations

import os
import shlex
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
"""A file in hardware/ that is empty in krill's own configurations; a user's file of this name replaces it."""


def get_outputs_root() -> Path:
    """Returns the folder of all results: $KRILL_OUTPUTS, otherwise outputs/ in the working directory."""
    return Path(os.environ.get("KRILL_OUTPUTS") or "outputs").absolute()


def expand_home(path: str | Path) -> Path:
    """Returns `path` with ~ as a home folder; unchanged if there is no such user, whose folder is not found then."""
    return Path(os.path.expanduser(path))


def relative_path(path: Path) -> Path:
    """Returns `path` relative to the working directory if it is inside it, else unchanged."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def quote_path(path: Path) -> str:
    """Returns `relative_path` as an argument of a shell command, for a suggestion that the user can copy."""
    return shlex.quote(str(relative_path(path)))


def find_user_config_dirs(config_dirs: Sequence[str]) -> list[Path]:
    """Returns the user's configuration folders, highest precedence first: --config-dir, $KRILL_CONF, ./conf.

    ./conf counts only if it contains one of krill's groups, since other tools use that name too.

    Raises:
        UsageError: a folder of `config_dirs` (the values of --config-dir) or $KRILL_CONF does not exist, or its
            files would be ignored because it has no group.
    """
    names = [*config_dirs, *filter(None, os.environ.get("KRILL_CONF", "").split(os.pathsep))]
    for name in names:
        if problem := _find_folder_problem(Path(name)):
            raise UsageError(f"{problem} (--config-dir or KRILL_CONF)")
    folders = [Path(name).resolve() for name in names]
    local = Path("conf").resolve()
    if any((local / group).is_dir() for group in list_config_groups()):
        folders.append(local)
    return [
        folder for index, folder in enumerate(folders) if folder != CONF_DIR and folder not in folders[:index]
    ]


def _find_folder_problem(folder: Path) -> str | None:
    """Returns what is wrong with a folder of configurations, or None."""
    if folder.is_file():
        return f"{folder} is a file; name the folder that holds the folders model/, data/, experiment/ …"
    if not folder.is_dir():
        return f"no such configuration folder: {folder}"
    groups = [*list_config_groups(), "hydra"]
    if any((folder / group).is_dir() for group in groups) or any(folder.glob("*/*.yaml")):
        return None
    parents = [folder / "conf", folder.absolute().parent]
    better = [path for path in parents if any((path / group).is_dir() for group in groups)]
    if not better and not any(folder.glob("*.yaml")):
        return None  # nothing in it that would be ignored
    hint = f"use {relative_path(better[0])}" if better else "move its files into such folders"
    return f"{folder} has none of the folders model/, data/, experiment/ …; {hint}"


def list_config_groups(folder: Path = CONF_DIR) -> list[str]:
    """Returns the configuration groups of a folder: model, data, tokenizer, … without hydra/, Hydra's own."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "hydra")


def list_config_options(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    """Returns option name → file for one group in `folders`, highest precedence first."""
    options: dict[str, Path] = {}
    for folder in folders:
        for file in sorted((folder / group).glob("*.yaml")):
            if not file.name.startswith(("_", ".")):
                options.setdefault(file.stem, file)
    return options


def list_config_files(folder: Path) -> list[Path]:
    """Returns all YAML files of a configuration folder, without hidden ones, such as the links of an editor."""
    return sorted(file for file in folder.rglob("*.yaml") if not file.name.startswith(".") and file.is_file())


def find_shadowed_configs(folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Returns pairs (file used, file of the same name that it hides) for `folders`, highest precedence first."""
    used: dict[Path, Path] = {}
    hidden = []
    for folder in folders:
        for file in list_config_files(folder):
            first = used.setdefault(file.relative_to(folder), file)
            if first is not file and file.name != SITE_CONFIG_FILE:
                hidden.append((first, file))
    return hidden


def read_config_description(file: Path) -> str:
    """Returns the first comment of a configuration that is not a directive (# @package …), or an empty string."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("#"):
                break
            if not line.startswith("# @"):
                return line.lstrip("# ").strip()
    return ""
