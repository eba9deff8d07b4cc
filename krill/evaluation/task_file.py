"""A custom task in two files: a YAML that describes it, and its items in a JSONL file, one on each line.

name: capitals
language: en
description: The capital of a country.
items: capitals.jsonl       # relative to the YAML
fields:                     # only what has another key in the items
  context: question
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from omegaconf._utils import get_yaml_loader
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from krill.config.paths import expand_home, relative_path
from krill.config.schema.base import Section
from krill.config.suggestions import suggest
from krill.config.yaml_files import ConfigFile, read_config_file
from krill.errors import UsageError, get_first_line
from krill.evaluation.item_records import RecordReader
from krill.evaluation.task import Task

TASK_SUFFIXES = (".yaml", ".yml")
MAX_NAME_LENGTH = 60
"""Number of characters of the name of a task, which is a column of the table and a part of a file name."""


ItemField = Literal["context", "choices", "answer", "phenomenon"]


class TaskFileConfig(Section):
    """The content of the YAML."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
    """Name in the table and of the result."""
    language: Annotated[str, Field(pattern="^[a-z]{2,3}$")]
    """ISO 639 code: ko, en."""
    items: str
    """JSONL file, relative to the YAML."""
    description: str = ""
    fields: Annotated[dict[ItemField, str], Field(default_factory=dict)]
    """Field → its key in the items, if it has another name there."""


def read_task_file(path: Path) -> Task:
    """Returns the task that the YAML at `path` describes.

    Raises UsageError with file and line or field for what is wrong in it or in its items.
    """
    if not path.is_file():
        raise UsageError(f"tasks={path}: no such file (relative to {Path.cwd()})")
    config = _read_config(path)
    file = path.parent / expand_home(config.items)
    items_file = str(relative_path(file))
    if not file.is_file():
        raise UsageError(
            f"{relative_path(path)}: items: no such file {items_file}; it is relative to the YAML"
        )
    reader = RecordReader({str(name): key for name, key in config.fields.items()})
    for number, line in _read_lines(file):
        location = f"{items_file}:{number}"
        try:
            record = json.loads(line, object_pairs_hook=_build_record)
        except _RepeatedKeyError as error:
            reader.errors.append(f"{location}: {error}")
        except (ValueError, RecursionError) as error:
            reader.errors.append(
                f"{location}: is not JSON ({get_first_line(error)}); write one object on each line"
            )
        else:
            reader.add(record, location)
    items = reader.finish(items_file)
    return Task(config.name, config.language, config.description, items, notes=reader.notes)


class _RepeatedKeyError(Exception):
    """An object that has a key twice."""


def _build_record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"has {twice!r} twice; write each key once")
    return record


def _read_config(path: Path) -> TaskFileConfig:
    config_file = read_config_file(path, "")
    values = yaml.load(path.read_text(encoding="utf-8"), get_yaml_loader()) or {}
    if not isinstance(values, dict):
        raise UsageError(
            f"{relative_path(path)}: is not a mapping; write name: … and the other keys on lines"
        )
    try:
        return TaskFileConfig.model_validate(values)
    except ValidationError as error:
        lines = [_describe_error(config_file, item) for item in error.errors(include_url=False)]
        raise UsageError("\n".join(lines)) from error


def _describe_error(file: ConfigFile, error: ErrorDetails) -> str:
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    key, path = ".".join(parts), relative_path(file.path)
    where = f"{path}:{line}" if (line := file.find_line(key)) is not None else path
    if error["type"] == "missing":
        return f"{path}: {key} is not set; add the line {key}: …"
    if error["type"] in ("extra_forbidden", "literal_error"):
        known = get_args(ItemField) if parts[0] == "fields" else tuple(TaskFileConfig.model_fields)
        return f"{where}: no such key '{key}'. {suggest(parts[-1], known)}"
    if error["type"] == "string_pattern_mismatch":
        return f"{where}: {key}: {error['input']}: write a code of ISO 639, such as ko or en"
    return f"{where}: {key}: {error['input']}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yields the numbers and texts of the lines that are not empty; a BOM at the beginning is skipped."""
    for number, line in enumerate(file.read_bytes().removeprefix(BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{relative_path(file)}:{number}: is not UTF-8; convert it, as with iconv -f cp949 -t utf-8"
                ) from error
