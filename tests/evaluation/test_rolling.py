"""Windows over long texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rank_threads import run_ranks

from krill.evaluation.rolling import EncodedText, make_windows, score_texts
from krill.evaluation.token_scorer import TokenScorer


@pytest.mark.parametrize("length", [2, 10, 11, 12, 30, 31, 57])
@pytest.mark.parametrize("overlap", [1, 5, 10])
def test_every_token_is_scored_once_with_at_least_the_overlap_before_it(length: int, overlap: int) -> None:
    ids = list(range(length))
    windows = make_windows(ids, 10, overlap)
    scored = [token for window in windows for token in window.ids[-window.num_scored :]]
    assert scored == ids[1:]
    assert all(len(window.ids) <= 11 for window in windows)
    assert all(len(window.ids) - window.num_scored >= overlap for window in windows[1:])


def test_without_overlap_the_windows_are_those_of_lm_eval() -> None:
    # get_rolling_token_windows(range(1, 13), prefix_token=0, max_seq_len=5, context_len=1) of lm-eval 0.4.13
    inputs_and_targets = [
        ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5]),
        ([5, 6, 7, 8, 9], [6, 7, 8, 9, 10]),
        ([7, 8, 9, 10, 11], [11, 12]),
    ]
    windows = make_windows(range(13), 5)
    assert [
        (list(window.ids[:-1]), list(window.ids[-window.num_scored :])) for window in windows
    ] == inputs_and_targets


def test_scores_do_not_depend_on_batches_and_ranks(model: Any) -> None:
    random = np.random.default_rng(0)
    texts = [
        EncodedText((0, *random.integers(3, 250, size).tolist()), int(size))
        for size in (1, 5, 200, 64, 65, 131, 7)
    ]
    whole = score_texts(TokenScorer(model, 259), texts, 64, 32)
    assert whole.tokens.tolist() == whole.bytes.tolist() == [1, 5, 200, 64, 65, 131, 7]
    parts = run_ranks(3, lambda share: score_texts(TokenScorer(model, 259, 150, share), texts, 64, 32))
    for part in parts:
        np.testing.assert_allclose(part.nats, whole.nats, rtol=1e-6)
        assert part.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)
    interval = whole.estimate_bits_per_byte()
    assert interval.low < interval.value < interval.high
