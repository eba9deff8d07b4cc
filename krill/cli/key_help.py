"""--help KEY: the sentences of a key, or of all keys of a section, from the schema."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from krill.config.commands import COMMAND_SCHEMAS
from krill.config.key_aliases import SHORT_EVALUATION_KEYS
from krill.config.validation import format_unknown_key_error
from krill.errors import UsageError
from krill.tables import fit_table


def format_key_help(command: str, key: str, width: int | None = None) -> str:
    """Returns the help of `key` and of the keys below it; raises UsageError for an unknown one.

    `width`: of the terminal; None: not a terminal.
    """
    sentences: dict[str, dict[str, None]] = {}  # the options of a group may have a key in common
    for name, sentence in _iterate_keys(COMMAND_SCHEMAS[command]):
        sentences.setdefault(name, {})[sentence] = None
    if command == "evaluate":
        key = SHORT_EVALUATION_KEYS.get(key, key)
    if key not in sentences:
        raise UsageError(format_unknown_key_error(key, sentences))
    rows = [
        (name, " ".join(filter(None, sentences[name])))
        for name in sentences
        if name == key or name.startswith(f"{key}.")
    ]
    table = fit_table(("", ""), rows, width, left=(0, 1), fold=(0, 1))[1:]
    return "\n".join([*table, "", f"values: krill-{command} --cfg job"])


def _iterate_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted keys of a schema with their sentences; those of a list's entries are below the list."""
    for name, field in schema.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key, " ".join((field.description or "").split())
        for section in _list_sections(field.annotation):
            yield from _iterate_keys(section, f"{key}.")


def _list_sections(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _list_sections(part)]
