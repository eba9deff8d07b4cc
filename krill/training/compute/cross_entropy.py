"""Cross-entropy straight from hidden states: the logits of a chunk of tokens at a time, never those of all.

The full way holds the logits, their logarithms and their gradient, N · V numbers each; here it is chunk · V. The
gradient is computed with the loss (the scalar that comes back in the backward pass only scales it), so that no logits
are computed twice: Hsu et al. 2024, "Liger Kernel", section 3.2; Wijmans et al. 2024, "Cut Your Losses".

Shapes: N tokens, C tokens of a chunk, H width of a hidden state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from krill.data.packing import IGNORE_INDEX

CHUNK = {"cpu": 512, "cuda": 2048}
"""Tokens of a chunk: on the CPU as measured (512 costs what 1024 does and half its memory); larger on CUDA, where
each chunk adds to the whole gradient of the weight in memory (not measured)."""


def chunked_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, bias_V: Tensor | None = None
) -> Tensor:
    """Summed nats of the labelled tokens (label -100: left out), an fp32 scalar; differentiable once.

    Under autocast products are in its dtype; softmax and sums, among them the weight's gradient, are in fp32.
    """
    dtype = _get_compute_dtype(hidden_NH, weight_VH)
    wanted = torch.is_grad_enabled()
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden_NH, weight_VH, bias_V, labels_N, dtype, wanted)
    return loss


@torch.no_grad()
def per_token_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, bias_V: Tensor | None = None
) -> Tensor:
    """Nats of each token, (N,) fp32; 0 where the label is -100. No gradient."""
    dtype = _get_compute_dtype(hidden_NH, weight_VH)
    weight_VH, bias_V = weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)
    return torch.cat(
        [
            _nll_loss(_log_probs(hidden_NH[part].to(dtype), weight_VH, bias_V), labels_N[part])
            for part in _chunks(hidden_NH)
        ]
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, labels_N: Tensor,
        dtype: torch.dtype, wanted: bool,
    ) -> Tensor:  # fmt: skip
        for_hidden, for_weight, for_bias = (wanted and needed for needed in ctx.needs_input_grad[:3])
        grad_hidden = torch.empty_like(hidden_NH) if for_hidden else None
        grad_weight = torch.zeros_like(weight_VH) if for_weight else None
        grad_bias = torch.zeros_like(bias_V) if for_bias and bias_V is not None else None
        loss = hidden_NH.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden_NH.device.type, enabled=False):
            cast_VH, cast_V = weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)
            for part in _chunks(hidden_NH):
                hidden_CH, labels_C = hidden_NH[part].to(dtype), labels_N[part]
                log_probs_CV = _log_probs(hidden_CH, cast_VH, cast_V)
                loss += _nll_loss(log_probs_CV, labels_C).sum()
                if wanted:
                    errors_CV = _compute_logit_gradients(log_probs_CV, labels_C)
                    if grad_bias is not None:
                        grad_bias += errors_CV.sum(0)
                    errors_CV = errors_CV.to(dtype)
                    if grad_hidden is not None:
                        grad_hidden[part] = errors_CV @ cast_VH
                    if grad_weight is not None:
                        _add_product(grad_weight, errors_CV.T, hidden_CH)
                    del errors_CV
                del log_probs_CV  # before the next chunk's logits are made
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # They are scaled in place, so that they are there once only: a second backward would scale them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "the chunked loss goes backward once: compute it again for another backward pass"
            )
        scaled = (None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients)
        return *scaled, None, None, None


def _get_compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's, else the weight's."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _chunks(hidden_NH: Tensor) -> Iterator[slice]:
    size = CHUNK.get(hidden_NH.device.type, CHUNK["cpu"])
    return (slice(first, first + size) for first in range(0, len(hidden_NH), size))


def _log_probs(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """(C, V) in fp32."""
    return F.log_softmax(F.linear(hidden_CH, weight_VH, bias_V), -1, dtype=torch.float32)


def _nll_loss(log_probs_CV: Tensor, labels_C: Tensor) -> Tensor:
    return F.nll_loss(log_probs_CV, labels_C, ignore_index=IGNORE_INDEX, reduction="none")


def _compute_logit_gradients(log_probs_CV: Tensor, labels_C: Tensor) -> Tensor:
    """The gradient of the summed nats by the logits: probabilities less the label, in the memory of the former."""
    labelled = (
        labels_C != IGNORE_INDEX
    )  # no selection by it: its length would have to come back from the device
    errors_CV = log_probs_CV.exp_()
    errors_CV[torch.arange(len(labels_C), device=labels_C.device), labels_C.clamp(min=0)] -= 1
    return errors_CV.mul_(labelled.unsqueeze(1))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without a copy where the dtypes are equal."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
