"""Generates the answers to many prompts at once, and lets prompts come and go between two tokens.

All sequences that are generated share one forward pass per token. Their keys and values are in one cache, aligned at
the right: a shorter sequence has padding on its left, which the attention mask hides. A sequence that ends leaves the
cache, and the next one that waits takes its place (continuous batching). With one sequence there is no padding and no
mask, and the work is that of transformers' `generate`.

Shapes: B sequences, T columns of the cache, V vocabulary.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from krill.errors import KrillError, UsageError
from krill.inference.defaults import to_eos_ids
from krill.inference.sampling import SamplingParams, TokenSampler, choose_tokens
from krill.inference.text_stream import TextStream
from krill.inference.token_scores import TokenScore, raise_if_not_finite, score_logits
from krill.resources import is_out_of_memory, release_memory
from krill.tokenizer.artifact import TokenizerFolder

log = logging.getLogger("krill")

FinishReason = Literal["eos", "stop", "length", "context", "cancelled"]
MAX_BATCH_SIZE = 32
MAX_PREFILL_TOKENS = {"cpu": 512, "cuda": 8192}
"""Number of prompt tokens, with padding, that are computed in one forward pass, unless one prompt has more.

The caches of a CPU hold the activations of few (benchmarks/inference.py)."""
MAX_PROMPT_LOGITS = 2**26
"""Number of logits of prompts that are scored, in one forward pass: 256 MB in fp32."""


@dataclass(eq=False)
class Generation:
    """A prompt and the answer to it as far as it is generated."""

    prompt_ids: list[int]
    """bos first."""
    params: SamplingParams
    end_ids: frozenset[int] = frozenset()
    """Tokens that end the answer besides eos, such as the end of a turn."""
    top_logprobs: int | None = None
    """Number of alternatives with which each generated token is scored; None: no scores."""
    score_prompt: bool = False
    """Score the tokens of the prompt as well; needs top_logprobs."""
    new_ids: list[int] = field(default_factory=list)
    """Generated tokens, without the eos that ended the answer."""
    finish_reason: FinishReason | None = None
    """None while it is being generated."""
    scores: list[TokenScore] = field(default_factory=list)
    """One per token of new_ids."""
    eos_score: TokenScore | None = None
    """The score of the eos that ended the answer."""
    prompt_scores: list[TokenScore] = field(default_factory=list)
    """One per token of the prompt but the first, which nothing predicts."""
    stream: TextStream = field(init=False)
    sampler: TokenSampler = field(init=False)

    @property
    def text(self) -> str:
        """The answer so far, without the prompt."""
        return self.stream.text


@dataclass(frozen=True)
class Progress:
    """The text that a step added to a generation."""

    generation: Generation
    text: str
    """New text, empty while a character or a stop text is incomplete."""


class GenerationEngine:
    """Generates with one model; `add` prompts, and call `step` until nothing `is_busy`."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: TokenizerFolder, max_batch_size: int = MAX_BATCH_SIZE
    ):
        self.max_batch_size = max_batch_size
        """Number of sequences generated at once; halved when the device is out of memory."""
        self.context_length: int = model.config.max_position_embeddings
        self._model, self._tokenizer = model, tokenizer
        self._eos_ids = find_eos_ids(model, tokenizer)
        self._waiting: deque[Generation] = deque()
        self._active: list[Generation] = []
        self._cache: Any = DynamicCache()
        self._mask_BT = torch.zeros(0, 0, dtype=torch.long, device=model.device)

    @property
    def is_busy(self) -> bool:
        """Whether a generation is waiting or active."""
        return bool(self._waiting or self._active)

    @property
    def active(self) -> int:
        """Number of generations in the batch."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Number of generations that wait for a place in the batch."""
        return len(self._waiting)

    def add(self, generation: Generation) -> None:
        """Puts a generation into the queue.

        Raises UsageError if its prompt fills the context of the model, so that there is no room for an answer.
        """
        if len(generation.prompt_ids) + min(1, generation.params.max_new_tokens) > self.context_length:
            raise UsageError(
                f"the prompt has {len(generation.prompt_ids)} tokens, but the context of the model has "
                f"{self.context_length}; shorten it"
            )
        generation.stream = TextStream(self._tokenizer.decode, generation.prompt_ids, generation.params.stop)
        generation.end_ids |= self._eos_ids
        generation.sampler = TokenSampler(generation.params, generation.end_ids, self._model.device)
        self._waiting.append(generation)

    def cancel(self, generation: Generation) -> None:
        """Ends a generation; its place is free at the next step."""
        if generation.finish_reason is not None:
            return
        generation.finish_reason = "cancelled"
        if generation in self._waiting:
            self._waiting.remove(generation)

    @torch.no_grad()
    def step(self) -> list[Progress]:
        """Generates one token for each generation of the batch; returns what it added, the ended ones included.

        Raises KrillError if one sequence alone does not fit in memory.
        """
        self._keep([not item.finish_reason for item in self._active])
        progress = self._decode() if self._active else []
        self._keep([not item.finish_reason for item in self._active])
        return progress + self._admit()

    def run(self, generations: Iterable[Generation]) -> None:
        """Generates all of `generations` to their ends."""
        for generation in generations:
            self.add(generation)
        while self.is_busy:
            self.step()

    # --- one forward pass ------------------------------------------------------------------------------------

    def _decode(self) -> list[Progress]:
        """Generates the next token of every active generation."""
        tokens_B1 = torch.tensor([[item.new_ids[-1]] for item in self._active], device=self._model.device)
        mask_BT = torch.nn.functional.pad(self._mask_BT, (0, 1), value=1)
        try:
            logits_BV = self._forward(tokens_B1, mask_BT, self._cache)[:, -1]
        except (RuntimeError, MemoryError) as error:
            self._shrink(error)
            return []
        self._mask_BT = mask_BT
        return self._choose(self._active, logits_BV)

    def _admit(self) -> list[Progress]:
        """Computes the prompts of the generations that wait, as far as there is room, and their first tokens."""
        progress: list[Progress] = []
        while groups := self._take_waiting():
            while groups:
                try:
                    cache, mask_BT, logits_BV = self._prefill(groups[0])
                except (RuntimeError, MemoryError) as error:
                    self._waiting.extendleft(reversed([item for group in groups for item in group]))
                    self._shrink(error)
                    return progress
                group = groups.pop(0)
                self._merge(cache, mask_BT)
                self._active += group
                progress += self._choose(group, logits_BV)
            self._keep([not item.finish_reason for item in self._active])
        return progress

    def _take_waiting(self) -> list[list[Generation]]:
        """Returns as many generations from the head of the queue as there is room for.

        Those of a group are computed together; they are of about one length, the longest first.
        """
        size = min(len(self._waiting), self.max_batch_size - len(self._active))
        taken = sorted((self._waiting.popleft() for _ in range(size)), key=_count_tokens, reverse=True)
        most = MAX_PREFILL_TOKENS["cuda" if self._model.device.type == "cuda" else "cpu"]
        groups: list[list[Generation]] = []
        for item in taken:
            if not groups or _count_tokens(groups[-1][0]) * (len(groups[-1]) + 1) > most:
                groups.append([])
            groups[-1].append(item)
        return groups

    def _prefill(self, group: list[Generation]) -> tuple[Any, Tensor, Tensor]:
        """Returns the cache of `group`, its mask and the logits of the next tokens, float32 (B, V).

        Scores prompts by slices of their columns, so that memory does not grow with prompt length times vocabulary.
        """
        rows = [item.prompt_ids + item.new_ids for item in group]
        width = max(map(len, rows))
        ids_BT = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self._model.device)
        mask_BT = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self._model.device
        )
        cache = DynamicCache()
        scored = [item for item in group if item.score_prompt and not item.prompt_scores]
        if not scored:
            return cache, mask_BT, self._forward(ids_BT, mask_BT, cache)[:, -1]
        size = max(1, MAX_PROMPT_LOGITS // (len(group) * self._model.config.vocab_size))
        scores: dict[Generation, list[TokenScore]] = {item: [] for item in scored}
        for start in range(0, width, size):
            stop = min(start + size, width)
            logits_BTV = self._forward(ids_BT[:, start:stop], mask_BT[:, :stop], cache, all_logits=True)
            for item, row, logits_TV in zip(group, rows, logits_BTV, strict=True):
                if item in scores:
                    scores[item] += _score_columns(item, logits_TV, start - (width - len(row)))
        for item in scored:
            item.prompt_scores = scores[item]
        return cache, mask_BT, logits_BTV[:, -1]

    def _forward(self, ids_BT: Tensor, mask_BT: Tensor, cache: Any, all_logits: bool = False) -> Tensor:
        """Returns the logits of the last column, or of all, float32."""
        padding: dict[str, Tensor] = {}
        if len(ids_BT) > 1:
            positions_BT = mask_BT.cumsum(dim=1)[:, -ids_BT.shape[1] :] - 1
            padding = {"attention_mask": mask_BT, "position_ids": positions_BT.clamp(min=0)}
        output = self._model(
            input_ids=ids_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=0 if all_logits else 1,
            **padding,
        )
        logits: Tensor = output.logits.float()
        return logits

    def _choose(self, group: list[Generation], logits_BV: Tensor) -> list[Progress]:
        """Chooses the next token of each generation of `group`, and ends those that are complete."""
        raise_if_not_finite(logits_BV)
        histories = [(item.prompt_ids + item.new_ids, len(item.new_ids)) for item in group]
        tokens = choose_tokens(logits_BV, [item.sampler for item in group], histories)
        progress = []
        for item, token, logits_V in zip(group, tokens, logits_BV, strict=True):
            if item.params.max_new_tokens == 0:
                item.finish_reason = "length"
                progress.append(Progress(item, ""))
                continue
            if item.top_logprobs is not None:
                (score,) = score_logits(logits_V[None], [token], item.top_logprobs)
                if token in item.end_ids:
                    item.eos_score = score
                else:
                    item.scores.append(score)
            progress.append(Progress(item, self._extend(item, token)))
        return progress

    def _extend(self, item: Generation, token: int) -> str:
        """Adds a token to a generation; returns the text that is final now."""
        if token in item.end_ids:
            item.finish_reason = "eos"
            return item.stream.finish()
        item.new_ids.append(token)
        text = item.stream.push(token)
        if item.stream.is_stopped:
            item.finish_reason = "stop"
        elif len(item.new_ids) >= item.params.max_new_tokens:
            item.finish_reason = "length"
        elif len(item.prompt_ids) + len(item.new_ids) >= self.context_length:
            item.finish_reason = "context"
        else:
            return text
        text += item.stream.finish(is_cut=True)
        if item.stream.is_stopped:
            item.finish_reason = "stop"
        return text

    # --- the cache -------------------------------------------------------------------------------------------

    def _merge(self, cache: Any, mask_BT: Tensor) -> None:
        """Appends the rows of `cache` to the cache, both padded on the left to one width."""
        if not self._active:
            self._cache, self._mask_BT = cache, mask_BT
            return
        width = max(self._mask_BT.shape[1], mask_BT.shape[1])
        for layer, new in zip(self._cache.layers, cache.layers, strict=True):
            layer.keys = torch.cat([_pad_left(layer.keys, width), _pad_left(new.keys, width)])
            layer.values = torch.cat([_pad_left(layer.values, width), _pad_left(new.values, width)])
        self._mask_BT = torch.cat(
            [torch.nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in (self._mask_BT, mask_BT)]
        )

    def _keep(self, is_kept: list[bool]) -> None:
        """Removes the other generations, their rows of the cache, and columns in which no row has a token."""
        if all(is_kept):
            return
        self._active = [item for item, kept in zip(self._active, is_kept, strict=True) if kept]
        if not self._active:
            self._reset_cache()
            return
        rows = torch.tensor(
            [index for index, kept in enumerate(is_kept) if kept], device=self._mask_BT.device
        )
        self._mask_BT = self._mask_BT[rows]
        padding = self._mask_BT.shape[1] - max(
            len(item.prompt_ids) + len(item.new_ids) - 1 for item in self._active
        )
        self._mask_BT = self._mask_BT[:, padding:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[rows, :, padding:]
            layer.values = layer.values[rows, :, padding:]

    def _shrink(self, error: Exception) -> None:
        """Halves the batch and puts what was active back into the queue, its tokens kept; raises other errors."""
        if not is_out_of_memory(error):
            raise error
        size = max(len(self._active), 1 if self._active else min(len(self._waiting), self.max_batch_size))
        if size <= 1:
            raise KrillError(
                "out of memory with one sequence; use a shorter prompt, fewer max_new_tokens, or "
                "hardware.precision=bf16"
            ) from error
        self.max_batch_size = size // 2
        log.warning("batch       out of memory with %d sequences; %d from now on", size, self.max_batch_size)
        self._waiting.extendleft(reversed(self._active))
        self._active = []
        self._reset_cache()
        release_memory()

    def _reset_cache(self) -> None:
        self._cache = DynamicCache()
        self._mask_BT = self._mask_BT[:0, :0]


def find_eos_ids(model: PreTrainedModel, tokenizer: TokenizerFolder) -> frozenset[int]:
    """Returns the tokens that end an answer: the tokenizer's eos and those of the model's generation_config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return to_eos_ids(configured) | {tokenizer.eos_id}


def _count_tokens(item: Generation) -> int:
    return len(item.prompt_ids) + len(item.new_ids)


def _score_columns(item: Generation, logits_TV: Tensor, position: int) -> list[TokenScore]:
    """Returns the scores of the prompt tokens that these logits predict.

    `position`: index in the prompt of the token of the first column; negative for columns of padding.
    """
    first, last = max(position, 0), min(position + len(logits_TV), len(item.prompt_ids) - 1)
    if first >= last:
        return []
    tokens = item.prompt_ids[first + 1 : last + 1]
    return score_logits(logits_TV[first - position : last - position], tokens, item.top_logprobs or 0)


def _pad_left(states_BHTD: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(states_BHTD, (0, 0, width - states_BHTD.shape[2], 0))
