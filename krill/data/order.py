"""The order of rows: a pure function of (seed, epoch, position), so that resuming needs one integer.

A keyed permutation of [0, rows) that is computed per position without storing it: a Feistel network over the
smallest power of two that is at least `rows`, followed along its cycle until the value is below `rows` (Black and
Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). Constant memory; 11 µs per position, 0.2 µs in arrays.

The order is part of a run's identity: it is the same on every machine, and the constants below never change.
"""

from __future__ import annotations

from typing import TypeVar, overload

import numpy as np

_MASK = 2**64 - 1
_ROUNDS = 8

WordT = TypeVar("WordT", int, np.ndarray)
"""One 64-bit word, or an array of them (uint64)."""


@overload
def row_at(seed: int, epoch: int, position: int, rows: int) -> int: ...
@overload
def row_at(seed: int, epoch: int, position: np.ndarray, rows: int) -> np.ndarray: ...
def row_at(seed: int, epoch: int, position: int | np.ndarray, rows: int) -> int | np.ndarray:
    """Returns the row at `position` (0 … rows - 1) of an epoch; an array of positions returns int64 of its shape.

    Every (seed, epoch) has a different order. Raises IndexError for a position outside [0, rows).
    """
    keys = _derive_round_keys(seed, epoch)
    bits = max(1, (rows - 1).bit_length())
    if isinstance(position, np.ndarray):
        if position.size and not (position.min() >= 0 and position.max() < rows):
            raise IndexError(f"positions {position.min()} … {position.max()} of {rows} rows")
        permuted = _permute(position.astype(np.uint64), bits, keys)
        while (outside := permuted >= rows).any():
            permuted[outside] = _permute(permuted[outside], bits, keys)
        return permuted.astype(np.int64)
    if not 0 <= position < rows:
        raise IndexError(f"position {position} of {rows} rows")
    row = _permute(int(position), bits, keys)
    while row >= rows:
        row = _permute(row, bits, keys)
    return row


def _permute(word: WordT, bits: int, keys: list[int]) -> WordT:
    """Permutes [0, 2**bits) with an unbalanced Feistel network whose halves swap each round."""
    high_bits, low_bits = bits // 2, bits - bits // 2
    word = word ^ (keys[-1] & ((1 << bits) - 1))
    for key in keys[:-1]:
        high, low = word >> low_bits, word & ((1 << low_bits) - 1)
        high = high ^ (_mix(low ^ key) & ((1 << high_bits) - 1))
        word = (low << high_bits) | high
        high_bits, low_bits = low_bits, high_bits
    return word


def _mix(word: WordT) -> WordT:
    """Applies the finalizer of splitmix64 (Steele, Lea, Flood 2014): each input bit flips half of the output bits."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def _derive_round_keys(seed: int, epoch: int) -> list[int]:
    """Returns one key per round plus one: the splitmix64 sequence from a state derived from seed and epoch."""
    state = _mix(_mix(seed & _MASK) + 0x9E3779B97F4A7C15 * (epoch + 1) & _MASK)
    return [_mix((state + 0x9E3779B97F4A7C15 * (index + 1)) & _MASK) for index in range(_ROUNDS + 1)]
