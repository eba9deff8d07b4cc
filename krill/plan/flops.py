"""The floating point operations of a run: dense layers, attention within documents, the head, Muon's steps.

As in `krill.models.cost`: 6 for each weight that a token is multiplied with (2 forward, 4 backward), and for each
token that it attends to 6 for each entry of key and of value (Kaplan et al. 2020; Chowdhery et al. 2022, "PaLM",
appendix B). Only matrix products are counted, as in torch's FlopCounterMode, and no recomputation of activations.
"""

from __future__ import annotations

from dataclasses import dataclass

from krill.config.schema import MuonConfig, OptimizerConfig
from krill.plan.architecture import Architecture, AttentionKind
from krill.plan.memory import list_muon_matrices


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of training on one token, forward and backward."""

    dense: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.dense + self.attention + self.head


def compute_token_flops(
    architecture: Architecture, sequence_len: int, attended: float | None = None
) -> TokenFlops:
    """Returns the FLOPs of one token.

    Args:
        architecture: The model.
        sequence_len: Tokens of a row.
        attended: The mean number of tokens that a token attends to, itself included; documents shorten it. None: one
            document fills a row.
    """
    dense = sum(kind.count * kind.entries * kind.share for kind in architecture.list_matrices())
    attention = sum(
        6
        * kind.layers
        * kind.heads
        * (kind.key_width + kind.value_width)
        * _get_span(kind, sequence_len, attended)
        for kind in architecture.attention
    )
    return TokenFlops(6.0 * dense, attention, 6.0 * architecture.head_entries)


def _get_span(kind: AttentionKind, sequence_len: int, attended: float | None) -> float:
    """Returns the mean number of tokens that a token attends to in these layers."""
    window = kind.window
    if attended is None:
        size = sequence_len if window is None else min(window, sequence_len)
        return (size * (size + 1) / 2 + (sequence_len - size) * size) / sequence_len
    return attended if window is None else min(attended, window)


def compute_update_flops(optimizer: OptimizerConfig, architecture: Architecture) -> float:
    """Returns the FLOPs of an optimizer step in matrix products: those of Muon's Newton–Schulz iterations.

    An iteration takes 4·m²·n + 2·m³ for a matrix whose smaller side is m (`krill.optim.distributed`).
    """
    if not isinstance(optimizer, MuonConfig):
        return 0.0
    total = 0
    for kind, count in list_muon_matrices(optimizer, architecture):
        for m, n in (sorted(matrix) for matrix in kind.matrices):
            total += count * (4 * m * m * n + 2 * m**3)
    return float(optimizer.ns_steps * total)
