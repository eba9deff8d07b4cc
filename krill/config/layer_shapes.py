"""The matrices of one layer of a Llama or a Qwen3, as a plan and the rule for the learning rate count them."""

from __future__ import annotations

from typing import Literal, NamedTuple


class LayerMatrix(NamedTuple):
    """A matrix of a layer, with the shape (rows, columns) = (out, in)."""

    name: str
    """Its name within the layer, as in transformers."""
    role: Literal["attention", "mlp"]
    rows: int
    columns: int


def list_layer_matrices(
    hidden_size: int,
    intermediate_size: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
) -> tuple[LayerMatrix, ...]:
    """Returns the matrices of one layer; arguments are named as in transformers."""
    queries, keys = num_attention_heads * head_dim, num_key_value_heads * head_dim
    return (
        LayerMatrix("self_attn.q_proj", "attention", queries, hidden_size),
        LayerMatrix("self_attn.k_proj", "attention", keys, hidden_size),
        LayerMatrix("self_attn.v_proj", "attention", keys, hidden_size),
        LayerMatrix("self_attn.o_proj", "attention", hidden_size, queries),
        LayerMatrix("mlp.gate_proj", "mlp", intermediate_size, hidden_size),
        LayerMatrix("mlp.up_proj", "mlp", intermediate_size, hidden_size),
        LayerMatrix("mlp.down_proj", "mlp", hidden_size, intermediate_size),
    )
