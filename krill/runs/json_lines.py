"""Reads and writes the JSON lines files of a run: metrics.jsonl, samples.jsonl, skipped.jsonl.

Each line is an object with a step, and has a checksum in a file of its own (line_checksums.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from krill import atomic
from krill.config.paths import relative_path
from krill.errors import UsageError
from krill.runs.line_checksums import LineChecksums, append_checksum, get_checksum_file, write_checksums

EVALUATION_SECONDS = "evaluation_seconds"
"""The metric that every line with the scores of tasks has, and no other line."""
METRICS_TAIL_BYTES = 2**14
"""Bytes at the end of metrics.jsonl that are read to determine the progress of a run."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl like `read_jsonl`."""
    return read_jsonl(folder / "metrics.jsonl")


def read_last_metrics(folder: Path, keys: Collection[str]) -> tuple[dict[str, Any], str | None]:
    """Reads the newest value of each of these metrics from the end of metrics.jsonl (`METRICS_TAIL_BYTES`).

    Returns them, without those of damaged lines, and what is wrong with the file; None: nothing.
    """
    file = folder / "metrics.jsonl"
    checksums = LineChecksums(file, last_lines=METRICS_TAIL_BYTES // 2**7)
    try:
        with open(file, "rb") as content:
            start = max(0, content.seek(0, os.SEEK_END) - METRICS_TAIL_BYTES)
            content.seek(start)
            tail = content.read()
    except OSError:
        return {}, f"{file.name} is missing" if checksums.has_lost_lines(0) else None
    lines = tail.split(b"\n")
    end = start + len(tail) - len(lines.pop())
    damage = f"{file.name} is damaged: its end is missing" if checksums.has_lost_lines(end) else None
    latest: dict[str, Any] = {}
    for line in reversed(lines[1:] if start else lines):  # the first line may be truncated
        try:
            latest = _parse_line(line, checksums.is_valid(line, end)) | latest
        except ValueError as error:
            damage = damage or f"{file.name} is damaged: the line that ends at byte {end}: {error}"
        if latest.keys() >= set(keys):
            break
        end -= len(line) + 1
    return {key: latest[key] for key in keys if key in latest}, damage


def read_validations(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl with a validation. Raises UsageError for one without bits per byte."""
    lines = [line for line in read_metrics(folder) if "eval_loss" in line]
    for line in lines:
        if "eval_bits_per_byte" not in line:
            raise _build_jsonl_error(
                folder / "metrics.jsonl", f"the validation of step {line['step']} has no eval_bits_per_byte"
            )
    return lines


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl with the scores of tasks."""
    return [line for line in read_metrics(folder) if EVALUATION_SECONDS in line]


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """Reads a JSON lines file of a run, without a last line truncated by a kill; empty if the file is missing.

    Lines end with a line feed only: str.splitlines also splits at U+2028 and others, which are part of a text. Raises
    UsageError for a line that has changed since it was written, or is not an object with a step.
    """
    checksums = LineChecksums(file)
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError as error:
        if checksums.has_lost_lines(0):
            raise UsageError(
                f"{relative_path(file)} is missing. Restore it, or remove {relative_path(get_checksum_file(file))} "
                "to do without its lines, and run the same command again"
            ) from error
        return []
    values, end = [], 0
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            values.append(_parse_line(line, checksums.is_valid(line, end)))
        except ValueError as error:
            raise _build_jsonl_error(file, f"line {number}: {error}") from error
    if checksums.has_lost_lines(end):
        raise _build_jsonl_error(file, f"its end is missing, after line {len(lines)}")
    return values


def _parse_line(line: bytes, is_valid: bool) -> dict[str, Any]:
    """Returns the values of a line. Raises ValueError if it is damaged; `is_valid`: by its checksum."""
    values = json.loads(line.decode())
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise ValueError("it has no step")
    if not is_valid:
        raise ValueError("it has changed since it was written")
    return values


def _build_jsonl_error(file: Path, reason: str) -> UsageError:
    checksums = get_checksum_file(file)
    repair = (
        f"repair it and remove {relative_path(checksums)}"
        if checksums.exists()
        else "repair or remove this line"
    )
    return UsageError(
        f"{relative_path(file)} is damaged: {reason}. Restore the file, or {repair}, and run the same command again"
    )


def write_jsonl(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON lines file, replacing an existing one."""
    texts = [json.dumps(line, ensure_ascii=False) for line in lines]
    # First: in a longer file of the same beginning these checksums are right as well.
    write_checksums(file, [text.encode() for text in texts])
    atomic.write_text(file, "".join(f"{text}\n" for text in texts))


def append_jsonl(file: Path, values: dict[str, Any]) -> None:
    """Appends a line to a JSON lines file."""
    line = json.dumps(values, ensure_ascii=False).encode()
    with open(file, "ab") as open_file:
        open_file.write(line + b"\n")
        end = open_file.tell()
    append_checksum(file, line, end)


def truncate_jsonl(file: Path, step: int) -> None:
    """Removes the lines after a step from a JSON lines file, if it exists, because the run resumes from that step."""
    if file.exists():
        write_jsonl(file, [line for line in read_jsonl(file) if line["step"] <= step])
