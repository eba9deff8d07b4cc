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
from transformers import LogitsProcessor
from transformers.generation import logits_process


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of generation, as in transformers."""

    max_new_tokens: int = 128
    """0: only the prompt is computed, to score it."""
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
    def warpers(self) -> list[LogitsProcessor]:
        """The processors that depend on the logits alone; the same for all sequences with these parameters."""
        warpers: list[LogitsProcessor] = []
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
    def rule_key(self) -> tuple[float, ...]:
        """The values that determine the rules: equal for parameters with equal rules."""
        return (
            self.temperature, self.top_k, self.top_p, self.min_p, self.typical_p, self.repetition_penalty,
            self.no_repeat_ngram_size, self.min_new_tokens,
        )  # fmt: skip


@dataclass
class TokenSampler:
    """The state of the sampling of one sequence."""

    params: SamplingParams
    eos_ids: frozenset[int]
    device: torch.device
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(self.params.seed)

    def apply_history_rules(self, logits_V: Tensor, ids: list[int], new_tokens: int) -> Tensor:
        """Returns the logits of one sequence, float32 (V,), after the rules that look at single sequences.

        `ids`: the prompt and its answer so far, of which `new_tokens` are generated.
        """
        if self.params.no_repeat_ngram_size:
            rule = logits_process.NoRepeatNGramLogitsProcessor(self.params.no_repeat_ngram_size)
            logits_V = rule(torch.tensor([ids], device=self.device), logits_V[None])[0]
        if new_tokens < self.params.min_new_tokens:
            logits_V = logits_V.clone()
            # generation_config.json may name tokens that the model does not have
            logits_V[[token for token in self.eos_ids if 0 <= token < len(logits_V)]] = -torch.inf
        return logits_V


def choose_tokens(logits_BV: Tensor, samplers: Sequence[TokenSampler], histories: Sequence[Any]) -> list[int]:
    """Returns the next token of each sequence.

    Args:
        logits_BV: float32, the logits of the model for the next token.
        samplers: one per sequence.
        histories: for each sequence its tokens so far and how many of them are generated.
    """
    tokens = torch.empty(len(samplers), dtype=torch.long, device=logits_BV.device)
    groups: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for index, sampler in enumerate(samplers):
        groups[sampler.params.rule_key].append(index)
    for indices in groups.values():
        logits_GV = logits_BV if len(indices) == len(samplers) else logits_BV[indices]
        group = [samplers[index] for index in indices]
        tokens[indices] = _choose_group(logits_GV, group, [histories[index] for index in indices])
    chosen: list[int] = tokens.tolist()
    return chosen


def _choose_group(logits_GV: Tensor, samplers: list[TokenSampler], histories: list[Any]) -> Tensor:
    """Returns the next tokens of sequences with the same rules, int64 (G,)."""
    params = samplers[0].params
    if params.repetition_penalty != 1:
        logits_GV = _penalize_repetition(logits_GV, params.repetition_penalty, [ids for ids, _ in histories])
    if params.no_repeat_ngram_size or params.min_new_tokens:
        logits_GV = torch.stack(
            [
                sampler.apply_history_rules(logits_V, *history)
                for logits_V, sampler, history in zip(logits_GV, samplers, histories, strict=True)
            ]
        )
    if params.temperature == 0:
        return logits_GV.argmax(dim=-1)
    for warper in params.warpers:
        logits_GV = warper(None, logits_GV)
    probabilities_GV = logits_GV.softmax(dim=-1)
    # As torch.multinomial does for one sample, with a generator for each row.
    noise_GV = torch.empty_like(probabilities_GV)
    for noise_V, sampler in zip(noise_GV, samplers, strict=True):
        noise_V.exponential_(generator=sampler.generator)
    return (probabilities_GV / noise_GV).argmax(dim=-1)


def _penalize_repetition(logits_GV: Tensor, penalty: float, histories: list[list[int]]) -> Tensor:
    """Applies the penalty once to each token of a row's history, however often it occurs."""
    width = max(map(len, histories))
    # Padding repeats a token of the history, which changes nothing.
    padded_GT = torch.tensor(
        [ids + [ids[0]] * (width - len(ids)) for ids in histories], device=logits_GV.device
    )
    rule = logits_process.RepetitionPenaltyLogitsProcessor(float(penalty))
    return rule(padded_GT, logits_GV)
