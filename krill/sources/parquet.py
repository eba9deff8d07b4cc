"""Reads texts from Arrow data: a column of a Parquet file, or of a table read by another library."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from krill.errors import get_first_line
from krill.sources.formats import TOO_LONG, UnreadableRecord, is_longer
from krill.sources.source import MAX_LISTED_CHARACTERS, find_column_name_problem, shorten

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet

# pyarrow is imported inside the functions that need it: 50 MB that most commands do without.

BATCH_BYTES = 2**20
"""Approximate bytes of text per batch."""
BATCH_ROWS = 1000
"""Maximum rows per batch."""


def read_parquet_texts(
    path: Path, column: str, start: int, end: int, max_bytes: int = sys.maxsize
) -> Iterator[tuple[int, str | UnreadableRecord]]:
    """Yields (row number from 1, text) of the row groups [start, end). Raises OSError where reading fails."""
    import pyarrow as pa

    number = 0
    try:
        with open_parquet(path, _list_dictionary_columns(path, column)) as file:
            rows = compute_batch_rows(
                file.metadata.num_rows, sum(size for _, size in _measure_row_groups(file.metadata, column))
            )
            for batch in file.iter_batches(
                rows, row_groups=range(start, end), columns=[column], use_threads=False
            ):
                values = extract_texts(batch.column(0), column, max_bytes)
                yield from enumerate(values, number + 1)
                number += len(values)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def extract_texts(array: pa.Array, column: str, max_bytes: int = sys.maxsize) -> list[str | UnreadableRecord]:
    """Returns the values of a column as texts; null, invalid UTF-8 and too long texts become `UnreadableRecord`."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary.take(array.indices)  # dictionary_decode fails at invalid UTF-8
    size = array.nbytes
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:
        values = [_decode_value(value) for value in array.cast(pa.large_binary()).to_pylist()]
    if array.null_count:
        null = UnreadableRecord(f"{column!r} is null", is_intact=True)
        values = [null if value is None else value for value in values]
    if size > max_bytes:
        values = [
            TOO_LONG if isinstance(value, str) and is_longer(value, max_bytes) else value for value in values
        ]
    return values


def _decode_value(value: bytes | None) -> str | UnreadableRecord | None:
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return UnreadableRecord("invalid UTF-8")


def compute_batch_rows(rows: int, size: int) -> int:
    """Returns the rows per batch for a column of `rows` rows with `size` bytes of text."""
    return min(max(BATCH_BYTES * rows // max(size, 1), 1), BATCH_ROWS)


def find_column_problem(
    name: str, column: str, schema: pa.Schema, key: str = "data.text_column"
) -> str | None:
    """Returns why a column cannot be used as text, or None; `key` is the configuration key named in the message."""
    import pyarrow as pa

    if problem := find_column_name_problem(name, column, schema.names, key):
        return problem
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):  # a column of nulls alone has no other type in many writers
        return None
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        described = shorten(str(kind), MAX_LISTED_CHARACTERS)
        return f"{name}: column {column} holds {described}, not text; choose another: {key}="
    return None


def find_parquet_problem(path: Path, column: str) -> str | None:
    """Returns why a Parquet file cannot be used, or None; reads only its footer."""
    import pyarrow as pa

    try:
        with open_parquet(path) as file:
            return find_column_problem(str(path), column, file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        reason = get_first_line(error)
        return f"{path}: is not a complete Parquet file ({reason}); recreate it or remove it from data.paths"


def has_rows(path: Path) -> bool:
    """Returns whether a Parquet file has rows; reads only its footer."""
    with open_parquet(path) as file:
        return file.metadata.num_rows > 0


def measure_row_groups(path: Path, column: str) -> list[tuple[int, int]]:
    """Returns (rows, uncompressed bytes of the text column) of each row group."""
    with open_parquet(path) as file:
        return _measure_row_groups(file.metadata, column)


def count_rows_before(path: Path, group: int) -> int:
    """Returns the number of rows before a row group."""
    with open_parquet(path) as file:
        return sum(file.metadata.row_group(index).num_rows for index in range(group))


def _measure_row_groups(metadata: pyarrow.parquet.FileMetaData, column: str) -> list[tuple[int, int]]:
    leaves = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return [(group.num_rows, group.column(leaves.index(column)).total_uncompressed_size) for group in groups]


def _list_dictionary_columns(path: Path, column: str) -> list[str]:
    """Returns the column if it is dictionary-encoded: as such it is read without a check for invalid UTF-8."""
    import pyarrow as pa

    with open_parquet(path) as file:
        return [column] if pa.types.is_dictionary(file.schema_arrow.field(column).type) else []


def open_parquet(path: Path, dictionary_columns: Sequence[str] = ()) -> pyarrow.parquet.ParquetFile:
    """Opens a file so that columns are read in chunks even if its row groups are large."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(
        path, pre_buffer=False, buffer_size=2**20, read_dictionary=list(dictionary_columns)
    )
