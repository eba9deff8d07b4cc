"""Section `model`: the architecture."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from krill.config.schema.base import FolderName, Section, Unsigned


class _BaseModelConfig(Section):
    name: Unsigned[FolderName]
    """What the model is called in the header and the records."""
    max_position_embeddings: PositiveInt
    """Longest sequence the configuration states; follows sequence_len."""


class CustomModelConfig(_BaseModelConfig):
    """A person's own architecture: a function that builds a transformers model."""

    family: Literal["custom"]
    """Architecture that is built."""
    build: str
    """file.py:function or package.module:function; called with vocab_size, max_position_embeddings,
    bos_token_id, eos_token_id, pad_token_id and the options, returns a PreTrainedModel with fp32 weights."""
    options: dict[str, Any]
    """Further keyword arguments of the function."""


class TransformerConfig(_BaseModelConfig):
    """The architecture, under the family's own names. The vocabulary follows the tokenizer."""

    family: Literal["llama", "qwen3"]
    """Architecture of transformers that is built."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width of the feed-forward layer."""
    num_hidden_layers: PositiveInt
    """Transformer blocks."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_key_value_heads: PositiveInt
    """Key and value heads; must divide the query heads."""
    head_dim: PositiveInt | None
    """Width of a head; null: hidden_size / num_attention_heads."""
    rope_theta: PositiveFloat
    """Base of the rotary position embedding."""
    rms_norm_eps: PositiveFloat
    """Epsilon of RMSNorm."""
    tie_word_embeddings: bool
    """Input and output embedding are one matrix."""
    initializer_range: PositiveFloat
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}; "
                "set head_dim"
            )
        return self


class AutoModelConfig(_BaseModelConfig):
    """Any architecture of transformers that isolates documents, under its configuration class's own keys."""

    family: Literal["auto"]
    """Architecture that is built."""
    model_type: str
    """The architecture's name in transformers: gpt2, gpt_neox, qwen2, gemma2, mistral, phi3, …"""
    config: dict[str, Any]
    """Keys of its configuration class, what is left out keeps that class's default: model.config.n_layer=6."""


class PretrainedModelConfig(_BaseModelConfig):
    """Architecture and weights of a trained model, to go on training on other text."""

    model_config = ConfigDict(serialize_by_alias=True)
    family: Literal["pretrained"]
    """Architecture that is built: that of the weights."""
    from_: Unsigned[str] = Field(alias="from")
    """Folder of a run, a checkpoint or a model, or Hub id: weights (made fp32) and configuration come from there."""
    max_position_embeddings: PositiveInt
    """Longest sequence that the weights must be able to read; follows sequence_len."""


ModelConfig = Annotated[
    TransformerConfig | AutoModelConfig | PretrainedModelConfig | CustomModelConfig,
    Field(discriminator="family"),
]
