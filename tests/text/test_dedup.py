"""One hash tells duplicates and chooses the split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill.text import dedup
from krill.text.dedup import Duplicates, first_copies, held_out, split_of, words


def digest_of(text: str) -> bytes:
    return dedup.digest_of(text.encode())


def test_the_first_copy_is_kept() -> None:
    duplicates = Duplicates()
    assert [duplicates.saw(digest_of(text)) for text in ("a", "b", "a", "a", "가")] == [
        False, False, True, True, False,
    ]  # fmt: skip


def test_split_follows_the_fraction_and_only_grows() -> None:
    digests = [digest_of(f"document {index}") for index in range(20_000)]
    small = {digest for digest in digests if split_of(digest, 0.01) == "validation"}
    large = {digest for digest in digests if split_of(digest, 0.1) == "validation"}
    assert small < large
    assert 150 < len(small) < 250
    assert 1800 < len(large) < 2200
    assert not any(split_of(digest, 0.0) == "validation" for digest in digests)


def test_split_never_changes() -> None:
    """Pinned: another split would let validation documents into training of a run that goes on."""
    held = [index for index in range(100) if split_of(digest_of(f"document {index}"), 0.1) == "validation"]
    assert held == [8, 24, 28, 38, 95, 98]


@pytest.mark.parametrize("bucket", [2, 7, 2**24])
@given(st.lists(st.integers(0, 12), max_size=60))
def test_first_copies_are_those_that_a_set_keeps(bucket: int, numbers: list[int]) -> None:
    digests = [digest_of(str(number)) for number in numbers]
    seen = Duplicates()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "BUCKET", bucket)
        keep = first_copies(words(b"".join(digests)))
    assert keep.tolist() == [not seen.saw(digest) for digest in digests]


@pytest.mark.parametrize("fraction", [0.0, 1e-9, 1e-4, 0.001, 0.1, 0.5, 1 - 2**-53])
def test_many_are_held_out_as_one_is(fraction: float) -> None:
    edge = int(fraction * 2**64)
    near_edge = [min(max(edge + step, 0), 2**64 - 1).to_bytes(8, "big") + bytes(8) for step in range(-3, 4)]
    digests = [digest_of(f"document {index}") for index in range(500)] + near_edge
    expected = [split_of(digest, fraction) == "validation" for digest in digests]
    assert held_out(words(b"".join(digests)), fraction).tolist() == expected
