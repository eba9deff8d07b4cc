"""The sources there are: the built-in text, files, data sets of the Hub, a person's own function."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from krill.config import custom_code
from krill.config.schema import (
    CustomDataConfig,
    DataConfig,
    FilesDataConfig,
    HubDataConfig,
    PythonDocsDataConfig,
)
from krill.sources import paths, python_docs
from krill.sources.files import FileSource
from krill.sources.hub import HubSource
from krill.sources.source import Document, Part, SkippedRecords, Source


def open_source(config: DataConfig) -> Source:
    """The source that `config` describes. Raises UsageError as `check_source` does."""
    match config:
        case PythonDocsDataConfig():
            return PythonDocsSource()
        case FilesDataConfig():
            return FileSource(config)
        case HubDataConfig():
            return HubSource(config)
        case CustomDataConfig():
            return CustomSource(config)


def check_source(config: DataConfig) -> None:
    """Raise one UsageError naming every file that is missing, empty or of a kind that krill does not read.

    Reads no more than both ends of files. Data sets of the Hub are not looked up.
    """
    if isinstance(config, PythonDocsDataConfig):
        python_docs.require_python_docs()
    elif isinstance(config, FilesDataConfig):
        paths.resolve_paths(config)
    elif isinstance(config, CustomDataConfig):
        custom_code.import_custom_function(config.read)


class PythonDocsSource(Source):
    """The documentation inside CPython; see `krill.sources.python_docs`. One part."""

    def __init__(self) -> None:
        super().__init__(["python_docs"])
        python_docs.require_python_docs()

    def fingerprint(self) -> Any:
        return {"python_docs": python_docs.fingerprint_python_docs()}

    def list_parts(self) -> list[Part]:
        return [Part(0, None, sum(len(text.encode()) for text in python_docs.read_python_docs()))]

    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        for number, text in enumerate(python_docs.read_python_docs(), 1):
            yield Document(text, (0, number))

    def describe_location(self, part: Part, place: tuple[int, int]) -> str:
        return f"python_docs: document {place[1]}"


class CustomSource(Source):
    """Texts that a person's own function yields. One part: nothing is known of it but its order."""

    def __init__(self, config: CustomDataConfig) -> None:
        super().__init__([config.name])
        self._config = config

    def fingerprint(self) -> Any:
        """The code and its options: what they read is the person's to name there."""
        return {"code": custom_code.hash_custom_function(self._config.read), "options": self._config.options}

    def list_parts(self) -> list[Part]:
        return [Part(0, None, 1)]

    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        for number, text in enumerate(
            custom_code.import_custom_function(self._config.read)(**self._config.options), 1
        ):
            if isinstance(text, str):
                yield Document(text, (0, number))
            else:
                reason = f"is not text but {type(text).__name__}"
                skipped.add(reason, functools.partial(self.describe_location, part, (0, number)))

    def describe_location(self, part: Part, place: tuple[int, int]) -> str:
        return f"{self._config.read}: item {place[1]}"
