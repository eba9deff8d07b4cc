"""Documents packed into rows as krill passes them to a model, and their difference from each document alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from krill.config.schema import TransformerConfig
from krill.data.packing import Row, Rows
from krill.models.build import build_model
from krill.training.batches import RowCollator
from krill.training.compute.attention import get_attn_implementation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTHS = [30, 20, 14, 40, 9, 10, 25, 37, 12, 7, 3, 50]
WIDTH = 64
LAYERS = 2


def build_tiny_model(family: Any, backend: str) -> Any:
    """Builds two layers with weights so large that attention across documents changes all logits."""
    torch.manual_seed(1)
    config = TransformerConfig(
        name="tiny", family=family, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=WIDTH,
        rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.25,
    )  # fmt: skip
    return build_model(config, 50, bos_id=0, eos_id=1, pad_id=2, attention=get_attn_implementation(backend))


def iter_documents(batch: list[Row]) -> Iterator[tuple[int, slice, Tensor]]:
    """Yields (row, position, ids) of each document in a batch, without padding."""
    for number, row in enumerate(batch):
        start = 0
        for length in row.lengths.tolist():
            position = slice(start, start + length)
            start += length
            if row.input_ids[position][0] != 2:
                yield number, position, torch.from_numpy(row.input_ids[position])


def build_packed_batch(
    make_rows: Callable[..., Rows], batch_size: int, backend: str, device: torch.device = CPU
) -> tuple[list[Row], dict[str, Any]]:
    """Returns the rows with the most documents, and the model's inputs with document boundaries for `device`."""
    rows = make_rows(LENGTHS, WIDTH)
    batch = sorted(map(rows.get_row, range(len(rows))), key=lambda row: -len(row.lengths))[:batch_size]
    assert len(batch[0].lengths) >= 3, "no row has several documents"
    return batch, RowCollator(backend, device)(batch)


def compute_largest_difference(
    model: Any, batch: list[Row], logits: Tensor, skip_first: bool = False
) -> float:
    """Returns the largest difference between `logits` and those of each document alone, with causal SDPA."""
    model.set_attn_implementation("sdpa")
    differences = [
        (logits[row, position] - model(input_ids=ids.to(logits.device)[None]).logits[0]).abs().max().item()
        for row, position, ids in iter_documents(batch)
        if not (skip_first and position.start == 0)
    ]
    return max(differences)
