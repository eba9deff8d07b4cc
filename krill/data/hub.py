"""Documents from data sets of the Hugging Face Hub, read by the datasets library."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.config.schema import Hub, HubDataset
from krill.data.files import content_digest
from krill.data.source import Document, Source, distinct, no_column
from krill.errors import KrillError, UsageError

log = logging.getLogger("krill")


class HubSource(Source):
    """Data sets of the Hub (or folders that `datasets` reads), one after the other; each is one source."""

    def __init__(self, config: Hub) -> None:
        self._datasets = config.datasets
        paths = [dataset.path for dataset in config.datasets]
        full = [f"{dataset.path}:{dataset.split}" for dataset in config.datasets]
        super().__init__(distinct(paths, full))

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
                raise UsageError(no_column(where, column, names, "the text_column of data.datasets"))
            loaded = loaded.select_columns([column])
        for row, record in enumerate(loaded, 1):
            text = self.text(record, column, f"{where} row {row}")
            if text is not None:
                yield text


def _revision(path: str, split: str) -> Any:
    """Identity of a data set's content: a folder's file hashes, the Hub's commit, or the cached copy's."""
    if os.path.isdir(path):
        files = sorted(item for item in Path(path).rglob("*") if item.is_file())
        return [content_digest(file) for file in files]
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
