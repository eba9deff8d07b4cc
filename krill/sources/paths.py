"""Resolves `data.paths` to files and reports all problems with them at once, before any work."""

from __future__ import annotations

import glob
import logging
import os
from pathlib import Path
from typing import NamedTuple

from krill.config.schema import FileEntryConfig, FilesDataConfig
from krill.errors import UsageError
from krill.sources.formats import SUPPORTED_FORMATS, parse_file_kind, read_beginning

log = logging.getLogger("krill")

_MAGIC_NUMBERS = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))),
}
"""First bytes of compressed files (RFC 1952; RFC 8878 including skippable frames)."""
_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16LE", b"\xfe\xff": "UTF-16BE"}
"""Byte order mark → name of the encoding."""


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
        if (problem := _find_problem(path, column)) and problem not in problems:
            problems.append(problem)
    if problems:
        raise UsageError("\n".join(["data.paths cannot be used:", *(f"  {problem}" for problem in problems)]))
    return entries


def _expand_entry(entry: str, problems: list[str]) -> list[Path]:
    """Returns the files of one entry (a file, a folder or a glob), sorted."""
    path = Path(entry).expanduser()
    if path.is_dir():
        return _list_readable_files(path, problems)
    if path.exists():
        return [path]
    if not glob.has_magic(entry):
        problems.append(f"{entry}: no such file or folder (relative to {Path.cwd()}); check data.paths")
        return []
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        problems.append(f"{entry}: matches no file (relative to {Path.cwd()}); check data.paths")
    files: list[Path] = []
    for match in matches:
        if not match.is_dir():
            files.append(match)
        elif "**" not in entry:
            files += _list_readable_files(match, problems)
    return files


def _list_readable_files(folder: Path, problems: list[str]) -> list[Path]:
    """Returns the supported files below a folder, without hidden ones, sorted."""
    all_files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    files = [path for path in all_files if parse_file_kind(path)[0]]
    if not files:
        problems.append(f"{folder}: has no file of a supported kind ({SUPPORTED_FORMATS})")
    elif len(files) < len(all_files):
        log.warning(
            "%s: ignoring %d files of other kinds (supported: %s)",
            folder, len(all_files) - len(files), SUPPORTED_FORMATS,
        )  # fmt: skip
    return files


def _find_problem(path: Path, column: str) -> str | None:
    """Returns why a file cannot be used, or None; reads only its beginning or footer."""
    kind, compression = parse_file_kind(path)
    if not kind:
        problem = f"is a {''.join(path.suffixes[-2:]) if compression else path.suffix} file"
        return (
            f"{path}: {problem if path.suffix else 'has no suffix'}; krill reads {SUPPORTED_FORMATS}. "
            "Convert it or remove it from data.paths"
        )
    if not os.access(path, os.R_OK):
        return f"{path}: permission denied; make it readable (chmod u+r)"
    if path.stat().st_size == 0:
        return f"{path}: is empty; recreate it or remove it from data.paths"
    if kind == ".parquet":
        from krill.sources.parquet import find_parquet_problem

        return find_parquet_problem(path, column)
    return (compression and _find_compression_problem(path, compression)) or _find_text_problem(
        path, kind, column
    )


def _find_compression_problem(path: Path, compression: str) -> str | None:
    with open(path, "rb") as file:
        if file.read(4).startswith(_MAGIC_NUMBERS[compression]):
            return None
    name = path.name.removesuffix(path.suffix)
    return (
        f"{path}: is not compressed with {compression} although its suffix says so; "
        f"rename it to {name} or recreate it"
    )


def _find_text_problem(path: Path, kind: str, column: str) -> str | None:
    try:
        beginning = read_beginning(path)
    except OSError as error:
        return f"{path}: cannot be read ({error}); recreate it or remove it from data.paths"
    if not beginning:
        return f"{path}: is empty; recreate it or remove it from data.paths"
    if encoding := _BYTE_ORDER_MARKS.get(beginning[:2]):
        return f"{path}: is {encoding}, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 OLD{kind} > NEW{kind}"
    if kind in (".csv", ".tsv"):
        from krill.sources.csv_reader import find_csv_problem

        return find_csv_problem(path, column)
    return None
