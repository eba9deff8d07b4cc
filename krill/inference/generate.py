"""Generates text from a model, as a stream or at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from transformers import PreTrainedModel

from krill.data.encoding import Encoder
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.sampling import SamplingParams
from krill.terminal import encode_input
from krill.tokenizer.artifact import TokenizerFolder


def encode_prompt(tokenizer: TokenizerFolder, prompt: str) -> list[int]:
    """Returns bos and the tokens of `prompt`.

    The prompt is text: special tokens written in it are ordinary characters. Raises UsageError if it is not Unicode.
    """
    encode_input(prompt, "the prompt")
    ids: list[int] = next(Encoder(tokenizer).encode_documents([prompt])).tolist()[:-1]
    return ids


def stream_answers(engine: GenerationEngine, generations: Sequence[Generation]) -> Iterator[tuple[int, str]]:
    """Generates several answers together; yields (index, new text) of the first, then of the second, and so on.

    Yields after every token; the text is empty while a character or a stop text is incomplete.
    """
    current = length = 0
    for generation in generations:
        engine.add(generation)
    while current < len(generations):
        if engine.is_busy:
            engine.step()
        text = generations[current].text
        yield current, text[length:]
        length = len(text)
        if generations[current].finish_reason:
            current, length = current + 1, 0


def generate(
    model: PreTrainedModel,
    tokenizer: TokenizerFolder,
    prompt: str,
    params: SamplingParams,
    write: Callable[[str], None] | None = None,
) -> str:
    """Returns the model's continuation of bos + `prompt`, without the prompt; `write` gets it as a stream.

    Raises UsageError for a prompt that fills the context of the model.
    """
    generation = Generation(encode_prompt(tokenizer, prompt), params)
    was_training = model.training
    model.eval()
    try:
        for _, text in stream_answers(GenerationEngine(model, tokenizer), [generation]):
            if write is not None and text:
                write(text)
    finally:
        model.train(was_training)
    return generation.text


def generate_sample(model: PreTrainedModel, tokenizer: TokenizerFolder, prompt: str, seed: int) -> str:
    """Returns a short text, including the prompt, to log during and after training."""
    params = SamplingParams(max_new_tokens=80, temperature=0.8, repetition_penalty=1.1, seed=seed)
    return prompt + generate(model, tokenizer, prompt, params)
