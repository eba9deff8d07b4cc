"""Where documents come from: the built-in text, files, data sets of the Hugging Face Hub.

Every source streams: memory does not grow with the corpus. A record that cannot be read (a cut line, invalid
UTF-8, no text) costs that record only: it is skipped, counted by reason in `skipped`, and the first few are
named in a warning, file and line. What concerns a whole file (missing, empty, no column) is a UsageError.

    .jsonl  one JSON object a line                   .parquet  a string column
    .json   the same, or one array of objects        .txt      one document: the whole file
            (an array is read into memory)
"""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from krill.config import own_code
from krill.config.schema import CustomData, Data, Files, Hub, HubDataset, PythonDocs
from krill.config.signature import file_digest
from krill.data import python_docs
from krill.errors import KrillError, UsageError

log = logging.getLogger("krill")

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
WARNINGS = 3
"""So many skipped records are named per reason; all are counted."""
PARQUET_ROWS = 1000
"""Rows that are read at once."""


class Document(NamedTuple):
    """One text as it was found."""

    text: str
    source: str
    """One of the source's `names`."""


class Source(ABC):
    """Documents in a fixed order. `skipped` counts, by reason, the records that gave none."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        """What the documents' sources are called; no two alike."""
        self.skipped: Counter[str] = Counter()

    @abstractmethod
    def fingerprint(self) -> Any:
        """JSON value that changes when the text does."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield the documents; each call begins anew. Raises UsageError for a file that gives none."""

    def skip(self, place: str, reason: str) -> None:
        """Count a record that cannot be read."""
        self.skipped[reason] += 1
        if self.skipped[reason] <= WARNINGS:
            log.warning("%s: %s; skipped", place, reason)
        elif self.skipped[reason] == WARNINGS + 1:
            log.warning("%s: further records are counted, not named", reason)

    def text(self, record: Any, column: str, place: str) -> str | None:
        """The text of a record; None, counted, if it has none."""
        if not isinstance(record, dict):
            self.skip(place, "not a JSON object")
        elif record.get(column) is None:
            self.skip(place, f"{column!r} is null" if column in record else f"no {column!r}")
        elif not isinstance(record[column], str):
            self.skip(place, f"{column!r} is not text but {type(record[column]).__name__}")
        else:
            return record[column]
        return None


def open_source(config: Data) -> Source:
    """The source that `config` describes. Raises UsageError as `check` does."""
    match config:
        case PythonDocs():
            return PythonDocsSource()
        case Files():
            return FileSource(config)
        case Hub():
            return HubSource(config)
        case CustomData():
            return CustomSource(config)


def check(config: Data) -> None:
    """Raise one UsageError naming every file that is missing, empty or of a kind that krill does not read.

    Reads no more than the ends of files. Data sets of the Hub are not looked up.
    """
    if isinstance(config, PythonDocs):
        python_docs.check()
    elif isinstance(config, Files):
        _files(config)
    elif isinstance(config, CustomData):
        own_code.load(config.read)


# --- the built-in text -------------------------------------------------------------------------------------


class PythonDocsSource(Source):
    """The documentation inside CPython; see `krill.data.python_docs`."""

    def __init__(self) -> None:
        super().__init__(["python_docs"])
        python_docs.check()

    def fingerprint(self) -> Any:
        return {"python_docs": python_docs.fingerprint()}

    def documents(self) -> Iterator[Document]:
        for text in python_docs.documents():
            yield Document(text, self.names[0])


# --- a person's own ----------------------------------------------------------------------------------------


class CustomSource(Source):
    """Texts that a person's own function yields."""

    def __init__(self, config: CustomData) -> None:
        super().__init__([config.name])
        self._config = config

    def fingerprint(self) -> Any:
        """The code and its options: what they read is the person's to name there."""
        return {"code": own_code.digest(self._config.read), "options": self._config.options}

    def documents(self) -> Iterator[Document]:
        for index, text in enumerate(own_code.load(self._config.read)(**self._config.options)):
            if isinstance(text, str):
                yield Document(text, self.names[0])
            else:
                self.skip(f"{self._config.read}, item {index}", f"is not text but {type(text).__name__}")


# --- files -------------------------------------------------------------------------------------------------


class FileSource(Source):
    """Files of this machine. Each entry of `data.paths` is one source, named by its last part."""

    def __init__(self, config: Files) -> None:
        self._column = config.text_column
        self._files = _files(config)
        super().__init__(_distinct([Path(entry).name or entry for entry in config.paths], config.paths))

    def fingerprint(self) -> Any:
        """The column, and per entry its name and the xxh3_128 of each file: a copy is the same data."""
        entries = [
            {"name": name, "files": [f"{_suffix(path)} {_digest(path)}" for path in files]}
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
            raise UsageError(_no_column(str(path), self._column, list(columns)))
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


def _files(config: Files) -> list[list[Path]]:
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
        return _no_column(str(path), column, file.schema_arrow.names)
    kind = file.schema_arrow.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return f"{path}: column {column} holds {kind}, not text; choose another with data.text_column="
    return None


def _parquet_file(path: Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path)


def _no_column(where: str, column: str, columns: list[str], key: str = "data.text_column") -> str:
    return f"{where}: no column {column!r}; it has {', '.join(columns)}. Name the one with the text: {key}="


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _is_array(path: Path) -> bool:
    """A .json file whose first character opens an array."""
    if _suffix(path) != ".json":
        return False
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _digest(path: Path) -> str:
    """xxh3_128 of a file; within a process a file that has not changed is not read again."""
    status = path.stat()
    return _digest_of(path.absolute(), status.st_size, status.st_mtime_ns)


@functools.cache
def _digest_of(path: Path, size: int, modified: int) -> str:
    return file_digest(path)


def _distinct(names: list[str], full: list[str]) -> list[str]:
    """Short names where they differ, else the full ones, numbered where even those are alike."""
    chosen = [name if names.count(name) == 1 else other for name, other in zip(names, full, strict=True)]
    return [name if chosen.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(chosen, 1)]


# --- the Hugging Face Hub ----------------------------------------------------------------------------------


class HubSource(Source):
    """Data sets of the Hub (or folders that `datasets` reads), one after the other; each is one source."""

    def __init__(self, config: Hub) -> None:
        self._datasets = config.datasets
        paths = [dataset.path for dataset in config.datasets]
        full = [f"{dataset.path}:{dataset.split}" for dataset in config.datasets]
        super().__init__(_distinct(paths, full))

    def fingerprint(self) -> Any:
        """Per data set its name, split, column and commit; without a network that of the cached copy."""
        return [
            {
                "name": name,
                "split": dataset.split,
                "text_column": dataset.text_column,
                "revision": _revision(dataset.path, dataset.split),
            }
            for name, dataset in zip(self.names, self._datasets, strict=True)
        ]

    def documents(self) -> Iterator[Document]:
        self.skipped.clear()
        for name, dataset in zip(self.names, self._datasets, strict=True):
            for text in self._texts(dataset):
                yield Document(text, name)

    def _texts(self, dataset: HubDataset) -> Iterator[str]:
        where, column = f"{dataset.path}:{dataset.split}", dataset.text_column
        loaded = _load(dataset.path, dataset.split, _hub_commit(dataset.path))
        names = loaded.column_names
        if names is not None:
            if column not in names:
                raise UsageError(_no_column(where, column, names, "the text_column of data.datasets"))
            loaded = loaded.select_columns([column])
        for row, record in enumerate(loaded, 1):
            text = self.text(record, column, f"{where} row {row}")
            if text is not None:
                yield text


def _revision(path: str, split: str) -> Any:
    """Identity of a data set's content: a folder's file hashes, the Hub's commit, or the cached copy's."""
    if os.path.isdir(path):
        files = sorted(item for item in Path(path).rglob("*") if item.is_file())
        return [_digest(file) for file in files]
    commit = _hub_commit(path)
    if commit is not None:
        return commit
    # The cache names the folder of a data set by the commit it came from.
    cached = _load(path, split, None)
    return Path(cached.cache_files[0]["filename"]).parent.name if cached.cache_files else cached._fingerprint


@functools.cache
def _hub_commit(path: str) -> str | None:
    """The Hub's newest commit of a data set, without a network the last one seen; None if unknown.

    A snapshot of two small files tells it and leaves it in the Hub's cache: what was prepared where there is
    a network is found again where there is none. Raises UsageError if this user cannot see such a data set.
    """
    if os.path.isdir(path):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        snapshot = snapshot_download(
            path, repo_type="dataset", allow_patterns=["README.md", ".gitattributes"]
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"{path}: the Hugging Face Hub has no such data set, or you may not see it. "
            "Check data.datasets, or log in (hf auth login, HF_TOKEN)"
        ) from error
    except Exception as error:
        log.warning("%s: the Hugging Face Hub cannot be asked (%s)", path, type(error).__name__)
        return None
    return Path(snapshot).name


def _load(path: str, split: str, commit: str | None) -> Any:
    """The data set; streamed if it is on the Hub and no slice is asked for. Raises KrillError, UsageError."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        if commit is not None and "[" not in split:
            # Without a network there is nothing to stream; a cached copy will do.
            with contextlib.suppress(ConnectionError):
                return load_dataset(path, split=split, revision=commit, streaming=True)
        return load_dataset(path, split=split, revision=commit)
    except DatasetNotFoundError as error:
        raise UsageError(f"{path}: {error}. If it is private or gated, log in (hf auth login)") from error
    except ValueError as error:
        raise UsageError(f"{path}, split {split}: {error}") from error
    except Exception as error:
        raise KrillError(
            f"{path}, split {split}: cannot be loaded ({type(error).__name__}: {error}). "
            "Without a network it must be in the cache. Your own text: data=files data.paths=[text.jsonl]"
        ) from error
