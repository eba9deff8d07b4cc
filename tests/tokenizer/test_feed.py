"""What trainers are fed: texts as they are, runs without end in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import TEXTS, english, korean

from krill.text.batches import batches
from krill.tokenizer.feed import BATCH, RUN, pieces


def test_ordinary_texts_pass_as_they_are() -> None:
    texts = ["", " ", *TEXTS, *english(), *korean(), "x" * RUN, " " * RUN]
    assert list(pieces(texts)) == texts


@given(
    st.lists(st.tuples(st.sampled_from(["a", " ", "\n", "가", "b "]), st.integers(0, 3 * RUN)), max_size=5)
)
def test_pieces_make_the_text_again_and_none_holds_a_long_run(runs: list[tuple[str, int]]) -> None:
    text = "".join(letter * count for letter, count in runs)
    found = list(pieces([text]))
    assert "".join(found) == text
    for piece in found:
        words = "".join(" " if letter.isspace() else "x" for letter in piece)
        assert max(map(len, words.split(" "))) <= 2 * RUN
        assert max(map(len, words.split("x"))) <= 2 * RUN


@pytest.mark.parametrize("letter", [" ", "a", "가"])
def test_a_long_run_is_cut(letter: str) -> None:
    found = list(pieces([letter * 10 * RUN]))
    assert [len(piece) for piece in found] == [RUN] * 10


def test_batches_hold_about_as_much_as_is_encoded_at_once() -> None:
    texts = ["x" * (BATCH // 3), "y"] * 10
    found = list(batches(texts, BATCH, len))
    assert [text for batch in found for text in batch] == texts
    assert all(BATCH <= sum(map(len, batch)) < 2 * BATCH for batch in found[:-1])
    assert list(batches([], BATCH, len)) == []
