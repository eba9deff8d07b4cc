"""A model of any architecture as its plan needs it, read from the model on the meta device: nothing is allocated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn

from krill.config.schema import ModelConfig
from krill.errors import UsageError
from krill.models.attention_probe import probe_attention
from krill.models.build import build_meta_model
from krill.models.cost import get_expert_share, measure_saved_bytes
from krill.optim.fused_layouts import infer_layout
from krill.plan.architecture import (
    BF16_BYTES,
    FP32_BYTES,
    Architecture,
    AttentionKind,
    Role,
    SavedBytes,
    WeightKind,
)

ATTENTION_NAME = re.compile(r"attn|attention|[qkvo]_proj|qkv|query|key|value", re.IGNORECASE)
MLP_NAME = re.compile(r"mlp|ffn|feed_forward|fc|gate|up_proj|down_proj|dense_h|dense_4h", re.IGNORECASE)


class MetaArchitecture(Architecture):
    """A model that transformers, or a custom function, builds."""

    has_unfused_mlp = True  # it may be

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        model = build_meta_model(config, vocab_size)
        self._model, text_config = model, model.config.get_text_config()
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        self.family = str(model.config.model_type)
        self.layers = int(getattr(text_config, "num_hidden_layers", 1))
        self.vocab_size, self.width = embedding.shape[0], embedding.shape[1]
        self.is_tied = head is not None and head.weight is embedding
        self.weights = tuple(self._list_weights())
        self.mlp_width = max(
            (max(kind.shape) for kind in self.weights if kind.role == "mlp"), default=4 * self.width
        )
        calls = Counter(
            (call.heads, call.key_width, call.value_width, call.window)
            for call in probe_attention(model).calls
        )
        self.attention = tuple(AttentionKind(layers, *kind) for kind, layers in calls.items())

    def _list_weights(self) -> Iterator[WeightKind]:
        """Yields the weights by name, without the index of their layer."""
        counts: Counter[WeightKind] = Counter()
        seen: set[int] = set()
        embeddings = {
            id(module.weight) for module in self._model.modules() if isinstance(module, nn.Embedding)
        }
        head = self._model.get_output_embeddings()
        for path, module in self._model.named_modules():
            for name, weight in module.named_parameters(prefix=path, recurse=False):
                if id(weight) in seen:
                    continue
                seen.add(id(weight))
                role: Role = _find_role(name, weight)
                if id(weight) in embeddings:
                    role = "embeddings"
                elif head is not None and weight is head.weight:
                    role = "head"
                is_matrix = weight.ndim == 2 and role not in ("embeddings", "head")
                projections = _list_projections(name, module, weight, self._model.config) if is_matrix else ()
                kind = WeightKind(
                    re.sub(r"\.\d+\.", ".*.", name.removesuffix(".weight")),
                    tuple(weight.shape),
                    role,
                    projections=projections,
                    share=get_expert_share(self._model, weight),
                )
                counts[kind] += 1
        for kind, count in counts.items():
            yield WeightKind(kind.name, kind.shape, kind.role, count, kind.projections, kind.share)

    def compute_saved_bytes(self, rows: int, tokens: int, precision: str, device: str) -> SavedBytes:
        saved = _compute_saved_bytes(self, rows, tokens, precision)
        if device == "cpu" and self.attention:  # the documents' outputs, concatenated
            first = self.attention[0]
            size = BF16_BYTES if precision == "bf16" else FP32_BYTES
            saved = replace(saved, layer=saved.layer + rows * tokens * size * first.heads * first.value_width)
        return saved


@lru_cache(maxsize=64)
def _compute_saved_bytes(
    architecture: MetaArchitecture, rows: int, tokens: int, precision: str
) -> SavedBytes:
    """Measures what autograd saves; the part outside of the layers is that of the head's input and the embedding."""
    count = rows * tokens
    total = measure_saved_bytes(architecture._model, rows, tokens, precision)
    matrices = architecture.list_matrices()
    has_copies = precision == "bf16" and all(len(kind.shape) == 2 for kind in matrices)  # not for experts
    copies = BF16_BYTES * sum(kind.count * kind.entries for kind in matrices) if has_copies else 0
    head = BF16_BYTES * architecture.head_entries if has_copies else 0
    outside = 8 * count * architecture.width
    hidden = (BF16_BYTES if precision == "bf16" else FP32_BYTES) * count * architecture.width
    return SavedBytes(
        layer=max(0, total - copies - head - outside - hidden) // architecture.layers,
        outside=outside,
        layer_input=FP32_BYTES * count * architecture.width,
        weight_copies=copies,
    )


def _find_role(name: str, weight: Any) -> Role:
    if weight.ndim < 2:
        return "vectors"
    if weight.ndim > 2:
        return "other"
    if MLP_NAME.search(name):
        return "mlp"
    return "attention" if ATTENTION_NAME.search(name) else "other"


def _list_projections(name: str, module: Any, weight: Any, config: Any) -> tuple[tuple[int, int], ...]:
    """Returns the matrices in a fused weight; none for an unknown layout, which Muon refuses when the run starts."""
    try:
        layout = infer_layout(
            name.removesuffix(".weight"), module, (weight.shape[0], weight.shape[1]), config
        )
    except UsageError:
        return ()
    return tuple(layout.shapes(*weight.shape))
