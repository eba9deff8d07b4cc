"""Tests that rows contain every token, never mix documents, and predict tokens only from their own document."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill.data.packing import IGNORE_INDEX, Row, Rows, pack, pack_windows


class Stream:
    """A stream of documents in memory; the id of each token is its position."""

    pad_id = 10**9

    def __init__(self, lengths: list[int] | np.ndarray):
        self.ends = np.cumsum(lengths).astype(np.uint64)
        self.document = np.repeat(np.arange(len(lengths)), lengths)
        self._tokens = np.arange(len(self.document))

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._tokens[start:stop]


document_lengths = st.lists(st.integers(2, 60), max_size=60)
row_lengths = st.integers(2, 40)


def get_all_rows(rows: Rows) -> list[Row]:
    return [rows.get_row(index) for index in range(len(rows))]


def assert_well_formed(row: Row, stream: Stream, sequence_len: int) -> None:
    assert row.lengths.sum() == sequence_len
    assert all(len(array) == sequence_len for array in row[:3])
    assert all(array.dtype == np.int64 for array in row)
    start = 0
    row_ids, positions, row_labels = (array.tolist() for array in row[:3])  # much faster than small arrays
    for length in row.lengths.tolist():
        stop = start + length
        ids, labels = row_ids[start:stop], row_labels[start:stop]
        assert positions[start:stop] == list(range(length))
        assert labels[0] == IGNORE_INDEX
        if ids[0] == stream.pad_id:
            assert stop == sequence_len, "padding is not last"
            assert set(ids) == {stream.pad_id}
            assert set(labels) == {IGNORE_INDEX}
        else:
            assert ids == list(range(ids[0], ids[0] + length))
            assert labels[1:] == ids[1:]
            assert len(set(stream.document[ids].tolist())) == 1, "a segment mixes documents"
        start = stop


@pytest.mark.parametrize("strategy", ["wrapped", "best_fit"])
@settings(deadline=None)
@given(lengths=document_lengths, sequence_len=row_lengths)
def test_padding_and_cut_documents_are_counted(strategy: str, lengths: list[int], sequence_len: int) -> None:
    stream = Stream(lengths)
    rows = pack(stream, sequence_len, strategy)
    ids_per_row = [row.input_ids[row.input_ids != stream.pad_id] for row in get_all_rows(rows)]
    num_positions = len(rows) * sequence_len
    assert rows.padding_fraction == (1 - sum(map(len, ids_per_row)) / num_positions if num_positions else 0)
    rows_per_document = Counter(
        document for ids in ids_per_row for document in set(stream.document[ids].tolist())
    )
    num_long = sum(length > sequence_len for length in lengths)
    num_cut = num_long if strategy == "best_fit" else sum(count > 1 for count in rows_per_document.values())
    assert rows.cut_fraction == (num_cut / len(lengths) if lengths else 0)


@pytest.mark.parametrize("strategy", ["wrapped", "best_fit"])
@settings(deadline=None)
@given(lengths=document_lengths, sequence_len=row_lengths)
def test_every_token_is_in_exactly_one_row(strategy: str, lengths: list[int], sequence_len: int) -> None:
    stream = Stream(lengths)
    rows = pack(stream, sequence_len, strategy)
    seen: Counter[int] = Counter()
    for row in get_all_rows(rows):
        assert_well_formed(row, stream, sequence_len)
        seen.update(row.input_ids[row.input_ids != stream.pad_id].tolist())
    assert seen == Counter(range(sum(lengths)))
    assert rows.tokens == sum(lengths)


@settings(deadline=None)
@given(lengths=document_lengths, sequence_len=row_lengths)
def test_wrapped_rows_are_full_and_in_order(lengths: list[int], sequence_len: int) -> None:
    rows = get_all_rows(pack(Stream(lengths), sequence_len, "wrapped"))
    assert len(rows) == -(-sum(lengths) // sequence_len)
    ids = np.concatenate([row.input_ids for row in rows]) if rows else np.zeros(0)
    np.testing.assert_array_equal(ids[: sum(lengths)], np.arange(sum(lengths)))


@settings(deadline=None)
@given(lengths=document_lengths, sequence_len=row_lengths)
def test_best_fit_cuts_only_documents_longer_than_a_row(lengths: list[int], sequence_len: int) -> None:
    stream = Stream(lengths)
    rows = pack(stream, sequence_len, "best_fit")
    pieces = Counter(stream.document[rows.starts].tolist())
    assert pieces == {index: -(-length // sequence_len) for index, length in enumerate(lengths)}


@settings(deadline=None)
@given(lengths=document_lengths, sequence_len=row_lengths)
def test_windows_predict_every_token_except_bos_exactly_once(lengths: list[int], sequence_len: int) -> None:
    stream = Stream(lengths)
    rows = pack_windows(stream, sequence_len)
    predicted: Counter[int] = Counter()
    for row in get_all_rows(rows):
        assert_well_formed(row, stream, sequence_len)
        predicted.update(row.labels[row.labels != IGNORE_INDEX].tolist())
    bos = {0, *stream.ends.tolist()}
    assert predicted == Counter(set(range(sum(lengths))) - bos)
    assert rows.targets == sum(lengths) - len(lengths)


def test_an_empty_split_has_no_rows() -> None:
    for rows in (
        pack(Stream([]), 8, "wrapped"),
        pack(Stream([]), 8, "best_fit"),
        pack_windows(Stream([]), 8),
    ):
        assert len(rows) == 0
        assert rows.tokens == 0
        with pytest.raises(IndexError):
            rows.get_row(0)


def test_an_empty_row_is_padding_only() -> None:
    row = pack(Stream([5]), 8, "wrapped").make_empty_row()
    assert row.input_ids.tolist() == [Stream.pad_id] * 8
    assert (row.labels == IGNORE_INDEX).all()
    assert row.lengths.tolist() == [8]


def test_best_fit_by_hand() -> None:
    """The example in trl's documentation of bfd_split."""
    rows = pack(Stream([5, 2, 3, 1]), 4, "best_fit")
    ids = [row.input_ids[row.input_ids != Stream.pad_id].tolist() for row in get_all_rows(rows)]
    assert ids == [[0, 1, 2, 3], [7, 8, 9, 4], [5, 6, 10]]


def test_packing_a_million_documents_takes_seconds() -> None:
    lengths = np.maximum(2, np.random.default_rng(0).lognormal(5.4, 1.2, 1_000_000).astype(int))
    stream = Stream([2])
    stream.ends = np.cumsum(lengths).astype(np.uint64)
    start_time = time.process_time()
    rows = pack(stream, 1024, "best_fit")
    assert time.process_time() - start_time < 10
    assert rows.tokens > 0.999 * len(rows) * 1024


@pytest.mark.slow
def test_best_fit_equals_trl_row_for_row() -> None:
    pytest.importorskip("trl")
    import pyarrow.compute as pc
    from datasets import Dataset
    from trl import pack_dataset

    random = np.random.default_rng(0)
    for sequence_len in (1, 2, 7, 8, 33, 128, 1000):
        for scale in (1.0, 3.0, 5.0):
            lengths = np.maximum(1, random.lognormal(scale, 1.2, 400).astype(int))
            stream = Stream(lengths)
            documents = np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1])
            dataset = Dataset.from_dict({"input_ids": documents})
            theirs = pack_dataset(dataset, sequence_len, "bfd_split", map_kwargs={"batch_size": None})
            ours = pack(stream, sequence_len, "best_fit")
            assert len(ours) == len(theirs)
            ids, segments = (
                theirs.with_format("arrow")[:][name].combine_chunks() for name in ("input_ids", "seq_lengths")
            )
            np.testing.assert_array_equal(pc.list_value_length(segments), np.diff(ours.offsets))
            np.testing.assert_array_equal(segments.flatten(), ours.lengths)
            within_segment = np.arange(ours.tokens) - np.repeat(
                np.cumsum(ours.lengths) - ours.lengths, ours.lengths
            )
            np.testing.assert_array_equal(
                ids.flatten(), np.repeat(ours.starts, ours.lengths) + within_segment
            )
            for index in range(0, len(ours), 1 + len(ours) // 200):
                row, expected = ours.get_row(index), theirs[index]
                filled = row.input_ids != stream.pad_id
                assert row.input_ids[filled].tolist() == expected["input_ids"]
                assert row.lengths[: len(expected["seq_lengths"])].tolist() == expected["seq_lengths"]
