"""Cross-entropy computed directly from hidden states, with the logits of only one chunk of tokens in memory.

The full loss holds the logits, their log-probabilities and their gradient, N · V numbers each; this one C · V. The
gradient is computed together with the loss (the backward pass only scales it), so that logits are computed once:
Hsu et al. 2024, "Liger Kernel", section 3.2; Wijmans et al. 2024, "Cut Your Losses".

The gradient may include that of the z-loss, z · (log Σ exp logits)² per labeled token, which the value does not:
Chowdhery et al. 2022, "PaLM", section 5. With p the probabilities and y the labels, that of the logits is
p · (1 + 2 · z · log Σ exp logits) - y.

Shapes: N tokens, C tokens of a chunk, H hidden size, V vocabulary size, P vocabulary size with padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from krill.data.packing import IGNORE_INDEX
from krill.training.compute.thresholds import CHUNK, VOCABULARY_MULTIPLE

ErrorFunction = Callable[[Tensor, Tensor, int, bool], tuple[Tensor, Tensor, Tensor | None]]
"""The signature of `compute_errors`, without the weight of the z-loss."""


def compute_errors(
    logits_CP: Tensor, labels_C: Tensor, vocab_size: int, needs_bias: bool, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Computes loss and gradient of a chunk of logits. Written for torch.compile, which makes few kernels of it.

    Returns:
        The summed loss, fp32; the gradient with respect to the logits (probabilities minus one-hot labels, plus that
        of the z-loss), (C, P) in their dtype, 0 in the padding; the gradient summed over tokens, (V,) fp32, if
        `needs_bias`.
    """
    log_probs_CV = F.log_softmax(logits_CP[:, :vocab_size], -1, dtype=torch.float32)
    is_labeled_C = labels_C != IGNORE_INDEX
    targets_C1 = labels_C.clamp(min=0).unsqueeze(1)
    nll_C = -log_probs_CV.gather(1, targets_C1).squeeze(1)
    probs_CV = log_probs_CV.exp()
    if z_loss:
        probs_CV = probs_CV * _z_loss_factor(logits_CP, log_probs_CV, z_loss)
    is_target_CV = torch.arange(vocab_size, device=labels_C.device) == targets_C1
    errors_CV = torch.where(is_target_CV, probs_CV - 1, probs_CV) * is_labeled_C.unsqueeze(1)
    loss = torch.where(is_labeled_C, nll_C, 0.0).sum()
    return loss, _pad_columns(errors_CV, logits_CP), errors_CV.sum(0) if needs_bias else None


def compute_errors_in_place(
    logits_CP: Tensor, labels_C: Tensor, vocab_size: int, needs_bias: bool, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Computes the same as `compute_errors`, with fewer copies where nothing is compiled."""
    log_probs_CV = F.log_softmax(logits_CP[:, :vocab_size], -1, dtype=torch.float32)
    loss = _nll_loss(log_probs_CV, labels_C).sum()
    factor_C1 = _z_loss_factor(logits_CP, log_probs_CV, z_loss) if z_loss else None
    errors_CV = log_probs_CV.exp_()
    if factor_C1 is not None:
        errors_CV.mul_(factor_C1)
    errors_CV[torch.arange(len(labels_C), device=labels_C.device), labels_C.clamp(min=0)] -= 1
    is_labeled_C1 = (labels_C != IGNORE_INDEX).unsqueeze(1)
    errors_CV.mul_(is_labeled_C1)  # selecting rows by the mask would wait for the device
    return loss, _pad_columns(errors_CV, logits_CP), errors_CV.sum(0) if needs_bias else None


def chunked_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    labels_N: Tensor,
    bias_V: Tensor | None = None,
    compute_errors: ErrorFunction = compute_errors_in_place,
) -> Tensor:
    """Returns the summed loss of the labeled tokens in nats (label -100 is ignored), fp32 scalar; one backward only.

    Under autocast, matrix products are in its dtype; softmax and sums, including the weight gradient, are in fp32.
    """
    dtype = _get_compute_dtype(hidden_NH, weight_VH)
    loss: Tensor = _ChunkedCrossEntropy.apply(
        hidden_NH, weight_VH, bias_V, labels_N, dtype, torch.is_grad_enabled(), compute_errors
    )
    return loss


@torch.no_grad()
def per_token_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, bias_V: Tensor | None = None
) -> Tensor:
    """Returns the loss of each token in nats, (N,) fp32; 0 where the label is -100. No gradient."""
    dtype = _get_compute_dtype(hidden_NH, weight_VH)
    weight_VH, bias_V = weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)
    return torch.cat(
        [
            _nll_loss(_compute_log_probs(hidden_NH[part].to(dtype), weight_VH, bias_V), labels_N[part])
            for part in _iterate_chunks(hidden_NH)
        ]
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, labels_N: Tensor,
        dtype: torch.dtype, is_grad_enabled: bool, compute_errors: ErrorFunction,
    ) -> Tensor:  # fmt: skip
        needs_hidden, needs_weight, needs_bias = (
            is_grad_enabled and needs_grad for needs_grad in ctx.needs_input_grad[:3]
        )
        vocab_size = len(weight_VH)
        loss = hidden_NH.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden_NH.device.type, enabled=False):
            cast_PH = _pad_vocabulary(weight_VH.to(dtype))
            cast_P = None if bias_V is None else _pad_vocabulary(bias_V.to(dtype))
            grad_hidden = torch.empty_like(hidden_NH) if needs_hidden else None
            grad_weight = torch.zeros_like(cast_PH, dtype=torch.float32) if needs_weight else None
            grad_bias = hidden_NH.new_zeros(vocab_size, dtype=torch.float32) if needs_bias else None
            for part in _iterate_chunks(hidden_NH):
                hidden_CH, labels_C = hidden_NH[part].to(dtype), labels_N[part]
                logits_CP = F.linear(hidden_CH, cast_PH, cast_P)
                chunk_loss, errors_CP, errors_V = compute_errors(logits_CP, labels_C, vocab_size, needs_bias)
                del logits_CP  # frees the memory before the products, and before the next chunk's logits
                loss += chunk_loss
                if grad_bias is not None and errors_V is not None:
                    grad_bias += errors_V
                if grad_hidden is not None:
                    grad_hidden[part] = errors_CP @ cast_PH
                if grad_weight is not None:
                    _add_product(grad_weight, errors_CP.T, hidden_CH)
                del errors_CP
        ctx.gradients = (grad_hidden, None if grad_weight is None else grad_weight[:vocab_size], grad_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place to save memory, so a second backward would scale them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "the chunked loss supports one backward pass: compute it again for another backward pass"
            )
        scaled = (None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients)
        return *scaled, None, None, None, None


def _get_compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Returns the dtype of the matrix products: autocast's, else the weight's."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _iterate_chunks(hidden_NH: Tensor) -> Iterator[slice]:
    size = CHUNK.get(hidden_NH.device.type, CHUNK["cpu"])
    return (slice(first, first + size) for first in range(0, len(hidden_NH), size))


def _compute_log_probs(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """Returns log-probabilities, (C, V) fp32."""
    return F.log_softmax(F.linear(hidden_CH, weight_VH, bias_V), -1, dtype=torch.float32)


def _z_loss_factor(logits_CP: Tensor, log_probs_CV: Tensor, z_loss: float) -> Tensor:
    """Returns the factor by which the z-loss multiplies the probabilities in the gradient, (C, 1) fp32."""
    log_sums_C1 = logits_CP[:, :1].float() - log_probs_CV[:, :1]
    return 1 + 2 * z_loss * log_sums_C1


def _nll_loss(log_probs_CV: Tensor, labels_C: Tensor) -> Tensor:
    return F.nll_loss(log_probs_CV, labels_C, ignore_index=IGNORE_INDEX, reduction="none")


def _pad_vocabulary(weight: Tensor) -> Tensor:
    """Pads the first dimension of the head's weight or bias with zeros, on devices with a VOCABULARY_MULTIPLE."""
    padding = -len(weight) % VOCABULARY_MULTIPLE.get(weight.device.type, 1)
    return F.pad(weight, (*[0] * (2 * weight.ndim - 1), padding)) if padding else weight


def _pad_columns(errors_CV: Tensor, logits_CP: Tensor) -> Tensor:
    """Returns `errors_CV` with the width and the dtype of `logits_CP`, padded with zeros."""
    padding = logits_CP.shape[1] - errors_CV.shape[1]
    errors_CV = errors_CV.to(logits_CP.dtype)
    return F.pad(errors_CV, (0, padding)) if padding else errors_CV


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to `total`, which is fp32, without a temporary product where the device supports it."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.device.type == "cpu":
        total += a @ b
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
