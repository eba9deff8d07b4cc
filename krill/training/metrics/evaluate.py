"""What a validation measures: nats per token, bits per byte, and the two reference points beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krill.training import ranks
from krill.training.compute.head_loss import Loss


@dataclass
class ValidationTotals:
    """Sums over validation rows; they add up over batches and ranks, so neither changes the result."""

    nats: float = 0.0
    tokens: int = 0
    text_nats: float = 0.0

    def loss(self) -> float:
        """Nats per predicted token (eos counts)."""
        return self.nats / self.tokens

    def bits_per_byte(self, text_bytes: int) -> float:
        """Bits per UTF-8 byte of the text (eos does not count: it is no text)."""
        return compute_bits_per_byte(self.text_nats, text_bytes)


def compute_bits_per_byte(nats: float, text_bytes: int) -> float:
    """Summed nats of a text's tokens as bits per UTF-8 byte of that text."""
    return nats / (math.log(2) * text_bytes)


@torch.no_grad()
def evaluate_batches(
    model: torch.nn.Module,
    batches: Iterable[dict[str, Any]],
    eos_id: int,
    loss: Loss | None = None,
    sources: int = 1,
) -> list[ValidationTotals]:
    """Score every labelled token of `batches` (already on the model's device), summed in float64 for each source and
    over all ranks.

    Args:
        batches: What the model takes, and with several sources that of each token: `sources`, int64 (B, T).
        loss: How a token's nats are computed; None: from full logits.
        sources: How many there are.
    """
    loss = loss or Loss()
    training = model.training
    model.eval()
    sums = torch.zeros(3, sources, dtype=torch.float64)
    for batch in batches:
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "sources")}
        labels = batch["labels"][:, 1:]
        scored = labels != -100
        nats = loss.token_losses(model, inputs, batch["labels"])[:, :-1][scored].double().cpu()
        of = (
            batch["sources"][:, 1:][scored].cpu()
            if sources > 1
            else torch.zeros(len(nats), dtype=torch.int64)
        )
        text = (labels[scored] != eos_id).cpu()
        for total, weights in zip(sums, (nats, torch.ones_like(nats), nats * text), strict=True):
            total += torch.bincount(of, weights, sources)
    model.train(training)
    return [
        ValidationTotals(nats, int(tokens), text)
        for nats, tokens, text in ranks.all_reduce_sum(sums).T.tolist()
    ]


def merge_validation_totals(validations: Iterable[ValidationTotals]) -> ValidationTotals:
    """Of all the rows of several."""
    total = ValidationTotals()
    for one in validations:
        total.nats += one.nats
        total.tokens += one.tokens
        total.text_nats += one.text_nats
    return total


@dataclass(frozen=True)
class Baselines:
    """What a model must beat to have learned anything, in nats per token of the validation text."""

    uniform: float
    """ln V: knows nothing."""
    unigram: float
    """Entropy of the token frequencies: knows how often each token occurs, and no context."""


def compute_baselines(targets: Tensor, vocab_size: int) -> Baselines:
    """The reference points of the validation text whose predicted tokens are `targets` (int64, 1-D)."""
    counts = torch.bincount(targets, minlength=vocab_size).double()
    shares = counts[counts > 0] / counts.sum()
    return Baselines(math.log(vocab_size), float(-(shares * shares.log()).sum()))
