"""Generates text from a model, as a stream or at once."""

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
    """Parameters of generation, as in transformers."""

    max_new_tokens: int = 128
    temperature: float = 0.6
    """0: greedy decoding."""
    top_p: float = 0.95
    repetition_penalty: float = 1.5
    seed: int = 0


class _TextStreamer(BaseStreamer):
    """Writes text as soon as it is complete; the bytes of an incomplete character are held back."""

    def __init__(self, decode: Callable[[list[int]], str], write: Callable[[str], None]):
        self._decode, self._write_callback = decode, write
        self._ids: list[int] = []
        self._written_text = ""
        self._is_prompt = True

    def put(self, value: Any) -> None:
        if self._is_prompt:  # generate() passes the prompt first
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
    """Returns the model's continuation of bos + `prompt`, without the prompt; `write` gets it as a stream.

    The prompt is text: special tokens written in it are ordinary characters. Raises UsageError for a prompt that
    fills the context of the model.
    """
    ids = next(Encoder(tokenizer).encode_documents([prompt])).tolist()[:-1]
    inputs = torch.tensor([ids], device=model.device)
    context_length = model.config.max_position_embeddings
    if len(ids) >= context_length:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, but the context of the model has {context_length}; shorten it"
        )
    prompt_length = len(tokenizer.decode(ids))

    def decode(new_ids: list[int]) -> str:
        # Decoded together with the prompt: some decoders drop a space at the start of a text.
        return tokenizer.decode(ids + new_ids)[prompt_length:]

    streamer = _TextStreamer(decode, write) if write else None
    torch.manual_seed(sampling.seed)
    sampling_options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        sampling_options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    was_training = model.training
    model.eval()
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=min(sampling.max_new_tokens, context_length - len(ids)),
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        use_cache=True,
        streamer=streamer,
        **sampling_options,
    )
    model.train(was_training)
    return decode(output[0, len(ids) :].tolist())


def generate_sample(model: PreTrainedModel, tokenizer: TokenizerFolder, prompt: str, seed: int) -> str:
    """Returns a short text, including the prompt, to log during and after training."""
    sampling = SamplingParams(max_new_tokens=80, temperature=0.8, repetition_penalty=1.1, seed=seed)
    return prompt + generate(model, tokenizer, prompt, sampling)
