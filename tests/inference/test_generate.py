"""Generated text depends on the seed alone, whether streamed or not, and continues exactly the given prompt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from krill.data.encoding import Encoder
from krill.errors import UsageError
from krill.inference.generate import SamplingParams, generate, generate_sample
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer

GREEDY = SamplingParams(max_new_tokens=16, temperature=0, repetition_penalty=1.0)
SAMPLED = SamplingParams(max_new_tokens=16, temperature=1.0, top_p=1.0, repetition_penalty=1.0)


class ScriptedModel(torch.nn.Module):
    """Generates the given tokens for any prompt; records the arguments."""

    training = False
    device = torch.device("cpu")
    config = SimpleNamespace(max_position_embeddings=64)

    def __init__(self, ids: list[int]):
        super().__init__()
        self.ids = ids

    def generate(self, inputs: torch.Tensor, streamer: Any = None, **kwargs: Any) -> torch.Tensor:
        self.prompt, self.generate_kwargs = inputs[0].tolist(), kwargs
        if streamer:
            streamer.put(inputs)
            for token in self.ids:
                streamer.put(torch.tensor([token]))
            streamer.end()
        return torch.cat([inputs, torch.tensor([self.ids])], dim=1)


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


def test_max_new_tokens_is_limited_by_the_context(model: Any, tokenizer: TokenizerFolder) -> None:
    def get_limit(prompt: str, max_new_tokens: int) -> int:
        scripted = ScriptedModel([])
        generate(scripted, tokenizer, prompt, SamplingParams(max_new_tokens=max_new_tokens))  # type: ignore[arg-type]
        return scripted.generate_kwargs["max_new_tokens"]

    assert get_limit("ab", 10) == 10
    assert get_limit("x" * 60, 10) == 3  # bos, 60 and 3 are the context of 64


def test_training_mode_is_restored(model: Any, tokenizer: TokenizerFolder) -> None:
    model.train()
    generate(model, tokenizer, "ab", GREEDY)
    assert model.training
    model.eval()
    generate(model, tokenizer, "ab", GREEDY)
    assert not model.training


# --- the prompt --------------------------------------------------------------------------------------------


def test_the_prompt_is_the_start_of_a_document(tokenizer: TokenizerFolder) -> None:
    scripted = ScriptedModel([1])
    generate(scripted, tokenizer, "ab", GREEDY)  # type: ignore[arg-type]
    assert scripted.prompt == [tokenizer.bos_id, *encode_text(tokenizer, "ab")[:-1]]
    generate(scripted, tokenizer, "", GREEDY)  # type: ignore[arg-type]
    assert scripted.prompt == [tokenizer.bos_id]


@pytest.mark.parametrize("prompt", ["<|eos|>", "a<|bos|>b<|pad|>"])
def test_a_special_token_written_in_the_prompt_is_text(tokenizer: TokenizerFolder, prompt: str) -> None:
    scripted = ScriptedModel([1])
    generate(scripted, tokenizer, prompt, GREEDY)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("text", ["옛날 옛적에 호랑이가", "a가b나", "no Hangul", "😀", ""])
def test_the_stream_has_whole_characters_and_joins_to_the_text(tokenizer: TokenizerFolder, text: str) -> None:
    pieces: list[str] = []
    answer = generate(ScriptedModel(encode_text(tokenizer, text)), tokenizer, "ab", GREEDY, pieces.append)  # type: ignore[arg-type]
    assert answer == text
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert [piece for piece in pieces if piece] == list(text)  # each one as soon as it is complete


def test_an_incomplete_character_at_the_end_is_written(tokenizer: TokenizerFolder) -> None:
    pieces: list[str] = []
    ids = [*encode_text(tokenizer, "b")[:-1], *encode_text(tokenizer, "가")[:2]]
    answer = generate(ScriptedModel(ids), tokenizer, "a", GREEDY, pieces.append)  # type: ignore[arg-type]
    assert "".join(pieces) == answer
    assert answer.startswith("b\ufffd")


def test_the_stream_of_a_model_joins_to_the_text(model: Any, tokenizer: TokenizerFolder) -> None:
    for seed in range(3):
        pieces: list[str] = []
        sampling = dataclasses.replace(SAMPLED, seed=seed)
        answer = generate(model, tokenizer, "가나", sampling, pieces.append)
        assert "".join(pieces) == answer == generate(model, tokenizer, "가나", sampling)


def test_the_space_before_the_first_word_is_kept(tmp_path: Path) -> None:
    """SentencePiece decoders drop a space at the start of a text, which a continuation is not."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "▁the": 3, "▁fox": 4, "▁runs": 5}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    )
    pieces: list[str] = []
    answer = generate(
        ScriptedModel([4, 5]),
        load_tokenizer(tmp_path),
        "the",
        GREEDY,
        pieces.append,  # type: ignore[arg-type]
    )
    assert answer == "".join(pieces) == " fox runs"


def test_a_sample_includes_its_prompt(model: Any, tokenizer: TokenizerFolder) -> None:
    first, second = (generate_sample(model, tokenizer, "가나", seed=5) for _ in range(2))
    assert first == second
    assert first.startswith("가나")
    assert first != generate_sample(model, tokenizer, "가나", seed=6)
