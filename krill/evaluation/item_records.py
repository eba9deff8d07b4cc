"""Builds the items of a custom task from records: the lines of a JSONL file, or what a function returns."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from krill.errors import UsageError
from krill.evaluation.task import Item

FIELDS = ("context", "choices", "answer", "phenomenon")
"""What a record has; context and phenomenon may be left out."""
REQUIRED_FIELDS = ("choices", "answer")
MAX_LISTED_ERRORS = 5
"""Number of wrong records that an error lists."""


class _RecordError(Exception):
    """A record that is not an item; the message says why, and what to write."""


@dataclass
class RecordReader:
    """Builds items from records, leaves out those that occur again, and collects what is wrong."""

    keys: Mapping[str, str] = field(default_factory=dict)
    """Field → its key in a record, if they differ; a key that is named here must be in every record."""
    items: dict[Item, None] = field(default_factory=dict)
    duplicates: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, record: Any, location: str) -> None:
        """Adds the item of `record`: a mapping, or an Item. `location`: where it is, for the message of an error."""
        try:
            item = self._build_item(record)
        except _RecordError as error:
            self.errors.append(f"{location}: {error}")
            return
        self.duplicates += item in self.items
        self.items[item] = None

    @property
    def notes(self) -> dict[str, int]:
        """What a reader of the scores has to know about the items."""
        joined = sum(map(_joins_words, self.items))
        counts = {"duplicates": self.duplicates, "joined": joined}
        return {name: count for name, count in counts.items() if count}

    def finish(self, source: str) -> tuple[Item, ...]:
        """Returns the items. Raises UsageError for wrong records, or if there is none in `source`."""
        if self.errors:
            others = len(self.errors) - MAX_LISTED_ERRORS
            more = [f"{source}: {others:,} more errors"] if others > 0 else []
            raise UsageError("\n".join([*self.errors[:MAX_LISTED_ERRORS], *more]))
        if not self.items:
            raise UsageError(f"{source}: has no items; a task needs at least one")
        return tuple(self.items)

    def _build_item(self, record: Any) -> Item:
        if isinstance(record, Item):
            record = {name: getattr(record, name) for name in FIELDS}
        elif not isinstance(record, Mapping):
            raise _RecordError(
                f'is not an object but {_describe_type(record)}; write {{"context": …, "choices": […], "answer": 0}}'
            )
        choices = self._read_choices(record)
        phenomenon = self._read_text(record, "phenomenon")
        if not phenomenon.isprintable():
            key, _ = self._get(record, "phenomenon")
            raise _RecordError(f"{key!r} is {phenomenon!r}; write a name for the table, on one line")
        return Item(
            self._read_text(record, "context"), choices, self._read_answer(record, choices), phenomenon
        )

    def _get(self, record: Mapping[str, Any], name: str) -> tuple[str, Any]:
        """Returns the key of a field, and its value; None if the record does not have it."""
        key = self.keys.get(name, name)
        if key not in record and (name in REQUIRED_FIELDS or name in self.keys):
            keys = ", ".join(map(str, record)) or "no keys"
            raise _RecordError(f"no {key!r} (it has {keys}); add it, or name the key under fields: {name}:")
        return key, record.get(key)

    def _read_text(self, record: Mapping[str, Any], name: str) -> str:
        key, value = self._get(record, name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise _RecordError(f"{key!r} is not text but {_describe_type(value)}; put it in quotes")
        _require_unicode(key, value)
        return value

    def _read_choices(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        key, value = self._get(record, "choices")
        if not isinstance(value, (list, tuple)):
            raise _RecordError(f"{key!r} is not a list but {_describe_type(value)}; write the choices in [ ]")
        wrong = next((choice for choice in value if not isinstance(choice, str)), None)
        if wrong is not None:
            raise _RecordError(f"{key!r} has {_describe_type(wrong)}; a choice is text: put it in quotes")
        if len(value) < 2:
            raise _RecordError(f"{key!r} has {len(value)} choices; write at least two")
        if "" in value:
            raise _RecordError(f"{key!r} has an empty choice; a model needs a token to score")
        if len(set(value)) < len(value):
            twice = next(choice for choice in value if value.count(choice) > 1)
            raise _RecordError(f"{key!r} has {twice!r} twice; write each choice once")
        for choice in value:
            _require_unicode(key, choice)
        return tuple(value)

    def _read_answer(self, record: Mapping[str, Any], choices: tuple[str, ...]) -> int:
        key, value = self._get(record, "answer")
        if isinstance(value, str):
            if value not in choices:
                raise _RecordError(
                    f"{key!r} is {value!r}, which is not one of the choices; write one of them as it is there, or "
                    "its index, from 0"
                )
            return choices.index(value)
        if not isinstance(value, SupportsIndex) or isinstance(value, bool):
            raise _RecordError(
                f"{key!r} is {_describe_type(value)}; write the index of the right choice, from 0, or its text"
            )
        index = operator.index(value)
        if not 0 <= index < len(choices):
            raise _RecordError(
                f"{key!r} is {value}, but there are {len(choices)} choices; write 0 to {len(choices) - 1}"
            )
        return index


def _joins_words(item: Item) -> bool:
    """Returns whether a word of Latin letters or digits continues from the context to the choices: no space."""
    edges = [item.context[-1:], *(choice[0] for choice in item.choices)]
    return all(letter.isascii() and letter.isalnum() for letter in edges)


def _require_unicode(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _RecordError(
            f"{key!r} has half of a surrogate pair, {text[error.start]!a}; write the character"
        ) from error


def _describe_type(value: Any) -> str:
    names = {
        "NoneType": "null",
        "str": "text",
        "bool": "true or false",
        "dict": "an object",
        "list": "a list",
    }
    return names.get(type(value).__name__, f"a value of type {type(value).__name__}")
