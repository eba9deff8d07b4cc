"""Documents from datasets of the Hugging Face Hub, read with the datasets library.

A dataset is either loaded (downloaded once to the cache, then memory-mapped; parts are ranges of rows) or
streamed (parts are the dataset's files).

`datasets` caches the text of a local folder by its README and its last name. krill gives each content of a folder a
cache of its own, so that neither an older content nor another folder is read from it.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from krill.config.schema import HubDataConfig, HubDatasetConfig
from krill.errors import KrillError, UsageError
from krill.sources.file_checks import find_pointer_problem
from krill.sources.folders import MAX_LISTED_PROBLEMS, list_folder
from krill.sources.formats import UnreadableRecord
from krill.sources.hash_cache import hash_files_cached
from krill.sources.parquet import compute_batch_rows, extract_texts, find_column_problem
from krill.sources.source import (
    Document,
    Part,
    SkippedRecords,
    Source,
    compute_part_bytes,
    disambiguate_names,
    identify_record_limit,
)

log = logging.getLogger("krill")

ASSUMED_SHARD_BYTES = 2**28
"""Assumed size of a file of a streamed dataset; the actual size is unknown until it is read."""
STREAM_BATCH_ROWS = 1000
"""Rows per batch of a streamed dataset."""
MAX_REASON_CHARACTERS = 400
"""Maximum length of a message of `datasets` within an error; schemas can be long."""


class HubSource(Source):
    """Reads datasets of the Hub, or folders that `datasets` can read, in order; each is one source."""

    def __init__(self, config: HubDataConfig, is_read_only: bool = False) -> None:
        self._is_read_only = is_read_only
        self._datasets = config.datasets
        self._max_record_bytes = config.max_record_bytes
        paths = [dataset.path for dataset in config.datasets]
        names = disambiguate_names(paths, [_format_dataset_name(dataset) for dataset in config.datasets])
        super().__init__(names, [dataset.weight for dataset in config.datasets])
        self._loaded_datasets: dict[int, Any] = {}
        """Opened datasets by index. They pickle as file names, so workers do not access the Hub."""

    def compute_fingerprint(self) -> Any:
        """Returns the name, settings and commit of each dataset; offline, the commit of the cached copy."""
        return [
            {
                "name": name,
                **dataset.model_dump(include={"config", "split", "text_column", "weight", "limit"}),
                "revision": self._get_revision(index),
                **identify_record_limit(self._max_record_bytes),
            }
            for index, (name, dataset) in enumerate(zip(self.names, self._datasets, strict=True))
        ]

    def list_parts(self) -> list[Part]:
        sizes = [self._estimate_size(index) for index in range(len(self._datasets))]
        part_bytes = compute_part_bytes(sum(sizes))
        parts: list[Part] = []
        for source, (dataset, size) in enumerate(zip(self._datasets, sizes, strict=True)):
            opened = self._open_dataset(source)
            # Units that can be read independently: rows of a loaded dataset, files of a streamed one.
            units = opened.num_shards if _is_streaming(opened) else len(opened)
            step = 1 if _is_streaming(opened) else max(1, part_bytes * units // size)
            if dataset.limit is not None:
                step = units
            for start in range(0, units, step):
                end = min(start + step, units)
                parts.append(Part(source, [start, end], size * (end - start) // units))
        return parts

    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        return islice(self._read_documents(part, skipped), self._datasets[part.source].limit)

    def describe_location(self, part: Part, location: tuple[int, int]) -> str:
        file, row = location
        name, start = _format_dataset_name(self._datasets[part.source]), part.span[0]
        if _is_streaming(self._open_dataset(part.source)):
            return f"{name}: file {start + file}, row {row}"
        return f"{name}: row {start + row}"

    def _read_documents(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        dataset, opened, (start, end) = (
            self._datasets[part.source],
            self._open_dataset(part.source),
            part.span,
        )
        is_streaming = _is_streaming(opened)
        for index in range(end - start if is_streaming else 1):
            rows = (
                _read_dataset_shard(opened, start + index, dataset, self._max_record_bytes)
                if is_streaming
                else _read_row_range(opened, start, end, dataset, self._max_record_bytes)
            )
            number = 0
            try:
                for number, text in enumerate(rows, 1):
                    if isinstance(text, str):
                        yield Document(text, (index, number))
                    else:
                        skipped.add(
                            text.reason, functools.partial(self.describe_location, part, (index, number))
                        )
            except UsageError:
                raise
            except Exception as error:
                location = self.describe_location(part, (index, number))
                raise KrillError(
                    f"{location}: the rest cannot be read ({type(error).__name__}: {error}). "
                    "Run the same command to resume"
                ) from error

    def _open_dataset(self, index: int) -> Any:
        if index not in self._loaded_datasets:
            dataset = self._datasets[index]
            if os.path.isdir(dataset.path):
                opened = self._load_folder(dataset)
            else:
                commit = _get_hub_commit(dataset.path)
                opened = _load_dataset(dataset, commit)
                _require_commit(dataset, opened, commit)
            if opened.features is not None:
                _require_text_column(dataset, opened.features.arrow_schema)
            if not _is_streaming(opened) and not len(opened):
                raise UsageError(
                    f"{_format_dataset_name(dataset)}: has no rows; remove it from data.datasets"
                )
            self._loaded_datasets[index] = opened
        return self._loaded_datasets[index]

    def _load_folder(self, dataset: HubDatasetConfig) -> Any:
        """Opens a local folder with a cache of `datasets` for its present content alone."""
        import datasets.config

        before = _identify_folder(dataset, self._is_read_only)
        name = f"krill-{xxhash.xxh3_64_hexdigest(json.dumps(before).encode())}"
        cache = Path(datasets.config.HF_DATASETS_CACHE, name)
        opened = _load_dataset(dataset, None, cache)
        if _identify_folder(dataset, self._is_read_only) != before:
            shutil.rmtree(cache, ignore_errors=True)
            raise UsageError(
                f"{_format_dataset_name(dataset)}: changed while it was read; run the same command again when "
                "nothing writes to it"
            )
        return opened

    def _estimate_size(self, index: int) -> int:
        """Returns the size of a dataset in bytes, estimated if it is streamed."""
        opened = self._open_dataset(index)
        if _is_streaming(opened):
            return ASSUMED_SHARD_BYTES * opened.num_shards
        return max(1, opened.data.column(self._datasets[index].text_column).nbytes)

    def _get_revision(self, index: int) -> Any:
        """Returns the identity of the content: a folder's file hashes, or the commit of the Hub or cached copy."""
        path = self._datasets[index].path
        if os.path.isdir(path):
            return _identify_folder(self._datasets[index], self._is_read_only)
        commit = _get_hub_commit(path)
        if commit is not None:
            return commit
        # The cache names the folder of a dataset after its commit.
        cached = self._open_dataset(index)
        return _get_cached_commit(cached) or cached._fingerprint


def _get_cached_commit(opened: Any) -> str | None:
    """Returns the commit of a loaded dataset, after which the cache names its folder; None if it is streamed."""
    files = [] if _is_streaming(opened) else opened.cache_files
    return Path(files[0]["filename"]).parent.name if files else None


def _require_commit(dataset: HubDatasetConfig, opened: Any, commit: str | None) -> None:
    """Raises KrillError if `datasets` used a cached copy of another commit: the Hub was unreachable."""
    cached = _get_cached_commit(opened)
    is_commit = re.fullmatch("[0-9a-f]{40}", cached or "")  # old caches have other names
    if cached is not None and commit is not None and is_commit and cached != commit:
        raise KrillError(
            f"{_format_dataset_name(dataset)}: commit {commit[:8]} cannot be downloaded, and the cache has "
            f"{cached[:8]}. Run the same command again when the Hugging Face Hub can be reached"
        )


def _format_dataset_name(dataset: HubDatasetConfig) -> str:
    return ":".join(filter(None, (dataset.path, dataset.config, dataset.split)))


def _is_streaming(opened: Any) -> bool:
    from datasets import IterableDataset

    return isinstance(opened, IterableDataset)


def _require_text_column(dataset: HubDatasetConfig, schema: Any) -> None:
    problem = find_column_problem(
        _format_dataset_name(dataset), dataset.text_column, schema, "the text_column of data.datasets"
    )
    if problem:
        raise UsageError(problem)


def _read_row_range(
    opened: Any, start: int, end: int, dataset: HubDatasetConfig, max_bytes: int
) -> Iterator[str | UnreadableRecord]:
    """Yields the texts of a range of rows of a loaded dataset."""
    column = opened.select_columns([dataset.text_column]).with_format("arrow")
    step = compute_batch_rows(len(opened), opened.data.column(dataset.text_column).nbytes)
    for first in range(start, end, step):
        yield from _read_table(column[first : min(first + step, end)], dataset, max_bytes)


def _read_dataset_shard(
    opened: Any, index: int, dataset: HubDatasetConfig, max_bytes: int
) -> Iterator[str | UnreadableRecord]:
    """Yields the texts of one file of a streamed dataset."""
    shard = opened.shard(num_shards=opened.num_shards, index=index)
    if opened.column_names is not None:
        shard = shard.select_columns([dataset.text_column])
    for table in shard.with_format("arrow").iter(batch_size=STREAM_BATCH_ROWS):
        _require_text_column(dataset, table.schema)
        yield from _read_table(table, dataset, max_bytes)


def _read_table(table: Any, dataset: HubDatasetConfig, max_bytes: int) -> Iterator[str | UnreadableRecord]:
    for chunk in table.column(dataset.text_column).chunks:
        yield from extract_texts(chunk, dataset.text_column, max_bytes)


def _identify_folder(dataset: HubDatasetConfig, is_read_only: bool) -> list[str]:
    """Returns name and hash of each file that `datasets` reads for a local folder; remote files by URL.

    The files that say how to read the others are among them; hidden and other files are not.
    """
    from datasets import load_dataset_builder
    from datasets.config import DATASETDICT_INFOS_FILENAME, REPOCARD_FILENAME, REPOYAML_FILENAME

    folder = Path(dataset.path).absolute()
    problems: list[str] = []
    list_folder(folder, problems)  # datasets leaves out what it cannot list
    if problems:
        raise UsageError("\n".join(problems[:MAX_LISTED_PROBLEMS]))
    with _explain_errors(dataset):
        builder = load_dataset_builder(dataset.path, dataset.config)
    files = {folder / name for name in (REPOCARD_FILENAME, REPOYAML_FILENAME, DATASETDICT_INFOS_FILENAME)}
    files = {file for file in files if file.is_file()}
    remote_files = set()
    for data_files in (builder.config.data_files or {}).values():
        metadata = data_files.origin_metadata
        if num_others := len(metadata) - len(data_files):  # of all files that matched
            metadata = [tuple(itertools.chain(*metadata))] * len(data_files)
            _warn_of_other_kinds(dataset.path, num_others)
        for url, revision in zip(data_files, metadata, strict=True):
            path = url.rpartition("::")[2]  # archive members are written zip://member::archive
            if "://" in path:
                remote_files.add(" ".join([url, *revision]))
            else:
                files.add(Path(path))
    if problems := [problem for file in sorted(files) if (problem := find_pointer_problem(file))]:
        raise UsageError("\n".join(problems[:MAX_LISTED_PROBLEMS]))
    by_name = {_get_relative_path(file, folder): file for file in files}
    names = sorted(by_name)
    digests = hash_files_cached([by_name[name] for name in names], is_read_only)
    return [*(f"{name} {digest}" for name, digest in zip(names, digests, strict=True)), *sorted(remote_files)]


@functools.cache  # a command identifies its folders again after the work
def _warn_of_other_kinds(path: str, count: int) -> None:
    log.warning(
        "hub         %s: datasets reads the files of one kind and leaves out %d of other kinds; to read all: "
        "data=files data.paths=[%s]", path, count, path,
    )  # fmt: skip


def _get_relative_path(file: Path, folder: Path) -> Path:
    """Returns the path relative to the folder, which `datasets` may have resolved; that of a file elsewhere."""
    for root in (folder, folder.resolve()):
        if file.is_relative_to(root):
            return file.relative_to(root)
    return file


@functools.cache
def _get_hub_commit(path: str) -> str | None:
    """Returns the newest commit of a dataset on the Hub, offline the last one seen; None if unknown.

    Downloads a snapshot of two small files, which records the commit in the Hub's cache: data prepared online is
    found again offline. Raises UsageError if the dataset does not exist or is not accessible.
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
            f"{path}: no such dataset on the Hugging Face Hub, or you do not have access to it. "
            "Check data.datasets, or log in (hf auth login, HF_TOKEN)"
        ) from error
    except Exception as error:
        log.warning("hub         %s: the Hugging Face Hub cannot be reached (%s)", path, type(error).__name__)
        return None
    return Path(snapshot).name


def _load_dataset(dataset: HubDatasetConfig, commit: str | None, cache: Path | None = None) -> Any:
    """Opens the dataset, streamed if requested and possible.

    `cache`: the cache folder of `datasets`; None: its default. Raises UsageError for a dataset, configuration or
    split that does not exist and for files that cannot be read, KrillError if loading fails.
    """
    from datasets import load_dataset

    path, name = dataset.path, _format_dataset_name(dataset)
    load = functools.partial(
        load_dataset,
        path,
        dataset.config,
        split=dataset.split,
        revision=commit,
        cache_dir=cache and str(cache),
    )
    with _explain_errors(dataset):
        if dataset.streaming and "[" in dataset.split:
            log.warning("hub         %s: a slice is loaded, not streamed", name)
        elif dataset.streaming and (commit is not None or os.path.isdir(path)):
            try:
                return load(streaming=True)
            except ConnectionError as error:
                log.warning("hub         %s: cannot be streamed (%s); using the cached copy", name, error)
        return load()


@contextmanager
def _explain_errors(dataset: HubDatasetConfig) -> Iterator[None]:
    """Replaces errors of `datasets` by errors that say what to do."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    path, name = dataset.path, _format_dataset_name(dataset)
    try:
        yield
    except DatasetNotFoundError as error:
        raise UsageError(f"{path}: {error}. If it is private or gated, log in (hf auth login)") from error
    except Exception as error:
        reason = _describe_cause(error)
        if "save_to_disk" in reason:
            parquet = f"{path.rstrip('/')}.parquet"
            raise UsageError(
                f'{name}: was written by save_to_disk; write it as Parquet: python -c "import datasets; '
                f"datasets.load_from_disk('{path}').to_parquet('{parquet}')\", and use data=files "
                f"data.paths=[{parquet}]"
            ) from error
        if isinstance(error, ValueError) and re.search("config|split", reason, re.IGNORECASE):
            raise UsageError(f"{name}: {reason}; check config= and split= in data.datasets") from error
        if os.path.isdir(path) and isinstance(error, FileNotFoundError):
            raise UsageError(
                f"{name}: {reason}; check path= in data.datasets and data_files in the folder's README.md"
            ) from error
        if os.path.isdir(path) and isinstance(error, (ValueError, DatasetsError)):
            raise UsageError(
                f"{name}: cannot be read ({reason}). krill's own reader needs only the text column, and skips "
                f"damaged records: data=files data.paths=[{path}]"
            ) from error
        raise KrillError(
            f"{name}: cannot be loaded ({reason}). Offline it must be in the cache. To use your own text: "
            "data=files data.paths=[text.jsonl]"
        ) from error


def _describe_cause(error: BaseException) -> str:
    """Returns type and message of the original error in one line; a long message without its middle."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if len(reason) > MAX_REASON_CHARACTERS:
        half = MAX_REASON_CHARACTERS // 2
        reason = f"{reason[:half]} … {reason[-half:]}"
    return reason
