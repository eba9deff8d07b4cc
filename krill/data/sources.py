"""The sources there are: the built-in text, files, data sets of the Hub, a person's own function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from krill.config import own_code
from krill.config.schema import CustomData, Data, Files, Hub, PythonDocs
from krill.data import files, python_docs
from krill.data.files import FileSource
from krill.data.hub import HubSource
from krill.data.source import Document, Source


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
        files.found(config)
    elif isinstance(config, CustomData):
        own_code.load(config.read)


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
