"""Generated text depends on the seed alone, whether streamed or not, and continues exactly the given prompt."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from krill.data.encoding import Encoder
from krill.errors import UsageError
from krill.inference.generate import generate, generate_sample
from krill.inference.sampling import SamplingParams
from krill.tokenizer.artifact import TokenizerFolder

GREEDY = SamplingParams(max_new_tokens=16, temperature=0, repetition_penalty=1.0)
SAMPLED = SamplingParams(max_new_tokens=16, temperature=1.0, top_p=1.0, repetition_penalty=1.0)


class ScriptedModel(torch.nn.Module):
    """Generates the given tokens for any prompt, then eos; records the prompt."""

    device = torch.device("cpu")
    config = SimpleNamespace(max_position_embeddings=64)

    def __init__(self, ids: list[int], eos_id: int = 1):
        super().__init__()
        self.ids, self.eos_id, self.prompt = ids, eos_id, list[int]()

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        if not self.prompt:
            self.prompt, self.rest = input_ids[0].tolist(), iter(self.ids)
        logits = torch.zeros(1, 1, 300)
        logits[..., next(self.rest, self.eos_id)] = 1
        return SimpleNamespace(logits=logits)


def encode_text(tokenizer: TokenizerFolder, text: str) -> list[int]:
    return next(Encoder(tokenizer).encode_documents([text])).tolist()[1:]


# --- sampling ----------------------------------------------------------------------------------------------


def test_temperature_0_is_greedy_decoding(model: Any, tokenizer: TokenizerFolder) -> None:
    answers = {generate(model, tokenizer, "ab", dataclasses.replace(GREEDY, seed=seed)) for seed in (0, 1)}
    ids = [tokenizer.bos_id, *encode_text(tokenizer, "ab")[:-1]]
    prompt_length = len(ids)
    with torch.no_grad():
        while len(ids) < prompt_length + 16 and ids[-1] != tokenizer.eos_id:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert answers == {tokenizer.decode(ids[prompt_length:])}
    assert len(next(iter(answers))) > 3


def test_the_text_depends_on_the_seed(model: Any, tokenizer: TokenizerFolder) -> None:
    first, second = (generate(model, tokenizer, "ab", SAMPLED) for _ in range(2))
    other = generate(model, tokenizer, "ab", dataclasses.replace(SAMPLED, seed=1))
    assert first == second
    assert first != other


@pytest.mark.parametrize(
    "change", [{"temperature": 0.1}, {"top_p": 0.01}], ids=lambda change: next(iter(change))
)
def test_every_sampling_parameter_has_an_effect(
    model: Any, tokenizer: TokenizerFolder, change: dict[str, float]
) -> None:
    plain, changed = (
        [generate(model, tokenizer, "ab", dataclasses.replace(sampling, seed=seed)) for seed in range(2)]
        for sampling in (SAMPLED, dataclasses.replace(SAMPLED, **change))
    )
    assert plain[0] != plain[1]
    assert changed != plain


def test_the_repetition_penalty_reduces_repetition(model: Any, tokenizer: TokenizerFolder) -> None:
    def count_distinct(penalty: float) -> int:
        sampling = SamplingParams(max_new_tokens=40, temperature=0, repetition_penalty=penalty)
        text = generate(model, tokenizer, "ab", sampling)
        return len(set(text.encode()))

    assert count_distinct(10.0) > count_distinct(1.0)


def test_max_new_tokens_is_limited_by_the_context(tokenizer: TokenizerFolder) -> None:
    def get_length(prompt: str, max_new_tokens: int) -> int:
        scripted: Any = ScriptedModel(encode_text(tokenizer, "y" * 64))
        return len(
            generate(scripted, tokenizer, prompt, dataclasses.replace(GREEDY, max_new_tokens=max_new_tokens))
        )

    assert get_length("ab", 10) == 10
    assert get_length("x" * 60, 10) == 3  # bos, 60 and 3 are the context of 64


def test_training_mode_is_restored(model: Any, tokenizer: TokenizerFolder) -> None:
    model.train()
    generate(model, tokenizer, "ab", GREEDY)
    assert model.training
    model.eval()
    generate(model, tokenizer, "ab", GREEDY)
    assert not model.training


# --- the prompt --------------------------------------------------------------------------------------------


def test_the_prompt_is_the_start_of_a_document(tokenizer: TokenizerFolder) -> None:
    for prompt in ("ab", ""):
        scripted: Any = ScriptedModel([])
        generate(scripted, tokenizer, prompt, GREEDY)
        assert scripted.prompt == [tokenizer.bos_id, *encode_text(tokenizer, prompt)[:-1]]


@pytest.mark.parametrize("prompt", ["<|eos|>", "a<|bos|>b<|pad|>"])
def test_a_special_token_written_in_the_prompt_is_text(tokenizer: TokenizerFolder, prompt: str) -> None:
    scripted: Any = ScriptedModel([])
    generate(scripted, tokenizer, prompt, GREEDY)
    assert len(scripted.prompt) == 1 + len(prompt)  # one token per byte
    assert not {0, 1, 2} & set(scripted.prompt[1:])
    assert tokenizer.decode(scripted.prompt) == prompt


def test_a_prompt_that_fills_the_context_is_rejected(model: Any, tokenizer: TokenizerFolder) -> None:
    assert generate(model, tokenizer, "x" * 62, GREEDY) is not None
    with pytest.raises(
        UsageError, match="the prompt has 64 tokens, but the context of the model has 64; shorten it"
    ):
        generate(model, tokenizer, "x" * 63, GREEDY)


# --- streaming ---------------------------------------------------------------------------------------------


def test_the_stream_has_whole_characters_and_joins_to_the_text(tokenizer: TokenizerFolder) -> None:
    pieces: list[str] = []
    scripted: Any = ScriptedModel(encode_text(tokenizer, "옛날 a😀")[:-1])
    answer = generate(scripted, tokenizer, "ab", GREEDY, pieces.append)
    assert answer == "옛날 a😀"
    assert pieces == list(answer)  # each one as soon as it is complete


def test_the_stream_of_a_model_joins_to_the_text(model: Any, tokenizer: TokenizerFolder) -> None:
    for seed in range(3):
        pieces: list[str] = []
        sampling = dataclasses.replace(SAMPLED, seed=seed)
        answer = generate(model, tokenizer, "가나", sampling, pieces.append)
        assert "".join(pieces) == answer == generate(model, tokenizer, "가나", sampling)


def test_a_sample_includes_its_prompt(model: Any, tokenizer: TokenizerFolder) -> None:
    first, second = (generate_sample(model, tokenizer, "가나", seed=5) for _ in range(2))
    assert first == second
    assert first.startswith("가나")
    assert first != generate_sample(model, tokenizer, "가나", seed=6)
