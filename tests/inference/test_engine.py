"""An answer does not depend on what else is in the batch, and ends for the reason that the engine names."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from krill.errors import KrillError, UsageError
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.generate import encode_prompt, generate
from krill.inference.sampling import SamplingParams
from krill.tokenizer.artifact import TokenizerFolder

GREEDY = SamplingParams(max_new_tokens=12, temperature=0, repetition_penalty=1.0)
SAMPLED = SamplingParams(max_new_tokens=12, temperature=1.0, top_p=0.9, top_k=40, repetition_penalty=1.2)
PROMPTS = ["ab", "", "a longer prompt of 30 characters", "가나다", "x" * 50, "b", "zz", "0123456789"]


@pytest.fixture(scope="module")
def model(model: Any) -> Any:
    return model.eval()


def make_generations(tokenizer: TokenizerFolder, params: SamplingParams) -> list[Generation]:
    return [
        Generation(encode_prompt(tokenizer, prompt), params.with_seed(seed))
        for seed, prompt in enumerate(PROMPTS)
    ]


def answer_alone(model: Any, tokenizer: TokenizerFolder, generations: list[Generation]) -> list[str]:
    return [
        generate(model, tokenizer, prompt, item.params)
        for prompt, item in zip(PROMPTS, generations, strict=True)
    ]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("max_batch_size", [3, 32])
def test_a_batch_gives_the_answers_of_each_prompt_alone(
    model: Any, tokenizer: TokenizerFolder, params: SamplingParams, max_batch_size: int
) -> None:
    generations = make_generations(tokenizer, params)
    for index, item in enumerate(generations):  # of different lengths: they leave at different times
        item.params = dataclasses.replace(item.params, max_new_tokens=3 + 2 * index)
    GenerationEngine(model, tokenizer, max_batch_size).run(generations)
    assert [item.text for item in generations] == answer_alone(model, tokenizer, generations)
    assert {item.finish_reason for item in generations} <= {"eos", "length", "context"}


def test_greedy_answers_are_those_of_transformers(model: Any, tokenizer: TokenizerFolder) -> None:
    params = dataclasses.replace(GREEDY, no_repeat_ngram_size=2, repetition_penalty=1.3, min_new_tokens=6)
    generations = make_generations(tokenizer, params)
    GenerationEngine(model, tokenizer).run(generations)
    for item in generations:
        inputs = torch.tensor([item.prompt_ids])
        expected = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=12, min_new_tokens=6,
            no_repeat_ngram_size=2, repetition_penalty=1.3, eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        )[0, len(item.prompt_ids) : len(item.prompt_ids) + 64 - len(item.prompt_ids)].tolist()  # fmt: skip
        assert item.new_ids == [token for token in expected if token != tokenizer.eos_id]


@pytest.mark.parametrize(
    "change", [{"top_k": 5}, {"min_p": 0.3}, {"typical_p": 0.5}, {"top_p": 0.5}, {"temperature": 0.4}]
)
def test_sampled_answers_are_those_of_transformers(
    model: Any, tokenizer: TokenizerFolder, change: dict[str, Any]
) -> None:
    params = dataclasses.replace(GREEDY, temperature=1.0, top_p=1.0, seed=4)
    params = dataclasses.replace(params, **change)
    item = Generation(encode_prompt(tokenizer, "ab"), params)
    GenerationEngine(model, tokenizer).run([item])
    torch.manual_seed(4)
    inputs = torch.tensor([item.prompt_ids])
    expected = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=True, max_new_tokens=12,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
        **{"top_k": 0, "temperature": 1.0, "top_p": 1.0, **change},
    )[0, len(item.prompt_ids) :].tolist()  # fmt: skip
    assert item.new_ids == [token for token in expected if token != tokenizer.eos_id]


def test_a_finish_reason_is_named(model: Any, tokenizer: TokenizerFolder) -> None:
    full = Generation(encode_prompt(tokenizer, "x" * 60), GREEDY)
    short = Generation(encode_prompt(tokenizer, "x"), GREEDY)
    GenerationEngine(model, tokenizer).run([full, short])
    assert (full.finish_reason, len(full.new_ids)) == ("context", 3)
    assert (short.finish_reason, len(short.new_ids)) == ("length", 12)
    stop = dataclasses.replace(GREEDY, stop=(short.text[4:6],))
    stopped = Generation(short.prompt_ids, stop)
    GenerationEngine(model, tokenizer).run([stopped])
    assert stopped.finish_reason == "stop"
    assert stopped.text == short.text[: short.text.index(stop.stop[0])]


def test_the_end_of_a_turn_ends_an_answer(model: Any, tokenizer: TokenizerFolder) -> None:
    whole = Generation(encode_prompt(tokenizer, "x"), GREEDY)
    GenerationEngine(model, tokenizer).run([whole])
    turn = Generation(whole.prompt_ids, GREEDY, frozenset({whole.new_ids[5]}))
    at_least = dataclasses.replace(GREEDY, min_new_tokens=8)
    longer = Generation(whole.prompt_ids, at_least, frozenset({whole.new_ids[5]}))
    GenerationEngine(model, tokenizer).run([turn, longer])
    end = whole.new_ids.index(whole.new_ids[5])
    assert (turn.finish_reason, turn.new_ids) == ("eos", whole.new_ids[:end])
    assert len(longer.new_ids) >= 8


def test_an_eos_that_the_model_does_not_have_ends_nothing(model: Any, tokenizer: TokenizerFolder) -> None:
    params = dataclasses.replace(GREEDY, min_new_tokens=3)
    ids = encode_prompt(tokenizer, "x")
    generations = [Generation(ids, params), Generation(ids, params, frozenset({-1, 10**6}))]
    GenerationEngine(model, tokenizer).run(generations)
    assert generations[0].new_ids == generations[1].new_ids


def test_a_cancelled_generation_frees_its_place(model: Any, tokenizer: TokenizerFolder) -> None:
    generations = make_generations(tokenizer, GREEDY)[:4]
    engine = GenerationEngine(model, tokenizer, max_batch_size=2)
    for item in generations:
        engine.add(item)
    engine.step()
    engine.cancel(generations[0])
    engine.cancel(generations[3])
    engine.step()
    assert [item.finish_reason for item in generations] == ["cancelled", None, None, "cancelled"]
    assert (engine.active, engine.waiting) == (2, 0)
    while engine.is_busy:
        engine.step()
    assert generations[2].text == generate(model, tokenizer, PROMPTS[2], generations[2].params)


@pytest.mark.parametrize("at_call", [0, 1, 4])
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    model: Any, tokenizer: TokenizerFolder, at_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations = make_generations(tokenizer, SAMPLED)
    expected = [
        generate(model, tokenizer, prompt, item.params)
        for prompt, item in zip(PROMPTS, generations, strict=True)
    ]
    forward, calls = model.forward, iter(range(1000))

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at_call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", fail_once)
    engine = GenerationEngine(model, tokenizer)
    engine.run(generations)
    assert engine.max_batch_size == 4
    assert [item.text for item in generations] == expected


def test_out_of_memory_with_one_sequence_names_what_to_lower(
    model: Any, tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "forward", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(KrillError, match="out of memory with one sequence; use a shorter prompt"):
        GenerationEngine(model, tokenizer).run(make_generations(tokenizer, GREEDY))


def test_other_errors_are_raised(
    model: Any, tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "forward", Mock(side_effect=RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        GenerationEngine(model, tokenizer).run(make_generations(tokenizer, GREEDY))


@pytest.mark.parametrize("weight", [torch.nan, 3e38])
def test_a_model_that_computes_nan_or_infinity_is_an_error(
    weight: float, model: Any, tokenizer: TokenizerFolder
) -> None:
    damaged = copy.deepcopy(model)
    torch.nn.init.constant_(damaged.model.norm.weight, 10.0)
    damaged.lm_head.weight.data = damaged.lm_head.weight.data.sign() * weight
    with pytest.raises(KrillError, match=r"computes NaN or infinity: .*try hardware\.precision=fp32"):
        GenerationEngine(damaged, tokenizer).run(make_generations(tokenizer, GREEDY))


def test_a_prompt_that_fills_the_context_is_refused_before_the_queue(
    model: Any, tokenizer: TokenizerFolder
) -> None:
    engine = GenerationEngine(model, tokenizer)
    with pytest.raises(UsageError, match="the prompt has 64 tokens, but the context of the model has 64"):
        engine.add(Generation([0] * 64, GREEDY))
    assert not engine.is_busy


@pytest.mark.parametrize("max_logits", [2**26, 4 * len(PROMPTS) * 259])
def test_scores_are_the_log_softmax_of_the_logits(
    model: Any, tokenizer: TokenizerFolder, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are scored by slices whose logits fit in memory."""
    monkeypatch.setattr("krill.inference.engine.MAX_PROMPT_LOGITS", max_logits)
    generations = make_generations(tokenizer, SAMPLED)
    for item in generations:
        item.top_logprobs, item.score_prompt = 3, True
    sizes: list[int] = []
    with model.lm_head.register_forward_hook(lambda *args: sizes.append(args[-1].numel())):
        GenerationEngine(model, tokenizer).run(generations)
    assert max(sizes) <= max_logits
    for item in generations:
        ids = item.prompt_ids + item.new_ids
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        scores = item.prompt_scores + item.scores
        assert [score.token for score in scores] == ids[1:]
        for position, score in enumerate(scores):
            expected = logprobs[position]
            assert score.logprob == pytest.approx(expected[score.token].item(), abs=1e-5)
            assert score.rank == (expected > expected[score.token]).sum()
            assert [token for token, _ in score.top] == expected.topk(3).indices.tolist()
            assert score.entropy == pytest.approx(
                -(expected.exp() * expected).sum().item() / 0.6931471805599453, abs=1e-4
            )


def test_a_prompt_that_fills_the_context_is_scored_without_an_answer(
    model: Any, tokenizer: TokenizerFolder
) -> None:
    params = dataclasses.replace(GREEDY, max_new_tokens=0)
    full, short = (
        Generation([0, *[70] * length], params, top_logprobs=1, score_prompt=True) for length in (63, 3)
    )
    GenerationEngine(model, tokenizer).run([full, short])
    for item in (full, short):
        assert (item.finish_reason, item.text, item.new_ids, item.scores) == ("length", "", [], [])
        assert len(item.prompt_scores) == len(item.prompt_ids) - 1
    with pytest.raises(UsageError, match="the prompt has 65 tokens"):
        GenerationEngine(model, tokenizer).add(Generation([0] * 65, params))


def test_every_eos_of_the_model_ends_an_answer(
    model: Any, tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Generation(encode_prompt(tokenizer, "ab"), GREEDY)
    GenerationEngine(model, tokenizer).run([answer])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_id, answer.new_ids[3]])
    ended = Generation(answer.prompt_ids, GREEDY)
    GenerationEngine(model, tokenizer).run([ended])
    assert ended.finish_reason == "eos"
    assert ended.new_ids == answer.new_ids[: answer.new_ids.index(answer.new_ids[3])]
