"""Small models of the families whose plan is arithmetic, and settings to plan them with."""

from __future__ import annotations

from typing import Any

from krill.config.schema import AutoModelConfig, ModelConfig, TransformerConfig
from krill.device_table import Device
from krill.plan.setting import ComputeSetting
from krill.training.batch_shape import BatchShape

VOCABULARY = 90
CPU = Device("cpu", "cpu", {"fp32": 1e11}, 2**34, 1e10, None, "a test")


def make_gated(family: str, **changes: Any) -> TransformerConfig:
    values: dict[str, Any] = {
        "name": "small", "family": family, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "initializer_range": 0.02,
    }  # fmt: skip
    return TransformerConfig.model_validate(values | changes)


def make_gpt2(**keys: Any) -> AutoModelConfig:
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0}
    return AutoModelConfig(
        name="gpt2", family="auto", model_type="gpt2", max_position_embeddings=256, config=shape | keys
    )


MODELS: dict[str, ModelConfig] = {
    "llama": make_gated("llama"),
    "llama deep": make_gated("llama", num_hidden_layers=5, tie_word_embeddings=False),
    "llama wide": make_gated(
        "llama", hidden_size=64, intermediate_size=160, num_key_value_heads=4, head_dim=None
    ),
    "qwen3": make_gated("qwen3"),
    "qwen3 deep": make_gated("qwen3", num_hidden_layers=5, tie_word_embeddings=False, head_dim=8),
    "qwen3 wide": make_gated("qwen3", hidden_size=64, intermediate_size=160, num_key_value_heads=1),
    "gpt2": make_gpt2(),
    "gpt2 deep": make_gpt2(n_layer=5, resid_pdrop=0.0, embd_pdrop=0.0),
    "gpt2 wide": make_gpt2(hidden_size=64, n_inner=160),
}
"""Three families at three sizes."""


def make_setting(**changes: Any) -> ComputeSetting:
    """Returns a setting on one rank of a CPU, with `changes`."""
    values: dict[str, Any] = {
        "device": CPU, "precision": "fp32", "loss": "chunked", "attention": "varlen",
        "gradient_checkpointing": False, "world_size": 1, "shard_size": 1, "ranks_per_node": 1,
        "context_parallel": 1, "batch": BatchShape(4, 1), "can_compile": None,
    }  # fmt: skip
    return ComputeSetting(**(values | changes))
