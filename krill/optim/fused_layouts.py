"""Layouts of the fused projection weights in transformers' models.

The position of q, k and v in a fused weight does not follow from its shape: GPT-NeoX alternates them head by head,
Phi-3 stacks them. Each is therefore listed here as the model's forward pass splits it. A weight that looks fused and
is not listed is rejected: orthogonalizing it as one matrix would train, but worse.

A custom model registers its weights where it is defined:

    from krill.optim.fused_layouts import FUSED_SPLITS
    FUSED_SPLITS["my_model", "qkv"] = lambda config: (1, (config.hidden_size,) * 3)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from krill.errors import UsageError
from krill.optim.layout import Layout

FusedSplit = tuple[int, tuple[int, ...]]
"""`blocks` and `parts` of a Layout."""

FUSED_NAME_PATTERN = re.compile(r"qkv|query_key_value|w_pack|gate_up|up_gate|in_proj|c_attn", re.IGNORECASE)


def _split_stacked_qkv(config: Any) -> FusedSplit:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = (getattr(config, "num_key_value_heads", None) or heads) * size
    return 1, (heads * size, shared, shared)


def _split_interleaved_qkv(config: Any) -> FusedSplit:
    return config.num_attention_heads, (config.hidden_size // config.num_attention_heads,) * 3


def _split_gate_up(config: Any) -> FusedSplit:
    return 1, (config.intermediate_size,) * 2


def _split_falcon(config: Any) -> FusedSplit:
    """Splits into groups of query heads with their key and value head; one group if all heads share them."""
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if config.new_decoder_architecture:
        groups: int = config.num_kv_heads
    else:
        groups = 1 if config.multi_query else heads
    return groups, (heads // groups * size, size, size)


def _split_bigcode(config: Any) -> FusedSplit:
    size = config.hidden_size // config.num_attention_heads
    return (1, (config.hidden_size, size, size)) if config.multi_query else _split_interleaved_qkv(config)


def _split_codegen(config: Any) -> FusedSplit:
    """Splits into four blocks, for the four processors of its first training; each holds query, value, key."""
    return 4, (config.hidden_size // 4,) * 3


def _split_dbrx(config: Any) -> FusedSplit:
    shared = config.d_model // config.n_heads * config.attn_config.kv_n_heads
    return 1, (config.d_model, shared, shared)


FUSED_SPLITS: dict[tuple[str, str], Callable[[Any], FusedSplit]] = {
    ("phi3", "qkv_proj"): _split_stacked_qkv,
    ("phi3", "gate_up_proj"): _split_gate_up,
    ("glm", "gate_up_proj"): _split_gate_up,
    ("glm4", "gate_up_proj"): _split_gate_up,
    ("gpt2", "c_attn"): _split_stacked_qkv,
    ("openai-gpt", "c_attn"): _split_stacked_qkv,
    ("mpt", "Wqkv"): _split_stacked_qkv,
    ("dbrx", "Wqkv"): _split_dbrx,
    ("gpt_neox", "query_key_value"): _split_interleaved_qkv,
    ("gpt_neox_japanese", "query_key_value"): _split_interleaved_qkv,
    ("bloom", "query_key_value"): _split_interleaved_qkv,
    ("persimmon", "query_key_value"): _split_interleaved_qkv,
    ("falcon", "query_key_value"): _split_falcon,
    ("gpt_bigcode", "c_attn"): _split_bigcode,
    ("codegen", "qkv_proj"): _split_codegen,
}
"""(model_type of the configuration, last component of the module name) → function that returns the split."""


def infer_layout(name: str, module: nn.Module, shape: tuple[int, int], config: Any) -> Layout:
    """Returns the layout of a hidden matrix.

    Args:
        name: Full name of the module that holds the matrix, `model.layers.0.self_attn.qkv_proj`.
        module: The module; transformers' Conv1D holds (in, out).
        shape: (rows, columns) of the matrix.
        config: The model's configuration.

    Raises:
        UsageError: the name indicates a fused matrix, and no known split fits its shape.
    """
    last_name, model_type = name.rpartition(".")[2], getattr(config, "model_type", "")
    layout = Layout(transposed=isinstance(module, Conv1D))
    split = FUSED_SPLITS.get((model_type, last_name))
    if split is None and not FUSED_NAME_PATTERN.search(last_name):
        return layout
    reason = f"krill does not know how a model of type {model_type!r} splits it"
    if split is not None:
        layout = Layout(layout.transposed, *split(config))
        try:
            layout.shapes(*shape)
        except ValueError as error:
            reason = str(error)
        else:
            return layout
    raise UsageError(
        f"{name} ({shape[0]} × {shape[1]}) looks like several projections in one matrix, and {reason}. Muon "
        f"needs each projection separately: train it with AdamW (optimizer.adamw_modules=[{last_name}]), or register "
        f"the split in krill.optim.fused_layouts.FUSED_SPLITS[{model_type!r}, {last_name!r}]"
    )
