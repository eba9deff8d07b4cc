"""A model as its plan needs it: weights, attention and saved activations, by arithmetic on the configuration alone.

Llama, Qwen3 and GPT-2 need no torch. Every other model is built on the meta device (`krill.plan.meta_architecture`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from krill.config.layer_shapes import list_layer_matrices
from krill.config.schema import TransformerConfig

Role = Literal["embeddings", "head", "attention", "mlp", "other", "vectors"]
"""What a weight is for; `other`: matrices that are neither attention nor MLP, such as experts."""

FP32_BYTES, BF16_BYTES = 4, 2


@dataclass(frozen=True)
class WeightKind:
    """Weights of one name and shape; a fused matrix has the shape of the whole."""

    name: str
    """Full name of the module, with * for the index of the layer."""
    shape: tuple[int, ...]
    role: Role
    count: int = 1
    projections: tuple[tuple[int, int], ...] = ()
    """(out, in) of each matrix in a fused one, which Muon orthogonalizes separately; empty: it is one matrix."""
    share: float = 1.0
    """The fraction of it that one token is multiplied with: less than 1 for experts."""

    @property
    def entries(self) -> int:
        """The number of entries of one of them."""
        return math.prod(self.shape)

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of each matrix that Muon orthogonalizes in one of them."""
        if len(self.shape) != 2:
            return ()
        return self.projections or ((self.shape[0], self.shape[1]),)


@dataclass(frozen=True)
class AttentionKind:
    """The attention of `layers` layers."""

    layers: int
    heads: int
    key_width: int
    value_width: int
    window: int | None = None
    """Number of tokens that a token attends to, itself included; None: all before it."""


@dataclass(frozen=True)
class SavedBytes:
    """Bytes that a forward pass saves for the backward pass."""

    layer: int
    """In one layer."""
    outside: int
    """Outside of the layers, without the hidden states that the head reads."""
    layer_input: int
    """The input of a layer, which gradient checkpointing keeps."""
    weight_copies: int
    """Copies of the matrices of all layers in bf16, which autocast keeps until the backward pass."""


class Architecture(ABC):
    """A model. Widths are those of the residual stream, the MLP and the vocabulary."""

    family: str
    layers: int
    width: int
    mlp_width: int
    vocab_size: int
    weights: tuple[WeightKind, ...]
    attention: tuple[AttentionKind, ...]
    is_tied: bool
    """Whether the head is the embedding of the tokens."""
    has_unfused_mlp: bool = False
    """Whether the activation of the MLP is several operations, such as GPT-2's."""
    attention_dropout: float = 0.0
    """The probability of dropping an attention weight; the CPU then stores all weights of the attention."""

    @abstractmethod
    def compute_saved_bytes(self, rows: int, tokens: int, precision: str, device: str) -> SavedBytes:
        """Returns what a forward pass saves on `device` (cpu or cuda).

        Args:
            rows: Rows of a micro batch.
            tokens: Tokens of a row.
            precision: fp32 or bf16 (autocast with fp32 weights).
            device: cpu or cuda.
        """

    def count_parameters(self) -> dict[str, int]:
        """Returns the number of parameters by role and in total; a tied head counts as embeddings."""
        counts: dict[str, int] = {}
        for kind in self.weights:
            counts[kind.role] = counts.get(kind.role, 0) + kind.count * kind.entries
        return counts | {"total": sum(counts.values())}

    @property
    def parameters(self) -> int:
        """The number of parameters; tied ones count once."""
        return self.count_parameters()["total"]

    @property
    def head_entries(self) -> int:
        """The entries of the output head, which may be those of the embedding."""
        return self.vocab_size * self.width

    def list_matrices(self) -> list[WeightKind]:
        """Returns the hidden matrices: neither embeddings nor head nor vectors."""
        return [kind for kind in self.weights if kind.role in ("attention", "mlp", "other")]

    @property
    def layer_entries(self) -> int:
        """The entries of the weights of one layer, which FSDP2 gathers together."""
        inside = sum(kind.count * kind.entries for kind in self.weights if kind.count >= self.layers)
        return inside // self.layers


class _LayeredArchitecture(Architecture):
    """A model whose layers are equal; bytes per token and layer were derived from what autograd saves."""

    def __init__(self, vocab_size: int, layers: int, width: int, mlp_width: int, heads: int) -> None:
        self.vocab_size, self.layers, self.width, self.mlp_width = vocab_size, layers, width, mlp_width
        self.heads = heads

    @abstractmethod
    def _count_layer_bytes(self, precision: str, device: str) -> int:
        """Returns the bytes that a layer saves per token."""

    @abstractmethod
    def _count_outside_bytes(self, precision: str, device: str) -> int:
        """Returns the bytes per token that are saved outside of the layers."""

    def compute_saved_bytes(self, rows: int, tokens: int, precision: str, device: str) -> SavedBytes:
        count = rows * tokens
        matrices = sum(kind.count * kind.entries for kind in self.list_matrices())
        return SavedBytes(
            layer=count * self._count_layer_bytes(precision, device),
            outside=count * self._count_outside_bytes(precision, device),
            layer_input=FP32_BYTES * count * self.width,
            weight_copies=BF16_BYTES * matrices if precision == "bf16" else 0,
        )


class GatedArchitecture(_LayeredArchitecture):
    """Llama, and Qwen3, which normalizes queries and keys."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__(
            vocab_size, config.num_hidden_layers, config.hidden_size, config.intermediate_size,
            config.num_attention_heads,
        )  # fmt: skip
        self.family, self.is_tied = config.family, config.tie_word_embeddings
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        self.key_heads = config.num_key_value_heads
        self.weights = tuple(self._list_weights())
        self.attention = (AttentionKind(self.layers, self.heads, self.head_dim, self.head_dim),)

    @property
    def has_head_norms(self) -> bool:
        """Whether queries and keys are normalized."""
        return self.family == "qwen3"

    def _list_weights(self) -> Iterator[WeightKind]:
        width, layers = self.width, self.layers
        yield WeightKind("model.embed_tokens", (self.vocab_size, width), "embeddings")
        if not self.is_tied:
            yield WeightKind("lm_head", (self.vocab_size, width), "head")
        block = "model.layers.*"
        for matrix in list_layer_matrices(width, self.mlp_width, self.heads, self.key_heads, self.head_dim):
            yield WeightKind(f"{block}.{matrix.name}", (matrix.rows, matrix.columns), matrix.role, layers)
        if self.has_head_norms:
            for name in ("q_norm", "k_norm"):
                yield WeightKind(f"{block}.self_attn.{name}", (self.head_dim,), "vectors", layers)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield WeightKind(f"{block}.{name}", (width,), "vectors", layers)
        yield WeightKind("model.norm", (width,), "vectors")

    def _count_layer_bytes(self, precision: str, device: str) -> int:
        """Two norms save 3 residual widths each, attention its inputs and its output, the MLP 4 widths of its own."""
        queries, keys = self.heads * self.head_dim, self.key_heads * self.head_dim
        is_bf16 = precision == "bf16"
        size = BF16_BYTES if is_bf16 else FP32_BYTES
        count = (26 if is_bf16 else 24) * self.width + 4 * size * self.mlp_width + 2 * size * (queries + keys)
        count += 4 * self.heads + 8
        if self.has_head_norms:
            # the input, its normalized values, and a number per head
            count += (6 if is_bf16 else 8) * (queries + keys) + 4 * (self.heads + self.key_heads)
        if device == "cpu":
            count += size * queries  # the documents' outputs, concatenated
        return count

    def _count_outside_bytes(self, precision: str, device: str) -> int:
        """The last norm, and cosine and sine of the positions."""
        return 8 * self.width + 8 * self.head_dim + 4


class GPT2Architecture(_LayeredArchitecture):
    """GPT-2, as model=auto model.model_type=gpt2."""

    family, is_tied, has_unfused_mlp = "gpt2", True, True

    def __init__(self, keys: Mapping[str, Any], positions: int, vocab_size: int) -> None:
        """`keys`: those of GPT2Config, under either of their names."""
        width = int(keys["n_embd"])
        super().__init__(
            vocab_size, int(keys["n_layer"]), width, int(keys["n_inner"] or 4 * width), int(keys["n_head"])
        )
        self._dropout = {name: float(keys[name]) for name in ("embd_pdrop", "resid_pdrop")}
        self.attention_dropout = float(keys["attn_pdrop"])
        self.weights = tuple(self._list_weights(positions))
        self.attention = (AttentionKind(self.layers, self.heads, width // self.heads, width // self.heads),)

    def _list_weights(self, positions: int) -> Iterator[WeightKind]:
        width, inner, layers, block = self.width, self.mlp_width, self.layers, "transformer.h.*"
        yield WeightKind("transformer.wte", (self.vocab_size, width), "embeddings")
        yield WeightKind("transformer.wpe", (positions, width), "embeddings")
        for name, role, rows, columns, parts in (
            ("attn.c_attn", "attention", width, 3 * width, 3), ("attn.c_proj", "attention", width, width, 1),
            ("mlp.c_fc", "mlp", width, inner, 1), ("mlp.c_proj", "mlp", inner, width, 1),
        ):  # fmt: skip
            matrices = ((columns // parts, rows),) * parts
            yield WeightKind(f"{block}.{name}", (rows, columns), role, layers, matrices)  # type: ignore[arg-type]
            yield WeightKind(f"{block}.{name}.bias", (columns,), "vectors", layers)
        for name in ("ln_1", "ln_2"):
            yield WeightKind(f"{block}.{name}", (width,), "vectors", 2 * layers)
        yield WeightKind("transformer.ln_f", (width,), "vectors", 2)

    def _count_layer_bytes(self, precision: str, device: str) -> int:
        """Layer norms, attention, an MLP whose tanh is not fused, and the masks of dropout."""
        is_bf16 = precision == "bf16"
        size = BF16_BYTES if is_bf16 else FP32_BYTES
        count = (20 if is_bf16 else 32) * self.width + 5 * size * self.mlp_width + 4 * self.heads + 16
        if self._dropout["resid_pdrop"]:
            count += 2 * self.width * (1 if device == "cuda" else size)
        if device == "cpu":
            count += size * self.width  # the documents' outputs, concatenated
        return count

    def _count_outside_bytes(self, precision: str, device: str) -> int:
        """The input of the last norm, its statistics, and the mask of dropout."""
        mask = (1 if device == "cuda" else 4) if self._dropout["embd_pdrop"] else 0
        return (4 + mask) * self.width + 16


GPT2_DEFAULTS: dict[str, Any] = {
    "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
    "attn_pdrop": 0.1, "activation_function": "gelu_new", "tie_word_embeddings": True,
    "add_cross_attention": False,
}  # fmt: skip
"""The defaults of the keys of GPT2Config that a plan depends on."""

GPT2_NAMES = {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
"""transformers' shared names of these keys."""

GPT2_UNUSED_KEYS = {
    "initializer_range", "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
}  # fmt: skip
"""Keys that no figure of a plan depends on."""
