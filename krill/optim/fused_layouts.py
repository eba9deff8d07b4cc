"""Which weights of transformers' models hold several projections, and where in them each one is.

Where q, k and v lie in a fused weight cannot be seen in its shape: GPT-NeoX alternates them head by head, Phi-3
puts them one below another. So each is written down here as the model's own forward pass cuts it, and a weight
that looks fused and is not here is refused: to orthogonalize it as one matrix would train, only worse.

A model of your own registers its weights where it is defined:

    from krill.optim.fused import SPLITS
    SPLITS["my_model", "qkv"] = lambda config: (1, (config.hidden_size,) * 3)
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
    """Groups of query heads with their key and value head; one group where all share them."""
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
    """Four blocks, as of the four processors it was first trained on; in each query, value, key."""
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
"""(model_type of the configuration, last word of the module's name) → its split."""


def infer_layout(name: str, module: nn.Module, shape: tuple[int, int], config: Any) -> Layout:
    """The layout of a hidden matrix.

    Args:
        name: Full name of the module that holds it, `model.layers.0.self_attn.qkv_proj`.
        module: That module; transformers' Conv1D holds (in, out).
        shape: Of the matrix.
        config: The model's configuration.

    Raises:
        UsageError: the name says fused, and no split is known that fits the shape.
    """
    word, model_type = name.rpartition(".")[2], getattr(config, "model_type", "")
    layout = Layout(transposed=isinstance(module, Conv1D))
    split = FUSED_SPLITS.get((model_type, word))
    if split is None and not FUSED_NAME_PATTERN.search(word):
        return layout
    reason = f"krill does not know where, in a model of type {model_type!r}"
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
        f"needs each by itself: have AdamW train it with optimizer.adamw_modules=[{word}], or say where they are "
        f"in krill.optim.fused_layouts.FUSED_SPLITS[{model_type!r}, {word!r}]"
    )
