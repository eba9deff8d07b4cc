"""The sources there are: the built-in text, files, data sets of the Hub, a person's own function."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from krill.config import own_code
from krill.config.schema import CustomData, Data, Files, Hub, PythonDocs
from krill.sources import paths, python_docs
from krill.sources.files import FileSource
from krill.sources.hub import HubSource
from krill.sources.source import Document, Part, Skipped, Source


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

    Reads no more than both ends of files. Data sets of the Hub are not looked up.
    """
    if isinstance(config, PythonDocs):
        python_docs.check()
    elif isinstance(config, Files):
        paths.found(config)
    elif isinstance(config, CustomData):
        own_code.load(config.read)


class PythonDocsSource(Source):
    """The documentation inside CPython; see `krill.sources.python_docs`. One part."""

    def __init__(self) -> None:
        super().__init__(["python_docs"])
        python_docs.check()

    def fingerprint(self) -> Any:
        return {"python_docs": python_docs.fingerprint()}

    def parts(self) -> list[Part]:
        return [Part(0, None, sum(len(text.encode()) for text in python_docs.documents()))]

    def read(self, part: Part, skipped: Skipped) -> Iterator[Document]:
        for number, text in enumerate(python_docs.documents(), 1):
            yield Document(text, (0, number))

    def spell(self, part: Part, place: tuple[int, int]) -> str:
        return f"python_docs: document {place[1]}"


class CustomSource(Source):
    """Texts that a person's own function yields. One part: nothing is known of it but its order."""

    def __init__(self, config: CustomData) -> None:
        super().__init__([config.name])
        self._config = config

    def fingerprint(self) -> Any:
        """The code and its options: what they read is the person's to name there."""
        return {"code": own_code.digest(self._config.read), "options": self._config.options}

    def parts(self) -> list[Part]:
        return [Part(0, None, 1)]

    def read(self, part: Part, skipped: Skipped) -> Iterator[Document]:
        for number, text in enumerate(own_code.load(self._config.read)(**self._config.options), 1):
            if isinstance(text, str):
                yield Document(text, (0, number))
            else:
                reason = f"is not text but {type(text).__name__}"
                skipped.add(reason, functools.partial(self.spell, part, (0, number)))

    def spell(self, part: Part, place: tuple[int, int]) -> str:
        return f"{self._config.read}: item {place[1]}"
