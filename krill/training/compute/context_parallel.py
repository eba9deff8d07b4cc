"""Context parallelism: consecutive ranks share the tokens of each row (hardware.context_parallel).

Each rank computes embedding, layers, head and loss for its part of a row, of equal length. In attention an all-to-all
exchanges tokens for heads, so that each rank attends with some of the heads over whole rows, by the same kernel and
with the same document boundaries as without; a second one exchanges the result back (Jacobs et al. 2023, "DeepSpeed
Ulysses", arXiv:2309.14509). The ranks hold 1/P of the activations. Weights, gradients and their reduction are as
without: the gradient of a row is the sum over its parts, like that of a batch over its rows.

Only training passes are cut. In validation and generation each rank computes whole rows of its own.

Shapes: P ranks (parts of a row), B rows, T tokens of a row, t = T / P of a part, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import AttentionInterface

from krill.config.schema import HardwareConfig, TrainConfig
from krill.errors import UsageError
from krill.models.attention_probe import probe_attention
from krill.models.build import build_meta_model
from krill.models.isolation import LENGTH_BACKEND_FEATURES
from krill.training.compute.attention import ATTENTION_FUNCTIONS, get_attn_implementation
from krill.training.compute.attention_kernels import cast_to_autocast_dtype
from krill.training.compute.head_loss import shift_labels

IS_CUT = "is_row_cut"
"""The keyword argument of a model that marks its inputs as parts of rows."""
UNTESTED = {"liger": True, "compile": True, "loss": "liger"}
"""Values of keys of `hardware` that have not been tested together with context parallelism."""


def check_context_parallel(config: TrainConfig, backend: str) -> None:
    """Raises UsageError if the rows or the heads cannot be divided, or with what has not been tested together.

    `backend`: the attention backend that the run resolves to.
    """
    size = config.hardware.context_parallel
    if size == 1:
        return
    key = f"hardware.context_parallel={size}"
    if backend not in LENGTH_BACKEND_FEATURES:
        raise UsageError(
            f"{key} exchanges heads around an attention function that receives the lengths of documents, and "
            f"{backend} builds masks instead; use hardware.attention=varlen, on CUDA with hardware.precision=bf16"
        )
    if config.sequence_len % size:
        raise UsageError(
            f"{key} does not divide sequence_len={config.sequence_len}; use a multiple of {size}"
        )
    for name, value in UNTESTED.items():
        if getattr(config.hardware, name) == value:
            setting = str(value).lower()
            raise UsageError(
                f"{key} has not been tested with hardware.{name}={setting}; leave hardware.{name} out"
            )
    heads = {call.heads for call in probe_attention(build_meta_model(config.model, vocab_size=64)).calls}
    for count in heads:
        if count % size:
            divisors = [str(n) for n in range(2, count + 1) if count % n == 0]
            raise UsageError(
                f"{key} does not divide the {count} attention heads of the model; use one of {', '.join(divisors)}"
            )


def select_tested_kernels(hardware: HardwareConfig) -> HardwareConfig:
    """Returns `hardware` without the kernels that auto may choose and that are untested with parts of rows."""
    if hardware.context_parallel == 1:
        return hardware
    return hardware.model_copy(
        update={name: False for name in ("liger", "compile") if getattr(hardware, name) == "auto"}
    )


def cut_rows(batch: dict[str, Any], part: int, parts: int) -> dict[str, Any]:
    """Returns the part of a batch of whole rows, (B, T), that one rank computes, (B, t).

    Labels are shifted before the cut: the last token of a part predicts the first one of the next. The document
    boundaries remain those of whole rows, which attention sees.
    """
    labels = shift_labels(batch["labels"])
    cut = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "shift_labels": labels}
    cut = {name: tensor.chunk(parts, dim=1)[part].contiguous() for name, tensor in cut.items()}
    return batch | cut | {"labels": cut["shift_labels"], IS_CUT: True}


def get_context_parallel_implementation(backend: str) -> str:
    """Returns transformers' name of the attention function for `backend` and parts of rows."""
    return f"ulysses_{get_attn_implementation(backend)}"


def register_context_parallel_attention(backend: str, size: int) -> None:
    """Registers the attention function for groups of `size` consecutive ranks; every rank must call it."""
    group, _ = dist.new_subgroups(size)
    attend = partial(ulysses_attention_forward, ATTENTION_FUNCTIONS[get_attn_implementation(backend)], group)
    AttentionInterface.register(get_context_parallel_implementation(backend), attend)


def ulysses_attention_forward(
    attend: Callable[..., tuple[Tensor, None]],
    group: ProcessGroup,
    module: torch.nn.Module,
    query_BHtD: Tensor,
    key_BHtD: Tensor,
    value_BHtD: Tensor,
    attention_mask: Tensor | None,
    is_row_cut: bool = False,
    **options: Any,
) -> tuple[Tensor, None]:
    """Computes the attention of this rank's part of rows by `attend`, or of whole rows if they are not cut.

    Args:
        attend: An attention function of `krill.training.compute.attention`.
        group: The ranks that hold the parts, in order.

    Returns:
        The output, (B, t, H, D), and None for the attention weights.
    """
    if not is_row_cut:
        return attend(module, query_BHtD, key_BHtD, value_BHtD, attention_mask, **options)
    parts = dist.get_world_size(group)
    # Grouped-query attention with fewer keys than ranks: some ranks attend with the same key and value.
    copies = parts // gcd(parts, key_BHtD.shape[1])
    key_BHtD, value_BHtD = (x.repeat_interleave(copies, dim=1) for x in (key_BHtD, value_BHtD))
    tensors = cast_to_autocast_dtype(query_BHtD, key_BHtD, value_BHtD)
    query, key, value = _exchange_tokens_for_heads(list(tensors), group)
    out_BTHD, _ = attend(module, query, key, value, attention_mask, **options)
    return _exchange_heads_for_tokens(out_BTHD, group), None


def _exchange_tokens_for_heads(tensors: list[Tensor], group: ProcessGroup) -> list[Tensor]:
    """Maps (B, H, t, D) tensors of all heads to (B, H/P, T, D) of whole rows, in one all-to-all."""
    parts = dist.get_world_size(group)
    split = [x.unflatten(1, (parts, -1)).movedim(1, 0) for x in tensors]  # (P, B, H/P, t, D), by receiver
    received = _AllToAll.apply(torch.cat([x.flatten(1) for x in split], dim=1), group)
    pieces = received.split([x[0].numel() for x in split], dim=1)
    return [piece.view(x.shape).movedim(0, 2).flatten(2, 3) for piece, x in zip(pieces, split, strict=True)]


def _exchange_heads_for_tokens(out_BTHD: Tensor, group: ProcessGroup) -> Tensor:
    """Maps a (B, T, H/P, D) tensor of whole rows to (B, t, H, D) of all heads."""
    split = out_BTHD.unflatten(1, (dist.get_world_size(group), -1)).movedim(1, 0)  # (P, B, t, H/P, D)
    received = _AllToAll.apply(split.contiguous(), group)
    return received.movedim(0, 2).flatten(2, 3)


class _AllToAll(torch.autograd.Function):
    """Sends x[r] to rank r and receives its x[rank] as out[r]; the gradients travel back the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        received = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, grad.contiguous(), group=ctx.group)
        return received, None
