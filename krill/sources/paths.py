"""Resolves `data.paths` to files and reports all problems with them at once, before any work."""

from __future__ import annotations

import functools
import glob
import logging
import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

from krill.config.schema import FileEntryConfig, FilesDataConfig
from krill.errors import UsageError
from krill.sources.file_checks import find_file_problem
from krill.sources.folders import (
    MAX_LISTED_PROBLEMS,
    find_broken_links,
    find_unreadable,
    list_folder,
    walk_folder,
)
from krill.sources.formats import SUPPORTED_FORMATS, parse_file_kind
from krill.sources.parquet import has_rows

log = logging.getLogger("krill")


class PathEntry(NamedTuple):
    """One entry of `data.paths`."""

    path: str
    """The path as given in data.paths."""
    files: list[Path]
    """Sorted."""
    column: str
    weight: float
    limit: int | None


def resolve_paths(config: FilesDataConfig) -> list[PathEntry]:
    """Returns the entries of `data.paths` with their files; raises one UsageError that lists every problem."""
    problems: list[str] = []
    entries: list[PathEntry] = []
    for item in config.paths:
        entry = FileEntryConfig(path=item) if isinstance(item, str) else item
        files = _expand_entry(entry.path, problems)
        column = entry.text_column or config.text_column
        entries.append(PathEntry(entry.path, files, column, entry.weight, entry.limit))
    for path, column in dict.fromkeys((path, entry.column) for entry in entries for path in entry.files):
        if problem := find_file_problem(path, column):
            problems.append(problem)
    if not problems:
        entries = [_without_empty_parquet(entry, problems) for entry in entries]
    if problems:
        lines = list(dict.fromkeys(problems))
        if num_others := len(lines[MAX_LISTED_PROBLEMS:]):
            lines[MAX_LISTED_PROBLEMS:] = [f"and {num_others:,} more"]
        raise UsageError("\n".join(["data.paths cannot be used:", *(f"  {line}" for line in lines)]))
    return entries


def _expand_entry(entry: str, problems: list[str]) -> list[Path]:
    """Returns the files of one entry (a file, a folder or a glob), sorted."""
    if not entry.strip():
        problems.append(
            "'' is not a path (an unset variable of the shell?); use data.paths=[.] for this folder"
        )
        return []
    path = Path(_match_unicode_form(os.path.expanduser(entry)))
    if os.path.isdir(path):
        return _list_supported_files(path, problems)
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(entry):
        problems.append(f"{entry}: no such file or folder (relative to {Path.cwd()}); check data.paths")
        return []
    matches = [Path(match) for match in sorted({str(Path(match)) for match in _glob(str(path), problems)})]
    if "**" in path.parts:  # which matches the files in the folders, too
        matches = [match for match in matches if not match.is_dir()]
    if not matches:
        problems.append(f"{entry}: matches no file (relative to {Path.cwd()}); check data.paths")
    files: list[Path] = []
    for match in matches:
        files += _list_supported_files(match, problems) if match.is_dir() else [match]
    return files


def _glob(pattern: str, problems: list[str]) -> list[str]:
    """Returns the paths that match; ** visits each folder once, also where links lead in a circle.

    Adds to `problems` each link to nothing and unreadable folder that the pattern would enter.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        for end in range(1, len(parts)):
            if glob.has_magic(parts[end - 1]):
                problems += find_unreadable(glob.glob("/".join(parts[:end])))
        return glob.glob(pattern)
    index = parts.index("**")
    rest = "/".join(parts[index + 1 :]) or "*"
    prefix = "/".join(parts[:index]) or ("/" if pattern.startswith("/") else ".")
    matches: list[str] = []
    for base in filter(os.path.isdir, glob.glob(prefix)):
        for folder, names in walk_folder(Path(base), problems):
            problems += find_broken_links(os.path.join(folder, name) for name in names)
            matches += _glob(f"{glob.escape(folder)}/{rest}", problems)
    return matches


def _match_unicode_form(path: str) -> str:
    """Returns the path with each component in the Unicode form that exists: macOS writes names in NFD."""
    matched: list[str] = []
    for part in path.split("/"):
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        matched.append(next((form for form in forms if os.path.lexists("/".join([*matched, form]))), part))
    return "/".join(matched)


def _list_supported_files(folder: Path, problems: list[str]) -> list[Path]:
    """Returns the files below a folder of supported kinds, sorted."""
    num_problems = len(problems)
    all_files = list_folder(folder, problems)
    files = [path for path in all_files if parse_file_kind(path)[0]]
    if not files and len(problems) == num_problems:
        problems.append(f"{folder}: has no file of a supported kind ({SUPPORTED_FORMATS})")
    elif len(files) < len(all_files):
        _warn_of_other_kinds(folder, len(all_files) - len(files))
    return files


def _without_empty_parquet(entry: PathEntry, problems: list[str]) -> PathEntry:
    """Returns the entry without the Parquet files without rows that writers such as Spark leave in a folder."""
    empty = {path for path in entry.files if path.suffix.lower() == ".parquet" and not has_rows(path)}
    files = [path for path in entry.files if path not in empty]
    if not files:
        problems.append(f"{entry.path}: has no rows; remove it from data.paths")
    elif empty:
        _warn_of_empty_parquet(entry.path, len(empty))
    return entry._replace(files=files)


@functools.cache
def _warn_of_empty_parquet(entry: str, count: int) -> None:
    log.warning("%s: ignoring %d Parquet files without rows", entry, count)


@functools.cache  # a command resolves its paths again after the work
def _warn_of_other_kinds(folder: Path, count: int) -> None:
    log.warning("%s: ignoring %d files of other kinds (supported: %s)", folder, count, SUPPORTED_FORMATS)
