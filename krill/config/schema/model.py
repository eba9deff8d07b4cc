"""Section `model`: the architecture."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from krill.config.schema.base import FolderName, Rate, RunName, Section, Size, Unsigned

Width = Annotated[int, Field(gt=0, le=2**20)]
"""The width of a layer, or a number of heads: the product of two is a size that torch allocates or refuses."""

MAX_LAYERS = 1024
"""More blocks than any model has: DeepNet, the deepest, has 1,000."""


class _BaseModelConfig(Section):
    name: Unsigned[FolderName]
    """Name of the model in the run header and the records."""
    max_position_embeddings: Size
    """Maximum sequence length in the model's configuration; follows sequence_len."""


class CustomModelConfig(_BaseModelConfig):
    """A custom architecture: a function that builds a transformers model."""

    family: Literal["custom"]
    """Model family."""
    build: str
    """file.py:function or package.module:function; it is called with vocab_size, max_position_embeddings,
    bos_token_id, eos_token_id, pad_token_id and the options and returns a PreTrainedModel with fp32
    weights."""
    options: dict[str, Any]
    """Additional keyword arguments of the function."""


class TransformerConfig(_BaseModelConfig):
    """A Llama or Qwen3 architecture; keys are named as in transformers. The vocabulary size follows the
    tokenizer."""

    family: Literal["llama", "qwen3"]
    """Model family, an architecture of transformers."""
    hidden_size: Width
    """Width of the residual stream."""
    intermediate_size: Width
    """Width of the feed-forward layer."""
    num_hidden_layers: Annotated[int, Field(gt=0, le=MAX_LAYERS)]
    """Number of transformer blocks."""
    num_attention_heads: Width
    """Number of query heads."""
    num_key_value_heads: Width
    """Number of key and value heads; must divide the number of query heads."""
    head_dim: Width | None
    """Width of a head; null: hidden_size / num_attention_heads."""
    rope_theta: Rate
    """Base of the rotary position embedding."""
    rms_norm_eps: Rate
    """Epsilon of RMSNorm."""
    tie_word_embeddings: bool
    """Share one matrix between input and output embedding."""
    initializer_range: Rate
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            heads = self.num_attention_heads
            divisors = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide num_attention_heads={heads}; "
                f"use one of {divisors}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}; "
                "set head_dim"
            )
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if head_dim % 2:
            raise ValueError(
                f"head_dim={head_dim} is odd, but rotary position embeddings rotate pairs; "
                f"set head_dim={head_dim + 1}"
            )
        return self


class AutoModelConfig(_BaseModelConfig):
    """Any architecture of transformers that isolates documents; keys are those of its configuration class."""

    family: Literal["auto"]
    """Model family."""
    model_type: str
    """Name of the architecture in transformers: gpt2, gpt_neox, qwen2, gemma2, mistral, phi3, …"""
    config: dict[str, Any]
    """Keys of its configuration class, such as model.config.n_layer=6; other keys keep their defaults."""


class PretrainedModelConfig(_BaseModelConfig):
    """Architecture and weights of a trained model, for continued training on other text."""

    model_config = ConfigDict(serialize_by_alias=True)
    family: Literal["pretrained"]
    """Model family: that of the weights."""
    from_: Unsigned[RunName] = Field(alias="from")
    """Run (its folder, its name, last, SWEEP/best), folder of a checkpoint or model, or a Hub id: source of the
    weights (converted to fp32) and configuration."""
    max_position_embeddings: Size
    """Sequence length that the weights must support; follows sequence_len."""


ModelConfig = Annotated[
    TransformerConfig | AutoModelConfig | PretrainedModelConfig | CustomModelConfig,
    Field(discriminator="family"),
]
