"""One hash identifies duplicates and determines the split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill.text import dedup
from krill.text.dedup import SeenDigests, assign_split, digests_to_array, find_first_copies, is_validation


def make_digest(text: str) -> bytes:
    return dedup.hash_text(text.encode())


def test_the_first_copy_is_kept() -> None:
    seen = SeenDigests()
    assert [seen.check_and_add(make_digest(text)) for text in ("a", "b", "a", "a", "가")] == [
        False, False, True, True, False,
    ]  # fmt: skip


def test_the_validation_split_follows_the_fraction_and_only_grows() -> None:
    digests = [make_digest(f"document {index}") for index in range(20_000)]
    small = {digest for digest in digests if assign_split(digest, 0.01) == "validation"}
    large = {digest for digest in digests if assign_split(digest, 0.1) == "validation"}
    assert small < large
    assert 150 < len(small) < 250
    assert 1800 < len(large) < 2200
    assert not any(assign_split(digest, 0.0) == "validation" for digest in digests)


def test_the_split_never_changes() -> None:
    """Another split would move validation documents into the training of a resumed run."""
    validation = [
        index for index in range(100) if assign_split(make_digest(f"document {index}"), 0.1) == "validation"
    ]
    assert validation == [8, 24, 28, 38, 95, 98]


@pytest.mark.parametrize("bucket_size", [2, 7, 2**24])
@given(st.lists(st.integers(0, 12), max_size=60))
def test_first_copies_are_those_that_a_set_keeps(bucket_size: int, numbers: list[int]) -> None:
    digests = [make_digest(str(number)) for number in numbers]
    seen = SeenDigests()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "SORT_BUCKET_SIZE", bucket_size)
        keep = find_first_copies(digests_to_array(b"".join(digests)))
    assert keep.tolist() == [not seen.check_and_add(digest) for digest in digests]


@pytest.mark.parametrize("fraction", [0.0, 1e-9, 1e-4, 0.001, 0.1, 0.5, 1 - 2**-53])
def test_is_validation_agrees_with_assign_split(fraction: float) -> None:
    edge = int(fraction * 2**64)
    near_edge = [min(max(edge + step, 0), 2**64 - 1).to_bytes(8, "big") + bytes(8) for step in range(-3, 4)]
    digests = [make_digest(f"document {index}") for index in range(500)] + near_edge
    expected = [assign_split(digest, fraction) == "validation" for digest in digests]
    assert is_validation(digests_to_array(b"".join(digests)), fraction).tolist() == expected
