"""Generates text from a model, as a stream or at once."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel

from krill.data.encoding import Encoder
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.sampling import SamplingParams
from krill.terminal import encode_argument
from krill.tokenizer.artifact import TokenizerFolder


def encode_prompt(tokenizer: TokenizerFolder, prompt: str) -> list[int]:
    """Returns bos and the tokens of `prompt`.

    The prompt is text: special tokens written in it are ordinary characters. Raises UsageError if it is not UTF-8.
    """
    encode_argument(prompt, "the prompt")
    ids: list[int] = next(Encoder(tokenizer).encode_documents([prompt])).tolist()[:-1]
    return ids


def generate(
    model: PreTrainedModel,
    tokenizer: TokenizerFolder,
    prompt: str,
    params: SamplingParams,
    write: Callable[[str], None] | None = None,
) -> str:
    """Returns the text of the model's continuation of bos + `prompt`; see `generate_answer`."""
    return generate_answer(model, tokenizer, prompt, params, write).text


def generate_answer(
    model: PreTrainedModel,
    tokenizer: TokenizerFolder,
    prompt: str,
    params: SamplingParams,
    write: Callable[[str], None] | None = None,
    top_logprobs: int | None = None,
) -> Generation:
    """Returns the model's continuation of bos + `prompt`, without the prompt; `write` gets its text as a stream.

    `top_logprobs`: number of alternatives with which each token is scored; None: no scores. Raises UsageError for a
    prompt that fills the context of the model.
    """
    engine = GenerationEngine(model, tokenizer)
    generation = Generation(encode_prompt(tokenizer, prompt), params, top_logprobs)
    engine.add(generation)
    was_training = model.training
    model.eval()
    try:
        while engine.is_busy:
            for progress in engine.step():
                if write is not None and progress.text:
                    write(progress.text)
    finally:
        model.train(was_training)
    return generation


def generate_sample(model: PreTrainedModel, tokenizer: TokenizerFolder, prompt: str, seed: int) -> str:
    """Returns a short text, including the prompt, to log during and after training."""
    params = SamplingParams(max_new_tokens=80, temperature=0.8, repetition_penalty=1.1, seed=seed)
    return prompt + generate(model, tokenizer, prompt, params)
