"""The kinds of sources: the built-in text, files, datasets of the Hub, a custom function."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from krill.config import custom_code
from krill.config.schema import (
    CustomDataConfig,
    DataConfig,
    FilesDataConfig,
    HubDataConfig,
    PythonDocsDataConfig,
)
from krill.errors import UsageError
from krill.sources import python_docs
from krill.sources.files import FileSource
from krill.sources.formats import TOO_LONG, is_longer
from krill.sources.hub import HubSource
from krill.sources.source import Document, Part, SkippedRecords, Source, identify_record_limit


def open_source(config: DataConfig, is_read_only: bool = False) -> Source:
    """Returns the source that `config` describes.

    Reads no more than both ends of files; datasets of the Hub are not looked up yet. `is_read_only`: hashes of
    files are not written to the cache. Raises one UsageError that names every file that is missing, empty or of an
    unsupported kind.
    """
    match config:
        case PythonDocsDataConfig():
            return PythonDocsSource()
        case FilesDataConfig():
            return FileSource(config, is_read_only)
        case HubDataConfig():
            return HubSource(config, is_read_only)
        case CustomDataConfig():
            return CustomSource(config)


class PythonDocsSource(Source):
    """The documentation inside CPython as one part; see `krill.sources.python_docs`."""

    def __init__(self) -> None:
        super().__init__(["python_docs"])
        python_docs.require_python_docs()

    def compute_fingerprint(self) -> Any:
        return {"python_docs": python_docs.fingerprint_python_docs()}

    def list_parts(self) -> list[Part]:
        return [Part(0, None, sum(len(text.encode()) for text in python_docs.read_python_docs()))]

    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        for number, text in enumerate(python_docs.read_python_docs(), 1):
            yield Document(text, (0, number))

    def describe_location(self, part: Part, location: tuple[int, int]) -> str:
        return f"python_docs: document {location[1]}"


class CustomSource(Source):
    """The texts that a custom function yields, as one part: nothing but their order is known."""

    def __init__(self, config: CustomDataConfig) -> None:
        super().__init__([config.name])
        self._config = config
        custom_code.import_custom_function(config.read)

    def compute_fingerprint(self) -> Any:
        """Covers the code and its options; the user names there what the code reads."""
        return {
            "code": custom_code.hash_custom_function(self._config.read),
            "options": self._config.options,
            **identify_record_limit(self._config.max_record_bytes),
        }

    def list_parts(self) -> list[Part]:
        return [Part(0, None, 1)]

    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        texts = custom_code.import_custom_function(self._config.read)(**self._config.options)
        if isinstance(texts, (str, bytes)) or not isinstance(
            texts, Iterable
        ):  # each letter would be a document
            raise UsageError(
                f"data.read={self._config.read}: returned {type(texts).__name__}; yield each text, or return a list"
            )
        for number, text in enumerate(texts, 1):
            if isinstance(text, str) and not is_longer(text, self._config.max_record_bytes):
                yield Document(text, (0, number))
            else:
                is_text = isinstance(text, str)
                reason = TOO_LONG.reason if is_text else f"is not text but {type(text).__name__}"
                skipped.add(reason, functools.partial(self.describe_location, part, (0, number)))

    def describe_location(self, part: Part, location: tuple[int, int]) -> str:
        return f"{self._config.read}: item {location[1]}"
