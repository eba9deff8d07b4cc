"""Texts are unchanged for trainers, except that very long runs are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import TEXTS, load_english, make_korean

from krill.tokenizer.chunking import MAX_RUN_CHARACTERS, chunk_texts


def test_ordinary_texts_are_unchanged() -> None:
    texts = [
        "",
        " ",
        *TEXTS,
        *load_english(),
        *make_korean(),
        "x" * MAX_RUN_CHARACTERS,
        " " * MAX_RUN_CHARACTERS,
    ]
    assert list(chunk_texts(texts)) == texts


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", " ", "\n", "가", "b "]), st.integers(0, 3 * MAX_RUN_CHARACTERS)),
        max_size=5,
    )
)
def test_chunks_join_to_the_text_and_have_no_long_run(runs: list[tuple[str, int]]) -> None:
    text = "".join(letter * count for letter, count in runs)
    chunks = list(chunk_texts([text]))
    assert "".join(chunks) == text
    for chunk in chunks:
        words = "".join(" " if letter.isspace() else "x" for letter in chunk)
        assert max(map(len, words.split(" "))) <= 2 * MAX_RUN_CHARACTERS
        assert max(map(len, words.split("x"))) <= 2 * MAX_RUN_CHARACTERS


@pytest.mark.parametrize("letter", [" ", "a", "가"])
def test_a_long_run_is_cut(letter: str) -> None:
    chunks = list(chunk_texts([letter * 10 * MAX_RUN_CHARACTERS]))
    assert [len(chunk) for chunk in chunks] == [MAX_RUN_CHARACTERS] * 10
