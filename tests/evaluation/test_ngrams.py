"""The unigram and trigram models are those of a direct computation."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stores import write_store

from krill.evaluation.ngrams import WEIGHTS, NgramCounts
from krill.evaluation.token_sequence import TokenSequence
from krill.tokenizer.artifact import TokenizerFolder


@pytest.mark.parametrize("chunk_tokens", [7, 2**22])
def test_probabilities_are_those_of_the_text(
    tokenizer: TokenizerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_tokens: int
) -> None:
    monkeypatch.setattr("krill.evaluation.ngrams._CHUNK_TOKENS", chunk_tokens)
    store = write_store(tmp_path / "store", tokenizer, [("a", "나나 banana an"), ("a", "abab")], [("a", "x")])
    stream = store.train.copy(0, store.train.tokens).tolist()
    scored = TokenSequence((0, *(tokenizer.backend.encode("bana zx").ids[1:])), 6)
    streams = [np.array(ids) for ids in (scored.ids, (0, 5))]
    counts = NgramCounts(store.train, tokenizer.vocab_size, streams)
    grams = [Counter(zip(*(stream[i:] for i in range(n)), strict=False)) for n in (1, 2, 3)]

    def get_probability(ids: tuple[int, ...], order: int) -> float:
        unigram = (grams[0][ids[-1:]] + 1) / (len(stream) + tokenizer.vocab_size)
        if order == 1:
            return unigram
        terms = [(WEIGHTS[0], unigram)]
        for length in (2, 3):
            context = ids[-length:-1]
            if len(context) == length - 1 and grams[length - 2][context]:
                terms.append(
                    (WEIGHTS[length - 1], grams[length - 1][ids[-length:]] / grams[length - 2][context])
                )
        return sum(weight * value for weight, value in terms) / sum(weight for weight, _ in terms)

    for order in (1, 3):
        begin = len(scored.ids) - scored.num_scored
        expected = sum(
            math.log(get_probability(scored.ids[: index + 1], order))
            for index in range(begin, len(scored.ids))
        )
        assert counts.score(scored, order) == pytest.approx(expected)
    assert np.isfinite(counts.score(TokenSequence((0, 5), 1), 3))
