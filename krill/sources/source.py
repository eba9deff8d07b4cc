"""The interface of a source of text: documents in a fixed order, split into parts that are read independently.

Every source streams: memory does not grow with the corpus. A record that cannot be read (a truncated line,
invalid UTF-8, no text) costs only that record: it is skipped and counted by reason, with a few example locations.
Problems of a whole file (missing, empty, no column) raise UsageError.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from krill.config.schema.data import DEFAULT_MAX_RECORD_BYTES

log = logging.getLogger("krill")

MAX_SKIPPED_EXAMPLES = 3
"""Maximum number of example locations per reason; all records are counted."""

MAX_LISTED_COLUMNS, MAX_LISTED_CHARACTERS = 10, 40
"""Maximum number of columns in a message, and of the characters of each."""


class Document(NamedTuple):
    """One text, unmodified."""

    text: str
    location: tuple[int, int]
    """(file within the part, record within the file); see `Source.describe_location`."""


class Part(NamedTuple):
    """A slice of a source that is read independently: by any process, on any machine, in any order."""

    source: int
    """Index in the source's `names`."""
    span: Any
    """The slice that `Source.read` reads; JSON values that do not depend on the path of the data."""
    size: int
    """Bytes of input, or rows if bytes are unknown; for work distribution and progress."""


class SkippedRecords:
    """Counts records without a usable document, by reason."""

    def __init__(self) -> None:
        self.reasons: dict[str, dict[str, Any]] = {}
        """Reason → {"records": count, "places": the first locations}; JSON."""

    def add(self, reason: str, describe_location: Callable[[], str]) -> None:
        """Counts a record; `describe_location` is called for the first records of a reason only."""
        entry = self.reasons.setdefault(reason, {"records": 0, "places": []})
        entry["records"] += 1
        if len(entry["places"]) < MAX_SKIPPED_EXAMPLES:
            entry["places"].append(describe_location())

    def merge(self, reasons: dict[str, dict[str, Any]]) -> None:
        """Adds the `reasons` of a later part."""
        for reason, counts in reasons.items():
            entry = self.reasons.setdefault(reason, {"records": 0, "places": []})
            entry["records"] += counts["records"]
            entry["places"] = (entry["places"] + counts["places"])[:MAX_SKIPPED_EXAMPLES]

    def warn(self) -> None:
        """Logs the number of records and the first locations for each reason."""
        for reason, counts in sorted(self.reasons.items()):
            num_others = counts["records"] - len(counts["places"])
            locations = ", ".join(counts["places"]) + (f" and {num_others:,} more" if num_others else "")
            log.warning("skipped     %s: %s", reason, locations)


class Source(ABC):
    """Documents in a fixed order. Picklable: worker processes read the parts."""

    def __init__(self, names: list[str], weights: list[float] | None = None) -> None:
        self.names = names
        """Unique names of the sources that documents come from."""
        self.weights = weights or [1.0] * len(names)
        """How often the training documents of each source occur in an epoch."""

    @cached_property
    def fingerprint(self) -> Any:
        """The result of the first `compute_fingerprint`, from which the signatures of a run are computed."""
        return self.compute_fingerprint()

    @abstractmethod
    def compute_fingerprint(self) -> Any:
        """Returns a JSON value that changes when the text changes, or what is read of it; a list if it has an item
        per source."""

    @property
    def unordered_fingerprint(self) -> Any:
        """The fingerprint without the order of the sources, for results that do not depend on it."""
        entries = self.fingerprint
        return sorted(entries, key=_to_sort_key) if isinstance(entries, list) else entries

    @abstractmethod
    def list_parts(self) -> list[Part]:
        """Returns the parts, in order; they depend on the content only, never on the number of workers or tasks.

        Together they contain each document once. Raises UsageError for a file that contains none.
        """

    @abstractmethod
    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        """Yields the documents of a part; raises UsageError for a file that cannot be used."""

    @abstractmethod
    def describe_location(self, part: Part, location: tuple[int, int]) -> str:
        """Returns a document's location for messages, such as a.jsonl:12."""


def _to_sort_key(entry: Any) -> str:
    return json.dumps(entry, sort_keys=True)


def compute_part_bytes(total: int) -> int:
    """Returns the input bytes per part: a thousandth of `total`, limited to 4 to 256 MiB."""
    return min(max(total // 1000, 4 * 2**20), 256 * 2**20)


def identify_record_limit(max_record_bytes: int) -> dict[str, int]:
    """Returns the part of a source's fingerprint for data.max_record_bytes; empty for the default."""
    return {} if max_record_bytes == DEFAULT_MAX_RECORD_BYTES else {"max_record_bytes": max_record_bytes}


def sample_evenly(parts: Sequence[Part], count: int) -> Sequence[Part]:
    """Returns at most `count` of the parts, evenly spaced and including the first."""
    return parts[:: max(1, -(-len(parts) // count))]


def find_column_name_problem(
    name: str, column: str, columns: list[str], key: str = "data.text_column"
) -> str | None:
    """Returns why a file or dataset does not have exactly one text column, which `key` sets, or None."""
    if column not in columns:
        return describe_missing_column(name, column, columns, key)
    if columns.count(column) > 1:
        return f"{name}: has {columns.count(column)} columns named {column!r}; rename all but one"
    return None


def describe_missing_column(name: str, column: str, columns: list[str], key: str = "data.text_column") -> str:
    """Returns the error message for a file or dataset without the text column, which `key` sets."""
    if any(_compose(column) == _compose(item) for item in columns):
        return (
            f"{name}: its column {column!r} is written in another Unicode form (decomposed letters, NFD, as on "
            f"macOS) than {key}; rename the column, or copy its name from the file"
        )
    names = [shorten(" ".join(item.split()), MAX_LISTED_CHARACTERS) for item in columns[:MAX_LISTED_COLUMNS]]
    if num_others := len(columns) - len(names):
        names.append(f"{num_others:,} more")
    return f"{name}: no column {column!r}; it has {', '.join(names)}. Set the column with the text: {key}="


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def shorten(text: str, length: int) -> str:
    """Returns at most the first `length` characters, with an ellipsis if there are more."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def disambiguate_names(short_names: list[str], full_names: list[str]) -> list[str]:
    """Returns the short names where unique, else the full ones, numbered where those are not unique either."""
    names = [
        short if short_names.count(short) == 1 else full
        for short, full in zip(short_names, full_names, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names, 1)]
