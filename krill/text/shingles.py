"""Hashes the shingles of texts, all runs of `size` consecutive units, to 64 bits, a batch at a time in numpy.

A unit is a word (as by `str.split`) or a character that is not white space. Shingles of characters therefore do
not depend on the spacing. Nothing else is normalized: letter case and punctuation count.

Words are hashed by differences of one running polynomial (Karp & Rabin 1987, modulo 2^64), shingles by a polynomial
over their units. The hashes are then mixed (the finalizer of MurmurHash3), as MinHash needs every bit random. Among
10^9 different shingles any two collide with a probability of about 3 %; one shared hash in a document of a hundred
shingles does not change the decision about the document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

VERSION = 1
"""Part of the signature of prepared data; incremented when the same text gives other hashes."""

MAX_GROUP_CODE_POINTS = 2**16
"""Maximum number of code points that are hashed at once, so that the arrays stay in the processor's cache. A longer
text is cut, and a word that is cut counts as two."""

_CODE_POINT_BASE, _UNIT_BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
"""Odd bases of the two polynomials."""
_MIX_FACTORS = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_POWERS = np.cumprod(np.full(MAX_GROUP_CODE_POINTS + 2, _CODE_POINT_BASE), dtype=np.uint64)
_IS_SPACE = np.array([chr(point).isspace() for point in range(0x3002)])
"""By code point; there is no white space beyond its end."""


def hash_shingles(
    texts: list[str], unit: Literal["word", "character"], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes the shingles of each text, in order and with repetitions.

    Returns (hashes uint64 (n,), offsets int64 (len(texts) + 1,)): text i has hashes[offsets[i]:offsets[i + 1]].
    A text of fewer than `size` units has one shingle, the whole text; a text without units has none.
    """
    hashes, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for group in _group_texts(texts):
        units, lengths = _hash_units(group, unit)
        units, lengths = _pad_units(units, lengths, size)
        hashes.append(_hash_windows(units, lengths, size))
        counts.append(np.maximum(lengths - (size - 1), 0))
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))))
    return np.concatenate(hashes), offsets


def sort_unique(hashes: np.ndarray) -> np.ndarray:
    """Returns the distinct `hashes` in rising order, 50 times as fast as the equivalent np.unique (numpy 2.4)."""
    hashes = np.sort(hashes)
    return hashes[np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]]


def mix_bits(values: np.ndarray) -> np.ndarray:
    """Mixes `values`, uint64, in place so that every bit of the output depends on every bit of the input."""
    for factor in _MIX_FACTORS:
        values ^= values >> np.uint64(33)
        values *= factor
    values ^= values >> np.uint64(33)
    return values


def _group_texts(texts: list[str]) -> Iterator[list[str]]:
    """Yields consecutive texts of at most MAX_GROUP_CODE_POINTS, separators included; a longer text alone."""
    group: list[str] = []
    room = MAX_GROUP_CODE_POINTS
    for text in texts:
        if group and len(text) >= room:
            yield group
            group, room = [], MAX_GROUP_CODE_POINTS
        group.append(text)
        room -= len(text) + 1
    if group:
        yield group


def _hash_units(group: list[str], unit: Literal["word", "character"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of all units, uint64 (n,), and the number of units of each text, int64 (len(group),)."""
    hash_texts = _hash_words if unit == "word" else _hash_characters
    if len(group) == 1:
        text = group[0]
        parts = [
            hash_texts([text[start : start + MAX_GROUP_CODE_POINTS]])[0]
            for start in range(0, len(text), MAX_GROUP_CODE_POINTS)
        ]
        units = np.concatenate([np.zeros(0, np.uint64), *parts])
        return units, np.array([len(units)])
    return hash_texts(group)


def _decode_code_points(group: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the code points of the texts, separated by line ends, a mask of white space, and the starts."""
    joined = "\n".join(["", *group, ""])
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
    lengths = np.fromiter(map(len, group), np.int64, len(group))
    return points, _IS_SPACE.take(points, mode="clip"), np.cumsum(lengths + 1) - lengths


def _hash_words(group: list[str]) -> tuple[np.ndarray, np.ndarray]:
    points, is_space, starts = _decode_code_points(group)
    edges = np.flatnonzero(is_space[1:] != is_space[:-1])
    before, last = edges[::2], edges[1::2]
    running = np.cumsum(points * _POWERS[: len(points)], dtype=np.uint64)
    # Shifted to the same power, whatever the position, so that equal words have equal hashes.
    hashes = (running[last] - running[before]) * _POWERS[MAX_GROUP_CODE_POINTS - before]
    return hashes, np.diff(np.searchsorted(before, starts - 1), append=len(before))


def _hash_characters(group: list[str]) -> tuple[np.ndarray, np.ndarray]:
    points, is_space, starts = _decode_code_points(group)
    return points[~is_space].astype(np.uint64), np.add.reduceat(~is_space, starts, dtype=np.int64)


def _pad_units(units: np.ndarray, lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads texts of at least one but fewer than `size` units with zeros to one shingle."""
    missing = np.where(lengths > 0, np.maximum(size - lengths, 0), 0)
    if not missing.any():
        return units, lengths
    shift = np.cumsum(missing) - missing
    padded = np.zeros(len(units) + int(missing.sum()), np.uint64)
    padded[np.arange(len(units)) + np.repeat(shift, lengths)] = units
    return padded, lengths + missing


def _hash_windows(units: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Hashes every `size` consecutive units of the same text."""
    if not len(units):
        return units
    count = len(units) - (size - 1)
    hashes = units[:count].copy()
    for step in range(1, size):
        hashes *= _UNIT_BASE
        hashes += units[step : step + count]
    within = np.ones(len(units), bool)
    ends = np.cumsum(lengths)[lengths > 0]
    within[(ends[:, None] - np.arange(1, size)).ravel()] = False
    return mix_bits(hashes[within[:count]])
