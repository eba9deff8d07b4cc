"""Packs the documents of a split into rows of `sequence_len` tokens. No token is lost.

A row is a list of segments, each a contiguous piece of ONE document. Attention, positions and loss are limited to a
segment, so documents never attend to each other.

wrapped   The stream is cut every `sequence_len` tokens: full rows, but a document is cut wherever a row ends.
best_fit  Only documents longer than a row are cut; the pieces, longest first, go to the fullest row that still has
          room (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"). Equal to
          `trl.pack_dataset(strategy="bfd_split")` row for row.
windows   For validation: a long document is cut into windows that overlap by one token, which is in two segments, so
          that every token but bos is predicted exactly once for any row length.

10⁶ documents take less than a second (2 cores, any strategy).
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

IGNORE_INDEX = -100
"""The label of positions without a target (torch's ignore_index)."""


class TokenStream(Protocol):
    """The stream that rows are cut from, for example `krill.data.store.Split`."""

    @property
    def ends(self) -> np.ndarray:
        """The end of each document in the stream, ascending; unsigned (documents,)."""

    @property
    def pad_id(self) -> int:
        """The id that pads short rows."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns token ids [start, stop)."""


class Row(NamedTuple):
    """One row, padded to sequence_len; the arrays are int64 (sequence_len,)."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    """Restart at 0 in each segment, including the padding."""
    labels: np.ndarray
    """input_ids where a token is predicted from the previous one; -100 at a segment's first token and on padding."""
    lengths: np.ndarray
    """Tokens of each segment; int64 (segments,). Padding is the last segment: the sum is sequence_len."""


@dataclass(frozen=True)
class Rows:
    """The rows of a split: row i consists of the segments offsets[i] … offsets[i + 1] - 1."""

    stream: TokenStream
    sequence_len: int
    starts: np.ndarray
    """Start of each segment in the split's stream; int64 (segments,)."""
    lengths: np.ndarray
    """Tokens of each segment; int64 (segments,)."""
    offsets: np.ndarray
    """Index of the first segment of each row; int64 (rows + 1,)."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows, without padding."""
        return int(self.lengths.sum())

    @property
    def padding_fraction(self) -> float:
        """Fraction of the positions of all rows that are padding."""
        return 1 - self.tokens / (len(self) * self.sequence_len) if len(self) else 0.0

    @property
    def cut_fraction(self) -> float:
        """Fraction of the documents that are split into more than one segment."""
        owners = np.searchsorted(self.stream.ends.astype(np.int64), self.starts, "right")
        pieces = np.unique(owners, return_counts=True)[1]
        return float((pieces > 1).mean()) if len(pieces) else 0.0

    @property
    def targets(self) -> int:
        """Number of predicted tokens: all but the first of each segment."""
        return self.tokens - len(self.lengths)

    def get_row(self, index: int) -> Row:
        """Returns row `index` with its tokens. Raises IndexError if there is no such row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        segments = slice(self.offsets[index], self.offsets[index + 1])
        return self._fill_row(self.starts[segments], self.lengths[segments])

    def make_empty_row(self) -> Row:
        """Returns a row of padding only, which completes a last batch."""
        return self._fill_row(self.starts[:0], self.lengths[:0])

    def _fill_row(self, starts: np.ndarray, lengths: np.ndarray) -> Row:
        input_ids = np.full(self.sequence_len, self.stream.pad_id, np.int64)
        filled = 0
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            input_ids[filled : filled + length] = self.stream.read(start, start + length)
            filled += length
        if filled < self.sequence_len:
            lengths = np.append(lengths, self.sequence_len - filled)
        begins = np.cumsum(lengths) - lengths
        labels = input_ids.copy()
        labels[begins] = IGNORE_INDEX
        labels[filled:] = IGNORE_INDEX
        positions = np.arange(self.sequence_len) - np.repeat(begins, lengths)
        return Row(input_ids, positions, labels, lengths)


def pack(stream: TokenStream, sequence_len: int, strategy: Literal["wrapped", "best_fit"]) -> Rows:
    """Returns the training rows of a split; see the strategies above."""
    starts, lengths = _find_documents(stream.ends)
    if strategy == "wrapped":
        rows = _pack_wrapped(stream, starts, sequence_len, int(lengths.sum()))
    else:
        rows = _pack_best_fit(
            stream, *_cut_documents(starts, lengths, sequence_len, sequence_len), sequence_len
        )
    assert rows.tokens == lengths.sum(), f"{strategy} packing lost or duplicated tokens"
    return rows


def count_best_fit_rows(ends: np.ndarray, sequence_len: int) -> int:
    """Returns the number of rows into which best_fit packs documents that end at `ends`; unsigned (documents,)."""
    starts, lengths = _find_documents(ends)
    lengths = _cut_documents(starts, lengths, sequence_len, sequence_len)[1]
    return int(_assign_best_fit(-np.sort(-lengths), sequence_len).max(initial=-1)) + 1


def pack_windows(stream: TokenStream, sequence_len: int, documents: np.ndarray | None = None) -> Rows:
    """Returns the validation rows of a split, packed best-fit; `targets` is tokens - documents. sequence_len ≥ 2.

    `documents`: the indices of the documents to pack, int64; None: all.
    """
    starts, lengths = _find_documents(stream.ends)
    if documents is not None:
        starts, lengths = starts[documents], lengths[documents]
    rows = _pack_best_fit(
        stream, *_cut_documents(starts, lengths, sequence_len, sequence_len - 1), sequence_len
    )
    assert rows.targets == (lengths - 1).sum(), "windows do not predict each token but bos exactly once"
    return rows


def _find_documents(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns starts and lengths of the non-empty documents; int64."""
    ends = ends.astype(np.int64)
    starts = np.concatenate((np.zeros(1, np.int64), ends))[:-1]
    lengths = ends - starts
    return starts[lengths > 0], lengths[lengths > 0]


def _pack_wrapped(stream: TokenStream, starts: np.ndarray, sequence_len: int, total: int) -> Rows:
    cuts = np.arange(0, total, sequence_len)
    starts = np.union1d(starts, cuts)
    lengths = np.diff(starts, append=total)
    return Rows(stream, sequence_len, starts, lengths, np.append(np.searchsorted(starts, cuts), len(starts)))


def _cut_documents(
    starts: np.ndarray, lengths: np.ndarray, max_length: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into pieces of at most `max_length` tokens, one every `stride`; in document order.

    Returns starts and lengths of the pieces. With stride = max_length - 1 pieces overlap by one token, and a
    remainder of only the overlap is not a piece.
    """
    overlap = max_length - stride
    pieces = np.maximum(1, -(-(lengths - overlap) // stride))
    first = np.cumsum(pieces) - pieces
    shift = (np.arange(pieces.sum()) - np.repeat(first, pieces)) * stride
    return np.repeat(starts, pieces) + shift, np.minimum(max_length, np.repeat(lengths, pieces) - shift)


def _pack_best_fit(stream: TokenStream, starts: np.ndarray, lengths: np.ndarray, sequence_len: int) -> Rows:
    """Packs pieces best-fit decreasing; pieces of equal length in document order."""
    order = np.argsort(-lengths, kind="stable")
    bins = _assign_best_fit(lengths[order], sequence_len)
    by_row = np.argsort(bins, kind="stable")
    order = order[by_row]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(bins))))
    return Rows(stream, sequence_len, starts[order], lengths[order], offsets)


def _assign_best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Returns the row of each piece, for descending `lengths`; int64 (pieces,).

    A piece goes to the row with the least sufficient room, among several to the one that reached that room first,
    else to a new row. Existing amounts of room are bits of one integer, so the least sufficient room is found with a
    shift and the lowest set bit. Pieces of equal length are assigned to a row together.
    """
    room_to_rows: defaultdict[int, deque[int]] = defaultdict(deque)
    rooms = 0
    rows = 0
    bins = np.empty(len(lengths), np.int64)
    values, counts = np.unique(-lengths, return_counts=True)
    placed = 0
    for length, count in zip((-values).tolist(), counts.tolist(), strict=True):
        stop = placed + count
        while placed < stop:
            sufficient = rooms >> length
            if sufficient:
                room = length + (sufficient & -sufficient).bit_length() - 1
                candidates = room_to_rows[room]
                row = candidates.popleft()
                if not candidates:
                    rooms ^= 1 << room
            else:
                room, row = capacity, rows
                rows += 1
            num_fitting = min(room // length, stop - placed)
            bins[placed : placed + num_fitting] = row
            placed += num_fitting
            room -= num_fitting * length
            if room:
                room_to_rows[room].append(row)
                rooms |= 1 << room
    return bins
