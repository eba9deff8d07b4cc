"""What a validation measures: nats per token, bits per byte, and the two reference points beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krill.training.loss import Loss


@dataclass
class Validation:
    """Sums over validation rows; they add up over batches and ranks, so neither changes the result."""

    nats: float = 0.0
    tokens: int = 0
    text_nats: float = 0.0

    def loss(self) -> float:
        """Nats per predicted token (eos counts)."""
        return self.nats / self.tokens

    def bits_per_byte(self, text_bytes: int) -> float:
        """Bits per UTF-8 byte of the text (eos does not count: it is no text)."""
        return bits_per_byte(self.text_nats, text_bytes)


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Summed nats of a text's tokens as bits per UTF-8 byte of that text."""
    return nats / (math.log(2) * text_bytes)


@torch.no_grad()
def validate(
    model: torch.nn.Module, batches: Iterable[dict[str, Any]], eos_id: int, loss: Loss | None = None
) -> Validation:
    """Score every labelled token of `batches` (already on the model's device), summed in float64.

    `loss`: how a token's nats are computed; None: from full logits.
    """
    loss = loss or Loss()
    training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        labels = batch["labels"][:, 1:]
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        scored = labels != -100
        nats = loss.nats(model, inputs, batch["labels"])[:, :-1][scored].double()
        text = labels[scored] != eos_id
        sums += torch.stack((nats.sum(), scored.sum().double(), nats[text].sum())).cpu()
    model.train(training)
    return Validation(float(sums[0]), int(sums[1]), float(sums[2]))


@dataclass(frozen=True)
class Reference:
    """What a model must beat to have learned anything, in nats per token of the validation text."""

    uniform: float
    """ln V: knows nothing."""
    unigram: float
    """Entropy of the token frequencies: knows how often each token occurs, and no context."""


def reference(targets: Tensor, vocab_size: int) -> Reference:
    """The reference points of the validation text whose predicted tokens are `targets` (int64, 1-D)."""
    counts = torch.bincount(targets, minlength=vocab_size).double()
    shares = counts[counts > 0] / counts.sum()
    return Reference(math.log(vocab_size), float(-(shares * shares.log()).sum()))
