"""Source files for tests, their configurations, and the documents that sources read from them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import yaml

from krill.config.paths import CONF_DIR
from krill.config.schema import FilesDataConfig, HubDataConfig, HubDatasetConfig
from krill.sources.source import SkippedRecords, Source

RULES = yaml.safe_load((CONF_DIR / "data/_rules.yaml").read_text(encoding="utf-8"))
RECORDS = [{"text": f"document {index}"} for index in range(3)]
TEXTS = [record["text"] for record in RECORDS]


def make_files(*paths: Path | str | dict[str, Any], column: str = "text") -> FilesDataConfig:
    """Returns the configuration of a source of files with the default rules."""
    entries = [path if isinstance(path, dict) else str(path) for path in paths]
    return FilesDataConfig(**RULES, name="test", source="files", paths=entries, text_column=column)


def make_hub(*datasets: HubDatasetConfig) -> HubDataConfig:
    """Returns the configuration of a source of Hub datasets with the default rules."""
    return HubDataConfig(**RULES, name="test", source="hub", datasets=list(datasets))


def read_locations_and_texts(source: Source, skipped: SkippedRecords | None = None) -> list[tuple[str, str]]:
    """Returns (location, text) of every document, part by part, read from a pickled copy like in a worker."""
    parts, source = source.list_parts(), pickle.loads(pickle.dumps(source))
    skipped = skipped or SkippedRecords()
    assert json.loads(json.dumps([part.span for part in parts])) == [part.span for part in parts]
    return [
        (source.describe_location(part, location), text)
        for part in parts
        for text, location in source.read(part, skipped)
    ]


def read_texts(source: Source, skipped: SkippedRecords | None = None) -> list[str]:
    """Returns the text of every document."""
    return [text for _, text in read_locations_and_texts(source, skipped)]


def write_json_lines(path: Path, *lines: bytes | dict[str, Any]) -> Path:
    """Writes a line per record; bytes are written as they are."""
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def write_texts(path: Path, texts: Iterable[str]) -> Path:
    """Writes texts as JSON lines; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_json_lines(path, *({"text": text} for text in texts))


def write_parquet(path: Path, rows: int | None = None, **columns: Any) -> Path:
    """Writes a Parquet file with `rows` rows per row group."""
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes `content` and returns the path."""
    path.write_bytes(content)
    return path


def compress_zstd(content: bytes) -> bytes:
    """Returns the zstd frame of `content`."""
    return pa.Codec("zstd").compress(content, asbytes=True)
