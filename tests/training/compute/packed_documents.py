"""Documents packed into rows, as krill hands them to a model, and how far each is from itself alone."""

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


def model(family: Any, backend: str) -> Any:
    """Two layers with weights so large that a leak changes everything."""
    torch.manual_seed(1)
    config = TransformerConfig(
        name="tiny", family=family, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=WIDTH,
        rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.25,
    )  # fmt: skip
    return build_model(config, 50, bos_id=0, eos_id=1, pad_id=2, attention=get_attn_implementation(backend))


def documents(batch: list[Row]) -> Iterator[tuple[int, slice, Tensor]]:
    """(row, place, ids) of every document in a batch, padding left out."""
    for number, row in enumerate(batch):
        start = 0
        for length in row.lengths.tolist():
            place = slice(start, start + length)
            start += length
            if row.input_ids[place][0] != 2:
                yield number, place, torch.from_numpy(row.input_ids[place])


def packed(
    rows: Callable[..., Rows], micro: int, backend: str, device: torch.device = CPU
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of most documents of a packed text, as krill hands them to the model; boundaries for `device`."""
    made = rows(LENGTHS, WIDTH)
    batch = sorted(map(made.get_row, range(len(made))), key=lambda row: -len(row.lengths))[:micro]
    assert len(batch[0].lengths) >= 3, "no row here holds several documents"
    return batch, RowCollator(backend, device)(batch)


def largest_difference(net: Any, batch: list[Row], logits: Tensor, skip_first: bool = False) -> float:
    """Between the logits in rows and those of each document alone, by plain causal attention."""
    net.set_attn_implementation("sdpa")
    differences = [
        (logits[row, place] - net(input_ids=ids.to(logits.device)[None]).logits[0]).abs().max().item()
        for row, place, ids in documents(batch)
        if not (skip_first and place.start == 0)
    ]
    return max(differences)
