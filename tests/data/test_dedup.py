"""One hash tells duplicates and chooses the split."""

from __future__ import annotations

from krill.data.dedup import Duplicates, digest_of, split_of


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
