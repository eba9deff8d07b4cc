"""Computes the validation loss (nats per token), bits per byte, and two baselines to compare them with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krill.data.packing import IGNORE_INDEX
from krill.training import ranks
from krill.training.compute.head_loss import Loss


@dataclass
class ValidationTotals:
    """Sums over validation rows; sums over batches and ranks do not depend on how the rows are split."""

    nats: float = 0.0
    tokens: int = 0
    text_nats: float = 0.0

    def loss(self) -> float:
        """Returns nats per predicted token, eos included."""
        return self.nats / self.tokens

    def bits_per_byte(self, text_bytes: int) -> float:
        """Returns bits per UTF-8 byte of the text, without the loss of eos tokens, which are not text."""
        return compute_bits_per_byte(self.text_nats, text_bytes)


def compute_bits_per_byte(nats: float, text_bytes: int) -> float:
    """Converts the summed nats of a text's tokens to bits per UTF-8 byte of the text."""
    return nats / (math.log(2) * text_bytes)


@torch.no_grad()
def evaluate_batches(
    model: torch.nn.Module,
    batches: Iterable[dict[str, Any]],
    eos_id: int,
    loss: Loss | None = None,
    sources: int = 1,
) -> list[ValidationTotals]:
    """Returns the totals of each source over all labeled tokens of `batches` and all ranks, summed in float64.

    Args:
        batches: Model inputs and `labels`, on the model's device; with several sources also `sources`, the source of
            each token, int64 (B, T).
        loss: Computes the nats of each token. None: from full logits.
        sources: The number of sources.
    """
    loss = loss or Loss()
    training = model.training
    model.eval()
    sums = torch.zeros(3, sources, dtype=torch.float64)
    for batch in batches:
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "sources")}
        labels = batch["labels"][:, 1:]
        scored = labels != IGNORE_INDEX
        nats = loss.token_losses(model, inputs, batch["labels"])[:, :-1][scored].double().cpu()
        source_ids = (
            batch["sources"][:, 1:][scored].cpu()
            if sources > 1
            else torch.zeros(len(nats), dtype=torch.int64)
        )
        text = (labels[scored] != eos_id).cpu()
        for total, weights in zip(sums, (nats, torch.ones_like(nats), nats * text), strict=True):
            total += torch.bincount(source_ids, weights, sources)
    model.train(training)
    return [
        ValidationTotals(nats, int(tokens), text)
        for nats, tokens, text in ranks.all_reduce_sum(sums).T.tolist()
    ]


def merge_validation_totals(totals: Iterable[ValidationTotals]) -> ValidationTotals:
    """Returns the sum of several totals."""
    merged = ValidationTotals()
    for total in totals:
        merged.nats += total.nats
        merged.tokens += total.tokens
        merged.text_nats += total.text_nats
    return merged


@dataclass(frozen=True)
class Baselines:
    """Losses of models without context, in nats per token of the validation text, which training must beat."""

    uniform: float
    """ln V, the loss of uniform predictions."""
    unigram: float
    """Entropy of the token frequencies in the validation text, the loss of the best prediction without context."""


def compute_baselines(targets: Tensor, vocab_size: int) -> Baselines:
    """Returns the baselines of a validation text whose predicted tokens are `targets` (int64, 1-D)."""
    counts = torch.bincount(targets, minlength=vocab_size).double()
    shares = counts[counts > 0] / counts.sum()
    return Baselines(math.log(vocab_size), float(-(shares * shares.log()).sum()))
