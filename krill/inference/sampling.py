"""Chooses the next token of each sequence of a batch from the logits of the model.

The rules are transformers' logits processors, in the order in which `generate` applies them: first those that look at
the tokens so far, then temperature, top-k, top-p, min-p and typical-p. Every sequence has a random generator of its
own, so that its tokens do not depend on what else is in the batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of generation, as in transformers."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    """Number of tokens before which eos is never chosen."""
    temperature: float = 0.6
    """0: greedy decoding."""
    top_k: int = 0
    """0: all tokens."""
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.5
    no_repeat_ngram_size: int = 0
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends; they are not part of it."""
    seed: int = 0

    def with_seed(self, seed: int) -> SamplingParams:
        """Returns the same parameters with another seed."""
        return replace(self, seed=seed)

    @cached_property
    def warpers(self) -> LogitsProcessorList:
        """What depends on the logits alone; the same for all sequences with these parameters."""
        warpers = LogitsProcessorList()
        if self.temperature not in (0, 1):
            warpers.append(logits_process.TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            warpers.append(logits_process.TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(logits_process.TopPLogitsWarper(self.top_p))
        if self.min_p > 0:
            warpers.append(logits_process.MinPLogitsWarper(self.min_p))
        if self.typical_p < 1:
            warpers.append(logits_process.TypicalLogitsWarper(self.typical_p))
        return warpers

    @property
    def warper_key(self) -> tuple[float, ...]:
        """Equal for parameters with equal warpers."""
        return (self.temperature, self.top_k, self.top_p, self.min_p, self.typical_p)


@dataclass
class TokenSampler:
    """Chooses the tokens of one sequence."""

    params: SamplingParams
    eos_ids: frozenset[int]
    device: torch.device
    generator: torch.Generator = field(init=False)
    history_rules: LogitsProcessorList = field(init=False)
    """What depends on the tokens so far."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(self.params.seed)
        self.history_rules = LogitsProcessorList()
        if self.params.repetition_penalty != 1:
            self.history_rules.append(
                logits_process.RepetitionPenaltyLogitsProcessor(float(self.params.repetition_penalty))
            )
        if self.params.no_repeat_ngram_size:
            self.history_rules.append(
                logits_process.NoRepeatNGramLogitsProcessor(self.params.no_repeat_ngram_size)
            )

    def apply_history_rules(self, logits_V: Tensor, ids: list[int], new_tokens: int) -> Tensor:
        """Returns the logits of one sequence, float32 (V,), after the rules for `ids`, the prompt and its answer."""
        if self.history_rules:
            history = torch.tensor([ids], device=self.device)
            logits_V = self.history_rules(history, logits_V[None])[0]
        if new_tokens < self.params.min_new_tokens:
            logits_V = logits_V.clone()
            logits_V[list(self.eos_ids)] = -torch.inf
        return logits_V


def choose_tokens(logits_BV: Tensor, samplers: Sequence[TokenSampler], histories: Sequence[Any]) -> list[int]:
    """Returns the next token of each sequence.

    Args:
        logits_BV: float32, the logits of the model for the next token.
        samplers: one per sequence.
        histories: for each sequence its tokens so far and how many of them are generated.
    """
    rows = [
        sampler.apply_history_rules(logits_V, *history)
        for logits_V, sampler, history in zip(logits_BV, samplers, histories, strict=True)
    ]
    tokens = torch.empty(len(rows), dtype=torch.long, device=logits_BV.device)
    groups: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for index, sampler in enumerate(samplers):
        groups[sampler.params.warper_key].append(index)
    for key, indices in groups.items():
        logits_GV = torch.stack([rows[index] for index in indices])
        if key[0] == 0:
            tokens[indices] = logits_GV.argmax(dim=-1)
            continue
        warped_GV = samplers[indices[0]].params.warpers(None, logits_GV)
        probabilities_GV = warped_GV.softmax(dim=-1)
        for index, probabilities_V in zip(indices, probabilities_GV, strict=True):
            tokens[index] = torch.multinomial(probabilities_V, 1, generator=samplers[index].generator)[0]
    chosen: list[int] = tokens.tolist()
    return chosen
