"""Lays out the weights of a Llama or Qwen3 model as llama.cpp does (its convert_hf_to_gguf.py).

Names are those of the gguf package. llama.cpp rotates neighbouring pairs of a Llama head (RoPE as in the paper), and
transformers its two halves, so the rows of q and k are reordered; for Qwen3 llama.cpp rotates halves as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from krill.errors import UsageError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Architecture of llama.cpp → class of transformers."""


class NamedTensor(NamedTuple):
    """A tensor of the file; its data is in the dtype of the model."""

    name: str
    source: str
    """Its name in the model."""
    data: torch.Tensor


def get_architecture(config: Any, label: str) -> str:
    """Returns the architecture of llama.cpp. Raises UsageError for a model that it would compute differently."""
    architecture = config.model_type
    if architecture not in ARCHITECTURES or (config.architectures or [ARCHITECTURES[architecture]]) != [
        ARCHITECTURES[architecture]
    ]:
        raise UsageError(
            f"{label}: format=gguf is for models of the families llama and qwen3, and this is {architecture}; use "
            "format=hf, and convert_hf_to_gguf.py of llama.cpp"
        )
    if reason := _find_obstacle(config, architecture):
        raise UsageError(f"{label}: llama.cpp has no {architecture} model with {reason}; use format=hf")
    return architecture


def _find_obstacle(config: Any, architecture: str) -> str | None:
    """Returns a setting that llama.cpp's architecture does not have, or None."""
    rope = config.rope_parameters
    allowed_ropes = ("default", "linear", "llama3") if architecture == "llama" else ("default",)
    if config.hidden_act != "silu":
        return f"hidden_act={config.hidden_act}"
    if rope.get("rope_type", "default") not in allowed_ropes:
        return f"rope_type={rope['rope_type']}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"partial_rotary_factor={rope['partial_rotary_factor']}"
    if architecture == "qwen3" and config.attention_bias:
        return "attention_bias=true"
    if getattr(config, "use_sliding_window", False):
        return "use_sliding_window=true"
    return None


def iterate_tensors(model: Any, architecture: str) -> Iterator[NamedTensor]:
    """Yields the tensors of the file; each is laid out when it is yielded. A tied head is left out.

    Raises UsageError for a weight that the architecture does not have.
    """
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for source, parameter in model.named_parameters():  # without duplicates: a tied head is the embedding
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UsageError(f"{architecture} of llama.cpp has no weight {source}; use format=hf")
        data, module = parameter.data, source.split(".")[-2]
        if architecture == "llama" and module in heads:
            data = interleave_halves(data, heads[module])
        yield NamedTensor(name, source, data)
    if (factors := compute_rope_factors(model)) is not None:
        yield NamedTensor("rope_freqs.weight", "rope_freqs", factors)


def interleave_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorders the rows of each head from (first half, second half) to neighbouring pairs.

    Args:
        weight: (heads * head_dim, hidden), or (heads * head_dim,) of a bias.
        num_heads: Number of heads.
    """
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def compute_rope_factors(model: Any) -> torch.Tensor | None:
    """Returns the divisors of the frequencies of RoPE, fp32 (head_dim / 2,); None if all are 1."""
    config = model.config
    if config.rope_parameters.get("rope_type", "default") == "default":
        return None
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    factors: torch.Tensor = config.rope_parameters["rope_theta"] ** -exponents
    return factors / model.model.rotary_emb.inv_freq.float()
