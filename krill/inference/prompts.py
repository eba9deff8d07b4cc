"""Reads prompts: from a file, or one per line from a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krill.config.paths import expand_home
from krill.errors import UsageError, get_first_line
from krill.terminal import encode_input

STDIN = "-"
"""The value of prompts= that means standard input."""
EXIT_COMMANDS = ("quit", "exit")


@dataclass(frozen=True)
class Prompt:
    """One prompt of many: a text, or a conversation."""

    id: str | int
    """The id in the file, or the number of the line or row, from 1."""
    text: str | None
    messages: tuple[dict[str, Any], ...] | None
    """The turns of a conversation, as in OpenAI's API; instead of a text."""
    location: str
    """File and line, for messages to the user."""

    @property
    def content(self) -> dict[str, Any]:
        """The prompt as JSON."""
        return {"prompt": self.text} if self.messages is None else {"messages": [*self.messages]}


def read_line_prompts() -> Iterator[str]:
    """Yields the lines of standard input, but empty ones, as they come, until quit, exit or the end of the input.

    Raises UsageError for a line that is not in the encoding of standard input.
    """
    for _, line in _read_stdin_lines():
        if line.strip() in EXIT_COMMANDS:
            return
        yield line


def check_prompts_path(path: str) -> None:
    """Raises UsageError if there is no file of prompts at `path`, or it has another format."""
    if path == STDIN:
        raise UsageError("prompts=-: standard input is for a single command on this machine; use a file")
    file = expand_home(path)
    if not file.is_file():
        raise UsageError(f"prompts={path}: no such file (relative to {Path.cwd()})")
    if file.suffix not in (".jsonl", ".txt", ".parquet"):
        raise UsageError(f"prompts={path}: use a file .jsonl, .txt or .parquet, or - for standard input")


def read_prompts(path: str) -> list[Prompt]:
    """Returns the prompts of a file, or of the lines of standard input; empty lines are skipped.

    Raises UsageError for a file without prompts, and for the first line or row that has none.
    """
    prompts = _read_stdin_prompts() if path == STDIN else _read_file_prompts(path)
    if not prompts:
        raise UsageError(f"prompts={path}: no prompts in it")
    return prompts


def _read_stdin_prompts() -> list[Prompt]:
    if sys.stdin is None:
        raise UsageError("prompts=-: standard input is closed; use a file")
    return [build_prompt("standard input, line", number, line) for number, line in _read_stdin_lines()]


def _read_file_prompts(path: str) -> list[Prompt]:
    check_prompts_path(path)
    file = expand_home(path)
    if file.suffix == ".parquet":
        return [build_prompt(f"{path}, row", number, row) for number, row in _read_parquet(file, path)]
    lines = _read_file_lines(file, path)
    if file.suffix == ".txt":
        return [build_prompt(f"{path}, line", number, line) for number, line in lines]
    return [build_prompt(f"{path}, line", number, _parse_json(path, number, line)) for number, line in lines]


def _read_stdin_lines() -> Iterator[tuple[int, str]]:
    try:
        yield from _number_lines(iter(sys.stdin.readline, ""))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not {error.encoding}; if it is UTF-8, set PYTHONIOENCODING=utf-8"
        ) from error


def _read_file_lines(file: Path, path: str) -> Iterator[tuple[int, str]]:
    try:
        with open(file, encoding="utf-8-sig") as lines:
            yield from _number_lines(lines)
    except UnicodeDecodeError as error:
        raise UsageError(f"prompts={path}: not UTF-8 ({error.reason}); convert it with iconv") from error


def _number_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _parse_json(path: str, number: int, line: str) -> Any:
    location = f"{path}, line {number}"
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{location}: not JSON ({get_first_line(error)})") from error
    if "\\u" in line:  # an escape may be half of a surrogate pair, which no file can contain
        encode_input(json.dumps(value, ensure_ascii=False), location)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _read_parquet(file: Path, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        columns = [name for name in ("id", "prompt", "messages") if name in table.schema_arrow.names]
        if not {"prompt", "messages"} & set(columns):
            raise UsageError(f"{path}: no column prompt (it has {', '.join(table.schema_arrow.names)})")
        rows = (row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist())
        yield from enumerate(rows, 1)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # also of to_pylist
        raise UsageError(f"{path}: not a Parquet file that can be read ({get_first_line(error)})") from error


def build_prompt(source: str, number: int, value: Any) -> Prompt:
    """Returns the prompt of a line or row: a text, or an object with the key prompt or messages."""
    location = f"{source} {number}"
    record = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(record, dict):
        raise UsageError(f"{location}: neither a text nor an object with the key prompt")
    text, messages = record.get("prompt"), record.get("messages")
    if text is None and messages is None:
        keys = [str(key) for key, item in record.items() if item is not None]
        raise UsageError(f"{location}: no prompt (it has {', '.join(keys) or 'no value'})")
    if text is not None and messages is not None:
        raise UsageError(f"{location}: both prompt and messages; leave one of them out")
    if messages is None and not isinstance(text, str):
        raise UsageError(f"{location}: the prompt is not a text; put it in quotes")
    if messages is not None and not (
        isinstance(messages, list)
        and messages
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        )
    ):
        raise UsageError(f"{location}: messages is not a list of objects with the texts role and content")
    identifier = record.get("id")
    if identifier is None:
        identifier = number
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
        raise UsageError(f"{location}: the id is neither a text nor a whole number")
    return Prompt(identifier, text, None if messages is None else tuple(messages), location)
