"""Documents from data sets of the Hugging Face Hub, read by the datasets library.

Loaded (fetched once to the cache, then memory-mapped; parts are ranges of rows) or streamed (parts are the
data set's files).
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from krill.config.schema import HubDataConfig, HubDatasetConfig
from krill.errors import KrillError, UsageError
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
)

log = logging.getLogger("krill")

ASSUMED_SHARD_BYTES = 2**28
"""What a file of a streamed data set counts for: how long it is, is not known before it is read."""
STREAM_BATCH_ROWS = 1000
"""Rows that are read at once."""


class HubSource(Source):
    """Data sets of the Hub (or folders that `datasets` reads), one after the other; each is one source."""

    def __init__(self, config: HubDataConfig, is_read_only: bool = False) -> None:
        self._is_read_only = is_read_only
        self._datasets = config.datasets
        paths = [dataset.path for dataset in config.datasets]
        names = disambiguate_names(paths, [_format_dataset_name(dataset) for dataset in config.datasets])
        super().__init__(names, [dataset.weight for dataset in config.datasets])
        self._loaded_datasets: dict[int, Any] = {}
        """Data sets as `datasets` opened them: they pickle as names of files, so that workers ask no Hub."""

    def compute_fingerprint(self) -> Any:
        """Per data set its name, settings and commit; without a network that of the cached copy."""
        return [
            {
                "name": name,
                **dataset.model_dump(include={"config", "split", "text_column", "weight", "limit"}),
                "revision": self._get_revision(index),
            }
            for index, (name, dataset) in enumerate(zip(self.names, self._datasets, strict=True))
        ]

    def list_parts(self) -> list[Part]:
        sizes = [self._estimate_size(index) for index in range(len(self._datasets))]
        goal = compute_part_bytes(sum(sizes))
        parts: list[Part] = []
        for source, (dataset, size) in enumerate(zip(self._datasets, sizes, strict=True)):
            opened = self._open_dataset(source)
            # The units that can be read apart: rows of a loaded data set, files of a streamed one.
            units = opened.num_shards if _is_streaming(opened) else len(opened)
            step = 1 if _is_streaming(opened) else max(1, goal * units // size)
            if dataset.limit is not None:
                step = units
            for start in range(0, units, step):
                end = min(start + step, units)
                parts.append(Part(source, [start, end], size * (end - start) // units))
        return parts

    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        return islice(self._read_documents(part, skipped), self._datasets[part.source].limit)

    def describe_location(self, part: Part, place: tuple[int, int]) -> str:
        shard, row = place
        where, start = _format_dataset_name(self._datasets[part.source]), part.span[0]
        if _is_streaming(self._open_dataset(part.source)):
            return f"{where}: shard {start + shard}, row {row}"
        return f"{where}: row {start + row}"

    def _read_documents(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        dataset, opened, (start, end) = (
            self._datasets[part.source],
            self._open_dataset(part.source),
            part.span,
        )
        streams = _is_streaming(opened)
        for index in range(end - start if streams else 1):
            rows = (
                _read_dataset_shard(opened, start + index, dataset)
                if streams
                else _read_row_range(opened, start, end, dataset)
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
                place = self.describe_location(part, (index, number))
                raise KrillError(
                    f"{place}: what follows cannot be read ({type(error).__name__}: {error}). "
                    "The same command goes on from here"
                ) from error

    def _open_dataset(self, index: int) -> Any:
        if index not in self._loaded_datasets:
            dataset = self._datasets[index]
            opened = _load_dataset(dataset, _get_hub_commit(dataset.path))
            if opened.features is not None:
                _require_text_column(dataset, opened.features.arrow_schema)
            if not _is_streaming(opened) and not len(opened):
                raise UsageError(
                    f"{_format_dataset_name(dataset)}: holds no row; leave it out of data.datasets"
                )
            self._loaded_datasets[index] = opened
        return self._loaded_datasets[index]

    def _estimate_size(self, index: int) -> int:
        """Bytes that a data set counts for."""
        opened = self._open_dataset(index)
        if _is_streaming(opened):
            return ASSUMED_SHARD_BYTES * opened.num_shards
        return max(1, opened.data.column(self._datasets[index].text_column).nbytes)

    def _get_revision(self, index: int) -> Any:
        """Identity of a data set's content: a folder's files, the Hub's commit, or the cached copy's."""
        path = self._datasets[index].path
        if os.path.isdir(path):
            files = sorted(item for item in Path(path).rglob("*") if item.is_file())
            digests = hash_files_cached(files, self._is_read_only)
            return [f"{file.relative_to(path)} {digest}" for file, digest in zip(files, digests, strict=True)]
        commit = _get_hub_commit(path)
        if commit is not None:
            return commit
        # The cache names the folder of a data set by the commit it came from.
        cached = self._open_dataset(index)
        return (
            Path(cached.cache_files[0]["filename"]).parent.name if cached.cache_files else cached._fingerprint
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
    opened: Any, start: int, end: int, dataset: HubDatasetConfig
) -> Iterator[str | UnreadableRecord]:
    """The texts of a range of rows of a loaded data set."""
    column = opened.select_columns([dataset.text_column]).with_format("arrow")
    step = compute_batch_rows(len(opened), opened.data.column(dataset.text_column).nbytes)
    for at in range(start, end, step):
        yield from _read_table(column[at : min(at + step, end)], dataset)


def _read_dataset_shard(
    opened: Any, index: int, dataset: HubDatasetConfig
) -> Iterator[str | UnreadableRecord]:
    """The texts of one file of a streamed data set."""
    shard = opened.shard(num_shards=opened.num_shards, index=index)
    if opened.column_names is not None:
        shard = shard.select_columns([dataset.text_column])
    for table in shard.with_format("arrow").iter(batch_size=STREAM_BATCH_ROWS):
        _require_text_column(dataset, table.schema)
        yield from _read_table(table, dataset)


def _read_table(table: Any, dataset: HubDatasetConfig) -> Iterator[str | UnreadableRecord]:
    for chunk in table.column(dataset.text_column).chunks:
        yield from extract_texts(chunk, dataset.text_column)


@functools.cache
def _get_hub_commit(path: str) -> str | None:
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


def _load_dataset(dataset: HubDatasetConfig, commit: str | None) -> Any:
    """The data set, streamed if that is asked for and possible. Raises KrillError, UsageError."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    path, where = dataset.path, _format_dataset_name(dataset)
    load = functools.partial(load_dataset, path, dataset.config, split=dataset.split, revision=commit)
    try:
        if dataset.streaming and "[" in dataset.split:
            log.warning("%s: a slice is loaded, not streamed", where)
        elif dataset.streaming and (commit is not None or os.path.isdir(path)):
            try:
                return load(streaming=True)
            except ConnectionError as error:
                log.warning("%s: cannot be streamed (%s); a copy in the cache will do", where, error)
        return load()
    except DatasetNotFoundError as error:
        raise UsageError(f"{path}: {error}. If it is private or gated, log in (hf auth login)") from error
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
    except Exception as error:
        raise KrillError(
            f"{where}: cannot be loaded ({type(error).__name__}: {error}). "
            "Without a network it must be in the cache. Your own text: data=files data.paths=[text.jsonl]"
        ) from error
