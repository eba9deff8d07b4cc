"""Batched scores are those of each sequence alone."""

from __future__ import annotations

import copy
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rank_threads import run_ranks

from krill.errors import KrillError
from krill.evaluation.prefix_tree import supports_trees
from krill.evaluation.rank_share import EvaluationError, RankShare
from krill.evaluation.token_scorer import SequenceKey, SequenceScore, TokenScorer
from krill.evaluation.token_sequence import TokenSequence

RANDOM = Random(1)


def draw_ids(length: int) -> tuple[int, ...]:
    return (0, *(RANDOM.randrange(3, 250) for _ in range(length - 1)))


def make_questions() -> list[list[TokenSequence]]:
    """Questions of every shape: pairs that differ in the middle, one-token choices, one sequence, whole contexts."""
    questions = []
    for length in (2, 3, 9, 17, 30, 50, 9, 9):
        context = draw_ids(length)
        choices = [draw_ids(RANDOM.randrange(2, 9))[1:] for _ in range(3)]
        questions.append([TokenSequence(context + choice, len(choice)) for choice in choices])
        questions.append([TokenSequence(context + choice, length + len(choice) - 1) for choice in choices])
        questions.append([TokenSequence((*context, token), 1) for token in (5, 6)])
        questions.append([TokenSequence(context, length - 1)])
        # cut at their beginnings, which differ then
        questions.append(
            [TokenSequence((*context[place:], 7), length - place) for place in (0, 1) if length > 2]
        )
    return [question for question in questions if question]


QUESTIONS = make_questions()
KEYS = [(index, position) for index, item in enumerate(QUESTIONS) for position in range(len(item))]


@torch.no_grad()
def score_alone(model: Any, sequence: TokenSequence) -> np.ndarray:
    logits_NV = model(input_ids=torch.tensor([sequence.ids]), use_cache=False).logits[0, :-1]
    targets = torch.tensor(sequence.ids[1:])
    logprobs_N = logits_NV.double().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    return logprobs_N[-sequence.num_scored :].numpy()


@pytest.mark.parametrize("max_batch_tokens", [1, 100, 10_000])
def test_scores_are_those_of_each_sequence_alone_at_any_batch_size(model: Any, max_batch_tokens: int) -> None:
    scores = TokenScorer(model, 259, max_batch_tokens).score(QUESTIONS)
    assert sorted(scores) == KEYS
    for index, position in KEYS:
        expected = score_alone(model, QUESTIONS[index][position])
        np.testing.assert_allclose(scores[index, position].logprobs, expected, atol=2e-5)


class WithoutTrees:
    """A model of which nothing is known but what it computes."""

    def __init__(self, model: Any):
        self.model, self.device = model, model.device

    def __call__(self, **inputs: Any) -> Any:
        return self.model(**inputs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_trees_compute_fewer_tokens_and_the_same_scores(model: Any, attention: str) -> None:
    counts = {}

    class Counting(WithoutTrees):
        def __call__(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
            counts[type(self).__name__] = counts.get(type(self).__name__, 0) + input_ids.numel()
            return self.model(input_ids=input_ids, **inputs)

    class CountingTrees(Counting):
        dtype, config = model.dtype, model.config

    model.set_attn_implementation(attention)
    try:
        alike = [draw_ids(20) for _ in range(8)]
        questions = [
            [TokenSequence((*ids[:cut], *draw_ids(6)[1:]), cut + 4) for _ in range(2)]
            for ids in alike
            for cut in (4, 9, 17)
        ]
        questions += QUESTIONS
        expected = TokenScorer(Counting(model), 259).score(questions)
        scores = TokenScorer(CountingTrees(model), 259).score(questions)
    finally:
        model.set_attn_implementation("sdpa")
    assert counts["CountingTrees"] < 0.9 * counts["Counting"]
    assert scores.keys() == expected.keys()
    for key, score in scores.items():
        np.testing.assert_allclose(score.logprobs, expected[key].logprobs, atol=2e-5)
        assert score.is_greedy == expected[key].is_greedy


@pytest.mark.parametrize("max_batch_tokens", [1, 100, 10_000])
def test_scores_from_a_cache_are_those_of_each_sequence_alone(model: Any, max_batch_tokens: int) -> None:
    scores = TokenScorer(WithoutTrees(model), 259, max_batch_tokens).score(QUESTIONS)
    assert sorted(scores) == KEYS
    for index, position in KEYS:
        expected = score_alone(model, QUESTIONS[index][position])
        np.testing.assert_allclose(scores[index, position].logprobs, expected, atol=2e-5)


def test_a_model_with_a_sliding_window_has_no_trees(model: Any) -> None:
    assert supports_trees(model)
    config = copy.copy(model.config)
    config.sliding_window = 8
    assert not supports_trees(SimpleNamespace(config=config))
    assert not supports_trees(WithoutTrees(model))


def test_greedy_sequences_are_those_that_the_model_would_generate(model: Any) -> None:
    context = draw_ids(9)
    ids = list(context)
    for _ in range(4):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    other = [*ids[:-1], ids[-1] ^ 1]
    scores = TokenScorer(model, 259).score([[TokenSequence(tuple(ids), 4), TokenSequence(tuple(other), 4)]])
    assert [scores[0, 0].is_greedy, scores[0, 1].is_greedy] == [True, False]


def test_ranks_share_the_questions_out_and_run_the_same_number_of_passes(model: Any) -> None:
    calls = [0, 0, 0]
    reported = [0, 0, 0]

    def score(share: RankShare) -> dict[SequenceKey, SequenceScore]:
        class Counting:
            device = model.device

            def __call__(self, **inputs: Any) -> Any:
                calls[share.rank] += 1
                return model(**inputs)

        def report(done: int, total: int) -> None:
            assert reported[share.rank] < done <= total == len(KEYS)
            reported[share.rank] = done

        return TokenScorer(Counting(), 259, 200, share).score(QUESTIONS, report)

    all_scores = run_ranks(3, score)
    assert len(set(calls)) == 1
    assert len(KEYS) in reported
    whole = TokenScorer(model, 259, 200).score(QUESTIONS)
    for scores in all_scores:
        assert sorted(scores) == KEYS
        for key, found in scores.items():
            np.testing.assert_allclose(found.logprobs, whole[key].logprobs, atol=2e-5)


def test_ranks_fail_together_when_one_runs_out_of_memory(model: Any) -> None:
    def score(share: RankShare) -> str:
        class Limited:
            device = model.device

            def __call__(self, **inputs: Any) -> Any:
                if share.rank == 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return model(**inputs)

        with pytest.raises(EvaluationError) as error:
            TokenScorer(Limited(), 259, 200, share).score(QUESTIONS)
        return str(error.value)

    assert run_ranks(3, score) == ["rank 1: CUDA out of memory"] * 3


def test_out_of_memory_halves_the_batch(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Limited:
        device = model.device

        def __call__(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
            if input_ids.numel() > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model(input_ids=input_ids, **inputs)

    limited = Limited()
    limited.limit = 120  # type: ignore[attr-defined]
    scores = TokenScorer(limited, 259, 10_000).score(QUESTIONS)
    assert sorted(scores) == KEYS
    assert "out of memory" in caplog.text
    limited.limit = 10  # type: ignore[attr-defined]
    with pytest.raises(KrillError, match=r"out of memory with \d+ tokens"):
        TokenScorer(limited, 259).score(QUESTIONS)
