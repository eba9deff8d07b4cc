"""Documents from files of this machine.

.jsonl  one JSON object a line                   .parquet  a string column
.json   the same, or one array of objects        .txt      one document: the whole file
        (an array is read into memory)
"""

from __future__ import annotations

import functools
import glob
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.config.schema import Files
from krill.config.signature import file_digest
from krill.data.source import Document, Source, distinct, no_column
from krill.errors import KrillError, UsageError

log = logging.getLogger("krill")

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
PARQUET_ROWS = 1000
"""Rows that are read at once."""


class FileSource(Source):
    """Files of this machine. Each entry of `data.paths` is one source, named by its last part."""

    def __init__(self, config: Files) -> None:
        self._column = config.text_column
        self._files = found(config)
        super().__init__(distinct([Path(entry).name or entry for entry in config.paths], config.paths))

    def fingerprint(self) -> Any:
        """The column, and per entry its name and the xxh3_128 of each file: a copy is the same data."""
        entries = [
            {"name": name, "files": [f"{_suffix(path)} {content_digest(path)}" for path in files]}
            for name, files in zip(self.names, self._files, strict=True)
        ]
        return {"text_column": self._column, "entries": entries}

    def documents(self) -> Iterator[Document]:
        self.skipped.clear()
        for name, files in zip(self.names, self._files, strict=True):
            for path in files:
                for text in self._texts(path):
                    yield Document(text, name)

    def _texts(self, path: Path) -> Iterator[str]:
        if _suffix(path) == ".txt":
            yield from self._whole(path)
        elif _suffix(path) == ".parquet":
            yield from self._parquet(path)
        else:
            yield from self._json(path)

    def _whole(self, path: Path) -> Iterator[str]:
        content = path.read_bytes()
        try:
            yield content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.skip(f"{path}:{line}", "invalid UTF-8")

    def _json(self, path: Path) -> Iterator[str]:
        skipped = self.skipped.total()
        records, found = 0, False
        columns: dict[str, None] = {}
        for line, record in self._array(path) if _is_array(path) else self._lines(path):
            records += 1
            if isinstance(record, dict) and not found:
                columns |= dict.fromkeys(record)
                found = self._column in record
            text = self.text(record, self._column, f"{path}:{line}")
            if text is not None:
                yield text
        if columns and not found:
            raise UsageError(no_column(str(path), self._column, list(columns)))
        if not records and self.skipped.total() == skipped:
            raise UsageError(f"{path}: holds no record; write it anew, or leave it out of data.paths")

    def _lines(self, path: Path) -> Iterator[tuple[int, Any]]:
        """(line number, record) of JSON lines; blank lines are nothing."""
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not content.strip():
                    continue
                try:
                    yield number, json.loads(content.decode())
                except UnicodeDecodeError:
                    self.skip(f"{path}:{number}", "invalid UTF-8")
                except (ValueError, RecursionError):
                    self.skip(f"{path}:{number}", "invalid JSON")

    def _array(self, path: Path) -> Iterator[tuple[str, Any]]:
        """("record n", record) of a file that is one JSON array."""
        try:
            records = json.loads(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: invalid UTF-8 at byte {error.start}") from error
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}:{error.lineno}: invalid JSON ({error.msg}); an array is read as a whole. "
                "Mend it, or write one object a line (.jsonl), where a bad line costs that line only"
            ) from error
        for number, record in enumerate(records, 1):
            yield f"record {number}", record

    def _parquet(self, path: Path) -> Iterator[str]:
        import pyarrow as pa

        row = 0
        try:
            for batch in _parquet_file(path).iter_batches(PARQUET_ROWS, columns=[self._column]):
                for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                    row += 1
                    try:
                        text = self.text(
                            {self._column: value and value.decode()}, self._column, f"{path}: row {row}"
                        )
                    except UnicodeDecodeError:
                        self.skip(f"{path}: row {row}", "invalid UTF-8")
                        continue
                    if text is not None:
                        yield text
        except (pa.ArrowException, OSError) as error:
            raise KrillError(
                f"{path}: cannot be read after row {row}: {error}. Write the file anew"
            ) from error


def found(config: Files) -> list[list[Path]]:
    """The files of each entry of `data.paths`; raises one UsageError that names every problem."""
    problems: list[str] = []
    found = [_expanded(entry, problems) for entry in config.paths]
    for path in dict.fromkeys(path for files in found for path in files):
        problem = _problem(path, config.text_column)
        if problem:
            problems.append(problem)
    if problems:
        raise UsageError("\n".join(["data.paths cannot be used:", *(f"  {problem}" for problem in problems)]))
    return found


def _expanded(entry: str, problems: list[str]) -> list[Path]:
    """The files of one entry, a file, a folder or a glob; sorted."""
    path = Path(entry).expanduser()
    if path.is_dir():
        return _inside(path, problems)
    if path.exists():
        return [path]
    if not glob.has_magic(entry):
        problems.append(f"{entry}: no such file or folder (seen from {Path.cwd()})")
        return []
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        problems.append(f"{entry}: matches no file (seen from {Path.cwd()})")
    files: list[Path] = []
    for match in matches:
        if not match.is_dir():
            files.append(match)
        elif "**" not in entry:
            files += _inside(match, problems)
    return files


def _inside(folder: Path, problems: list[str]) -> list[Path]:
    """The files below a folder that krill reads, hidden ones left out; sorted."""
    everything = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    files = [path for path in everything if _suffix(path) in SUFFIXES]
    if not files:
        problems.append(f"{folder}: holds no file that krill reads ({' '.join(SUFFIXES)})")
    elif len(files) < len(everything):
        log.warning(
            "%s: %d files of other kinds are not read (krill reads %s)",
            folder, len(everything) - len(files), " ".join(SUFFIXES),
        )  # fmt: skip
    return files


def _problem(path: Path, column: str) -> str | None:
    """Why a file cannot be used; None if it looks well."""
    if _suffix(path) not in SUFFIXES:
        kind = f"is a {path.suffix} file" if path.suffix else "has no suffix"
        return f"{path}: {kind}; krill reads {' '.join(SUFFIXES)}: convert it, or leave it out of data.paths"
    if not os.access(path, os.R_OK):
        return f"{path}: may not be read; give yourself the right to (chmod u+r)"
    if path.stat().st_size == 0:
        return f"{path}: is empty; write it anew, or leave it out of data.paths"
    return _parquet_problem(path, column) if _suffix(path) == ".parquet" else None


def _parquet_problem(path: Path, column: str) -> str | None:
    import pyarrow as pa

    try:
        file = _parquet_file(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        return f"{path}: is no whole Parquet file ({reason}); write it anew, or leave it out of data.paths"
    if file.metadata.num_rows == 0:
        return f"{path}: holds no row; leave it out of data.paths"
    if column not in file.schema_arrow.names:
        return no_column(str(path), column, file.schema_arrow.names)
    kind = file.schema_arrow.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return f"{path}: column {column} holds {kind}, not text; choose another with data.text_column="
    return None


def _parquet_file(path: Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path)


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _is_array(path: Path) -> bool:
    """A .json file whose first character opens an array."""
    if _suffix(path) != ".json":
        return False
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def content_digest(path: Path) -> str:
    """xxh3_128 of a file; within a process a file that has not changed is not read again."""
    status = path.stat()
    return _digest_of(path.absolute(), status.st_size, status.st_mtime_ns)


@functools.cache
def _digest_of(path: Path, size: int, modified: int) -> str:
    return file_digest(path)
