"""What trainers are fed: texts as they are, runs without end in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import TEXTS, english, korean

from krill.text.batching import batch_by_size
from krill.tokenizer.chunking import ENCODE_BATCH_CHARACTERS, MAX_RUN_CHARACTERS, chunk_texts


def test_ordinary_texts_pass_as_they_are() -> None:
    texts = ["", " ", *TEXTS, *english(), *korean(), "x" * MAX_RUN_CHARACTERS, " " * MAX_RUN_CHARACTERS]
    assert list(chunk_texts(texts)) == texts


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", " ", "\n", "가", "b "]), st.integers(0, 3 * MAX_RUN_CHARACTERS)),
        max_size=5,
    )
)
def test_pieces_make_the_text_again_and_none_holds_a_long_run(runs: list[tuple[str, int]]) -> None:
    text = "".join(letter * count for letter, count in runs)
    found = list(chunk_texts([text]))
    assert "".join(found) == text
    for piece in found:
        words = "".join(" " if letter.isspace() else "x" for letter in piece)
        assert max(map(len, words.split(" "))) <= 2 * MAX_RUN_CHARACTERS
        assert max(map(len, words.split("x"))) <= 2 * MAX_RUN_CHARACTERS


@pytest.mark.parametrize("letter", [" ", "a", "가"])
def test_a_long_run_is_cut(letter: str) -> None:
    found = list(chunk_texts([letter * 10 * MAX_RUN_CHARACTERS]))
    assert [len(piece) for piece in found] == [MAX_RUN_CHARACTERS] * 10


def test_batches_hold_about_as_much_as_is_encoded_at_once() -> None:
    texts = ["x" * (ENCODE_BATCH_CHARACTERS // 3), "y"] * 10
    found = list(batch_by_size(texts, ENCODE_BATCH_CHARACTERS, len))
    assert [text for batch in found for text in batch] == texts
    assert all(
        ENCODE_BATCH_CHARACTERS <= sum(map(len, batch)) < 2 * ENCODE_BATCH_CHARACTERS for batch in found[:-1]
    )
    assert list(batch_by_size([], ENCODE_BATCH_CHARACTERS, len)) == []
