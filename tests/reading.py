"""Sources of text made for a test, and what they give."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import yaml

from krill.config.paths import CONF_DIR
from krill.config.schema import FilesDataConfig, HubDataConfig, HubDatasetConfig
from krill.sources.source import SkippedRecords, Source

RULES = yaml.safe_load((CONF_DIR / "data/_rules.yaml").read_text(encoding="utf-8"))
GOOD = [{"text": f"document {index}"} for index in range(3)]
TEXTS = [record["text"] for record in GOOD]


def files(*paths: Path | str | dict[str, Any], column: str = "text") -> FilesDataConfig:
    given = [path if isinstance(path, dict) else str(path) for path in paths]
    return FilesDataConfig(**RULES, name="test", source="files", paths=given, text_column=column)


def hub(*datasets: HubDatasetConfig) -> HubDataConfig:
    return HubDataConfig(**RULES, name="test", source="hub", datasets=list(datasets))


def places_and_texts(source: Source, skipped: SkippedRecords | None = None) -> list[tuple[str, str]]:
    """(place in words, text) of every document, part by part, read as a worker reads them."""
    parts, source = source.list_parts(), pickle.loads(pickle.dumps(source))
    skipped = skipped or SkippedRecords()
    assert json.loads(json.dumps([part.span for part in parts])) == [part.span for part in parts]
    return [(source.spell(part, place), text) for part in parts for text, place in source.read(part, skipped)]


def texts(source: Source, skipped: SkippedRecords | None = None) -> list[str]:
    """The text of every document."""
    return [text for _, text in places_and_texts(source, skipped)]


def json_lines(path: Path, *lines: bytes | dict[str, Any]) -> Path:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def parquet(path: Path, rows: int | None = None, **columns: Any) -> Path:
    """A Parquet file, `rows` in a row group."""
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)
