"""Rows that hold many token sequences as a tree: what they have in common at their beginnings is there once.

Each token attends to its ancestors alone, by an attention mask of its own for each row, and its position is its
depth. So the scores of sequences that begin alike, such as the sentences of minimal pairs, need one forward pass, and
no padding but at the end of a row. (Cai et al. 2024, "Medusa", verify the continuations of a text in this way.)

Shapes: R rows, N tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krill.evaluation.token_sequence import TokenSequence, count_common_tokens

ROW_TOKENS = 128
"""Number of tokens of a row, unless a sequence has more: a longer one shares more and attends to more."""
FAMILIES = ("llama", "qwen3")
"""`model_type`s that take a mask for each row, and attend to all that it allows."""


class PrefixTree:
    """The sequences of one row. Those that begin alike have to be added one after the other."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.sequences: list[TokenSequence] = []
        self.paths: list[list[int]] = []
        """The indices in the row of the tokens of each sequence, without its last one, which is never an input."""
        self._parents: list[int] = []

    @property
    def items(self) -> list[tuple[TokenSequence, list[int]]]:
        """The sequences, in the order in which they were added, with their paths."""
        return list(zip(self.sequences, self.paths, strict=True))

    def count_new_tokens(self, sequence: TokenSequence) -> int:
        """Returns the number of tokens that `sequence` would add."""
        return len(sequence.ids) - 1 - self._count_shared_tokens(sequence)

    def add(self, sequence: TokenSequence) -> None:
        """Adds a sequence after those with which it shares its beginning."""
        shared = self._count_shared_tokens(sequence)
        path = self.paths[-1][:shared] if shared else []
        for position in range(shared, len(sequence.ids) - 1):
            self._parents.append(path[-1] if path else -1)
            path.append(len(self.ids))
            self.ids.append(sequence.ids[position])
            self.positions.append(position)
        self.sequences.append(sequence)
        self.paths.append(path)

    def build_mask(self) -> np.ndarray:
        """Returns whether a token, the first axis, attends to another one; bool (N, N)."""
        mask = np.eye(len(self.ids), dtype=bool)
        for token, parent in enumerate(self._parents):
            if parent >= 0:
                mask[token] |= mask[parent]
        return mask

    def _count_shared_tokens(self, sequence: TokenSequence) -> int:
        if not self.sequences:
            return 0
        return count_common_tokens((self.sequences[-1], sequence))


def pack_trees(sequences: Iterable[TokenSequence]) -> list[PrefixTree]:
    """Returns the sequences, sorted by their tokens, in rows of at most ROW_TOKENS tokens, or of one sequence."""
    trees: list[PrefixTree] = []
    for sequence in sequences:
        if not trees or len(trees[-1].ids) + trees[-1].count_new_tokens(sequence) > ROW_TOKENS:
            trees.append(PrefixTree())
        trees[-1].add(sequence)
    return trees


def supports_trees(model: Any) -> bool:
    """Returns whether the attention of `model` takes a mask for each row, and its layers attend to all before."""
    config = getattr(model, "config", None)
    return (
        getattr(config, "model_type", None) in FAMILIES
        and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
        and not getattr(config, "sliding_window", None)
    )


def build_inputs(trees: Sequence[PrefixTree], dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the arguments of a model for the rows: ids and positions, int64 (R, N), and the mask (R, 1, N, N)."""
    width = max(len(tree.ids) for tree in trees)
    ids_RN, positions_RN = (torch.zeros(len(trees), width, dtype=torch.int64) for _ in range(2))
    mask_RNN = np.eye(width, dtype=bool)[None].repeat(len(trees), axis=0)  # padding attends to itself
    for row, tree in enumerate(trees):
        length = len(tree.ids)
        ids_RN[row, :length] = torch.tensor(tree.ids)
        positions_RN[row, :length] = torch.tensor(tree.positions)
        mask_RNN[row, :length, :length] = tree.build_mask()
    bias_R1NN = torch.zeros(len(trees), 1, width, width, dtype=dtype)
    bias_R1NN.masked_fill_(~torch.from_numpy(mask_RNN)[:, None], torch.finfo(dtype).min)
    return {"input_ids": ids_RN, "position_ids": positions_RN, "attention_mask": bias_R1NN}
