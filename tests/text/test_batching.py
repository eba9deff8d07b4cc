"""Batches have bounded size and keep the order of the items."""

from __future__ import annotations

from krill.text.batching import batch_by_size
from krill.tokenizer.chunking import ENCODE_BATCH_CHARACTERS


def test_batches_have_about_the_requested_size() -> None:
    texts = ["x" * (ENCODE_BATCH_CHARACTERS // 3), "y"] * 10
    batches = list(batch_by_size(texts, ENCODE_BATCH_CHARACTERS, len))
    assert [text for batch in batches for text in batch] == texts
    assert all(
        ENCODE_BATCH_CHARACTERS <= sum(map(len, batch)) < 2 * ENCODE_BATCH_CHARACTERS
        for batch in batches[:-1]
    )
    assert list(batch_by_size([], ENCODE_BATCH_CHARACTERS, len)) == []
