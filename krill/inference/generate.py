"""Text from a model: one continuation, streamed or whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from krill.data.encoding import Encoder
from krill.errors import UsageError
from krill.tokenizer.artifact import TokenizerFolder


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen."""

    max_new_tokens: int = 128
    temperature: float = 0.6
    """0: always the most likely token."""
    top_p: float = 0.95
    repetition_penalty: float = 1.5
    seed: int = 0


class _TextStreamer(BaseStreamer):
    """Hands text on as soon as it is whole: bytes of a character that is not finished wait."""

    def __init__(self, decode: Callable[[list[int]], str], write: Callable[[str], None]):
        self._decode, self._write_callback = decode, write
        self._ids: list[int] = []
        self._written_text = ""
        self._is_prompt = True

    def put(self, value: Any) -> None:
        if self._is_prompt:  # generate() hands over the prompt first
            self._is_prompt = False
            return
        self._ids += value.flatten().tolist()
        text = self._decode(self._ids)
        if not text.endswith("\ufffd"):
            self._emit(text)

    def end(self) -> None:
        self._emit(self._decode(self._ids))

    def _emit(self, text: str) -> None:
        self._write_callback(text[len(self._written_text) :])
        self._written_text = text


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: TokenizerFolder,
    prompt: str,
    sampling: SamplingParams,
    write: Callable[[str], None] | None = None,
) -> str:
    """The model's continuation of bos + `prompt`, without the prompt; `write` gets it piece by piece.

    The prompt is text: special tokens written out in it count as the characters they are. Raises UsageError
    for a prompt that fills the model's context.
    """
    ids = next(Encoder(tokenizer).encode_documents([prompt])).tolist()[:-1]
    inputs = torch.tensor([ids], device=model.device)
    room = model.config.max_position_embeddings - len(ids)
    if room < 1:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, the model reads {model.config.max_position_embeddings}; shorten it"
        )
    before = len(tokenizer.decode(ids))

    def decode(
        new: list[int],
    ) -> str:  # with what stands before: some decoders drop the space that begins a text
        return tokenizer.decode(ids + new)[before:]

    stream = _TextStreamer(decode, write) if write else None
    torch.manual_seed(sampling.seed)
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    was_training = model.training
    model.eval()
    out = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=min(sampling.max_new_tokens, room),
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        use_cache=True,
        streamer=stream,
        **choice,
    )
    model.train(was_training)
    return decode(out[0, len(ids) :].tolist())


def generate_sample(model: PreTrainedModel, tokenizer: TokenizerFolder, prompt: str, seed: int) -> str:
    """A short text to look at when a training ends, the prompt included."""
    sampling = SamplingParams(max_new_tokens=80, temperature=0.8, repetition_penalty=1.1, seed=seed)
    return prompt + generate(model, tokenizer, prompt, sampling)
