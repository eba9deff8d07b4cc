"""Scores token sequences with a model in batches: the log-probability of each token, given those before it.

Sequences that begin alike, such as the choices after a context, share what they have in common: in a tree
(krill/evaluation/prefix_tree.py) where the attention of the model takes a mask. Otherwise the sequences of one
question are computed from one cache of the tokens with which all of them begin. No attention mask is needed then:
questions of a batch have prefixes of equal length, and what follows is padded on the right, where causal attention
does not see it. So it works with every attention backend, those of training included.

Shapes: B questions, R sequences (all of the batch), P tokens of a prefix, S tokens after it, V vocabulary size.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krill.errors import KrillError, get_first_line
from krill.evaluation.batch_limits import MIN_BATCH_TOKENS, choose_max_batch_tokens
from krill.evaluation.prefix_tree import build_inputs, pack_trees, supports_trees
from krill.evaluation.rank_share import ONLY_RANK, EvaluationError, RankShare
from krill.evaluation.token_sequence import TokenSequence, count_common_tokens
from krill.inference.token_scores import CHUNK_ELEMENTS, raise_if_not_finite
from krill.resources import is_out_of_memory, release_memory

log = logging.getLogger("krill")
MIN_PADDED_TOKENS = 256
"""A batch of at least this many tokens ends before questions that would need much padding."""
MIN_FILL = 0.8
"""Length of a suffix, as a share of the longest of its batch, below which it needs much padding."""
Report = Callable[[int, int], None]
"""Gets how many sequences of how many have been scored."""


def ignore_progress(done: int, total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class SequenceScore:
    """The scores of a sequence's last tokens."""

    logprobs: np.ndarray
    """Natural logarithms, float64 (num_scored,)."""
    is_greedy: bool
    """Whether each of the tokens is the most likely one."""

    @property
    def logprob(self) -> float:
        """Logarithm of the probability of all scored tokens."""
        return float(self.logprobs.sum())


SequenceKey = tuple[int, int]
"""Index of a question, and of a sequence in it."""


@dataclass(frozen=True)
class _Question:
    """Sequences with a common prefix."""

    keys: tuple[SequenceKey, ...]
    sequences: tuple[TokenSequence, ...]
    prefix: tuple[int, ...]
    """At least one token."""
    is_branch: bool = False
    """Whether it is one of the sequences of a tree."""

    @property
    def longest_suffix(self) -> int:
        return max(len(sequence.ids) for sequence in self.sequences) - len(self.prefix)

    @property
    def num_kept(self) -> int:
        """The number of positions at the end of the prefix from which a scored token is predicted."""
        return 1 + max(0, *(item.num_scored - len(item.ids) + len(self.prefix) for item in self.sequences))

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of the only sequence."""
        (sequence,) = self.sequences
        return sequence.ids

    def split(self) -> list[_Question]:
        """Returns each sequence as one of a tree."""
        pairs = zip(self.keys, self.sequences, strict=True)
        return [_Question((key,), (item,), item.ids[:-1], is_branch=True) for key, item in pairs]

    def count_tokens(self) -> int:
        return len(self.prefix) + len(self.sequences) * self.longest_suffix


class TokenScorer:
    """Scores sequences with `model`, a causal language model on its device, in evaluation mode.

    Each rank computes its share of the batches and gets the scores of all.
    """

    def __init__(
        self,
        model: Any,
        vocab_size: int,
        max_batch_tokens: int | None = None,
        share: RankShare = ONLY_RANK,
    ):
        self.model, self.device, self.share = model, model.device, share
        self.max_batch_tokens = choose_max_batch_tokens(vocab_size, self.device.type, max_batch_tokens)
        self._has_trees = supports_trees(model) and not share.has_sharded_model

    def score(
        self,
        questions: Sequence[Sequence[TokenSequence]],
        report: Report = ignore_progress,
    ) -> dict[SequenceKey, SequenceScore]:
        """Returns the scores of all sequences; `report` gets how many the ranks have scored, about, and of how many.

        All ranks run the same number of forward passes, as sharded models require. Raises EvaluationError on all
        ranks when one of several fails.
        """
        rank, world_size = self.share.rank, self.share.world_size
        prepared = [part for index, item in enumerate(questions) for part in _find_prefix(index, tuple(item))]
        branching = [item for item in prepared if self._has_trees and item.longest_suffix > 1]
        others = [item for item in prepared if not (self._has_trees and item.longest_suffix > 1)]
        batches = [*self._make_tree_batches(branching), *self._make_batches(others)]
        total = sum(map(len, questions))
        scores: dict[SequenceKey, SequenceScore] = {}
        failure: str | None = None
        for start in range(0, len(batches), world_size):
            self.share.begin_batch()
            position = start + rank
            batch = batches[min(position, len(batches) - 1)]  # the last ones may be too few for all ranks
            if failure is not None:
                continue
            try:
                results = self._score_within_memory(batch, world_size > 1)
            except (RuntimeError, MemoryError, KrillError) as error:
                if world_size == 1 or self.share.has_sharded_model:
                    raise
                failure = f"rank {rank}: {get_first_line(error)}"  # the other ranks wait in the next batch
                continue
            if position < len(batches):
                scores |= results
                report(min(world_size * len(scores), total), total)
        parts = self.share.gather((scores, failure))
        for _, failed in parts:
            if failed is not None:
                raise EvaluationError(failed)
        return {key: score for part, _ in parts for key, score in part.items()}

    def _make_tree_batches(self, questions: list[_Question]) -> Iterator[list[_Question]]:
        """Yields the sequences of all questions, each as a question, of which each batch is computed in trees."""
        alone = sorted((part for item in questions for part in item.split()), key=lambda part: part.ids)
        parts = iter(alone)
        rows = [
            (len(tree.ids), [next(parts) for _ in tree.sequences])
            for tree in pack_trees(part.sequences[0] for part in alone)
        ]
        rows.sort(key=lambda row: -row[0])  # rows of about one width need little padding
        batch: list[list[_Question]] = []
        width = 0
        for size, row in rows:
            if batch and (len(batch) + 1) * width > self.max_batch_tokens:
                yield list(chain.from_iterable(batch))
                batch = []
            width = width if batch else size
            batch.append(row)
        if batch:
            yield list(chain.from_iterable(batch))

    def _make_batches(self, questions: list[_Question]) -> Iterator[list[_Question]]:
        """Yields questions of which each batch is computed together, the longest first.

        Questions whose sequences continue after their prefix are together only if their prefixes are of one length.
        """
        groups: dict[int, list[_Question]] = defaultdict(list)
        for question in questions:
            groups[len(question.prefix) if question.longest_suffix > 1 else 0].append(question)
        for _, group in sorted(groups.items(), reverse=True):
            batch: list[_Question] = []
            for question in sorted(group, key=lambda item: (-item.count_tokens(), item.keys)):
                count = len(batch) * batch[0].count_tokens() if batch else 0
                is_padded = batch and question.longest_suffix < MIN_FILL * batch[0].longest_suffix
                is_full = batch and count + batch[0].count_tokens() > self.max_batch_tokens
                if is_full or (is_padded and count >= MIN_PADDED_TOKENS):
                    yield batch
                    batch = []
                batch.append(question)
            yield batch

    def _score_within_memory(
        self, batch: list[_Question], is_in_step: bool
    ) -> dict[SequenceKey, SequenceScore]:
        """Scores a batch, in halves if it does not fit into memory; ranks that run in step cannot halve theirs."""
        try:
            return self._score_trees(batch) if batch[0].is_branch else self._score_batch(batch, is_in_step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or is_in_step:
                raise
            if len(batch) == 1:
                raise KrillError(
                    f"out of memory with {batch[0].count_tokens():,} tokens; use hardware.precision=bf16, or a "
                    "device with more memory"
                ) from error
            self.max_batch_tokens = max(MIN_BATCH_TOKENS, self.max_batch_tokens // 2)
        release_memory()
        half = len(batch) // 2
        log.warning("batch       out of memory with %d questions; trying %d", len(batch), half)
        return self._score_within_memory(batch[:half], False) | self._score_within_memory(batch[half:], False)

    @torch.no_grad()
    def _score_trees(self, batch: list[_Question]) -> dict[SequenceKey, SequenceScore]:
        trees = pack_trees(part.sequences[0] for part in batch)
        paths = [path[-item.num_scored :] for tree in trees for item, path in tree.items]
        needed = np.unique(np.concatenate(paths))  # those from which a scored token is predicted, in any row
        inputs = {
            name: value.to(self.device) for name, value in build_inputs(trees, self.model.dtype).items()
        }
        logits_RNV = self.model(
            **inputs, use_cache=False, logits_to_keep=torch.from_numpy(needed).to(self.device)
        ).logits
        predictions = _Predictions()
        items = [(row, item, path) for row, tree in enumerate(trees) for item, path in tree.items]
        parts = [
            predictions.add(
                row, np.searchsorted(needed, path[-item.num_scored :]).tolist(), item.ids[-item.num_scored :]
            )
            for row, item, path in items
        ]
        logprobs, is_best = predictions.score(logits_RNV)
        return {
            question.keys[0]: SequenceScore(logprobs[part], bool(is_best[part].all()))
            for question, part in zip(batch, parts, strict=True)
        }

    @torch.no_grad()
    def _score_batch(self, batch: list[_Question], is_in_step: bool) -> dict[SequenceKey, SequenceScore]:
        width = max(question.longest_suffix for question in batch) - 1
        has_suffixes = width > 0 or is_in_step
        longest = max(len(question.prefix) for question in batch)
        out = self.model(
            input_ids=self._pad([question.prefix for question in batch], longest),
            use_cache=has_suffixes,
            logits_to_keep=max(longest - len(item.prefix) + item.num_kept for item in batch),
        )
        first = longest - out.logits.shape[1]  # the position of the first logits that were computed
        prefixes, suffixes = _Predictions(), _Predictions()
        parts: list[tuple[slice, slice]] = []
        rows = [(index, item, sequence) for index, item in enumerate(batch) for sequence in item.sequences]
        for row, (index, item, sequence) in enumerate(rows):
            length, count = len(item.prefix), sequence.num_scored
            begin = len(sequence.ids) - 1 - count  # the position from which the first one is predicted
            before = min(max(length - begin, 0), count)
            targets = sequence.ids[-count:]
            parts.append(
                (
                    prefixes.add(index, range(begin - first, begin - first + before), targets[:before]),
                    suffixes.add(
                        row, range(begin + before - length, begin + count - length), targets[before:]
                    ),
                )
            )
        prefix_scores = prefixes.score(out.logits)
        suffix_scores = suffixes.empty_scores()
        if has_suffixes:
            indices = torch.tensor([index for index, _, _ in rows], device=self.device)
            out.past_key_values.batch_select_indices(indices)
            inputs = [sequence.ids[len(item.prefix) : -1] for _, item, sequence in rows]
            logits_RSV = self.model(
                input_ids=self._pad(inputs, max(width, 1)),
                past_key_values=out.past_key_values,
                use_cache=True,
            ).logits
            suffix_scores = suffixes.score(logits_RSV)
        scores: dict[SequenceKey, SequenceScore] = {}
        keys = [key for item in batch for key in item.keys]
        for key, (prefix_part, suffix_part) in zip(keys, parts, strict=True):
            logprobs, is_best = (
                np.concatenate((one[prefix_part], other[suffix_part]))
                for one, other in zip(prefix_scores, suffix_scores, strict=True)
            )
            scores[key] = SequenceScore(logprobs, bool(is_best.all()))
        return scores

    def _pad(self, rows: Sequence[tuple[int, ...]], width: int) -> Tensor:
        """Returns the rows, int64 (rows, width), filled up on the right with a token that is never looked at."""
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return ids.to(self.device)


def _find_prefix(index: int, sequences: tuple[TokenSequence, ...]) -> list[_Question]:
    """Returns the sequences of a question with their common prefix, or each alone if they have none."""
    length = count_common_tokens(sequences)
    keys = tuple((index, position) for position in range(len(sequences)))
    if length:
        return [_Question(keys, sequences, sequences[0].ids[:length])]
    return [_Question((key,), (item,), item.ids[:-1]) for key, item in zip(keys, sequences, strict=True)]


class _Predictions:
    """Tokens to score, by the row and the position of the logits from which each is predicted."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._positions: list[int] = []
        self._targets: list[int] = []

    def add(self, row: int, positions: Sequence[int], targets: Sequence[int]) -> slice:
        """Adds tokens, each predicted from a position; returns where `score` has them."""
        self._rows += [row] * len(targets)
        self._positions += positions
        self._targets += targets
        return slice(len(self._targets) - len(targets), len(self._targets))

    def score(self, logits_BTV: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logprobs, float64, and whether each token is the most likely, bool; (tokens,) each."""
        logits_NV = logits_BTV.flatten(0, 1)
        norms, best = [], []
        for chunk in logits_NV.split(max(1, CHUNK_ELEMENTS // logits_NV.shape[1])):
            norms.append(chunk.float().logsumexp(dim=-1))
            best.append(chunk.amax(dim=-1))
        norms_N, best_N = torch.cat(norms), torch.cat(best)
        raise_if_not_finite(norms_N[:, None])
        rows, positions, targets = (
            torch.tensor(values, dtype=torch.int64, device=logits_BTV.device)
            for values in (self._rows, self._positions, self._targets)
        )
        positions += rows * logits_BTV.shape[1]
        chosen = logits_NV[positions, targets]
        logprobs = chosen.float() - norms_N[positions]
        return logprobs.double().cpu().numpy(), (chosen >= best_N[positions]).cpu().numpy()

    @staticmethod
    def empty_scores() -> tuple[np.ndarray, np.ndarray]:
        """Returns what `score` returns for no tokens."""
        return np.zeros(0), np.zeros(0, bool)
