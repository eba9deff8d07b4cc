"""Question: what does a training step cost when documents are apart, and what when they see each other?

Forward, loss and backward of a Llama of 4 layers, hidden 256, vocabulary 4096. The rows hold documents as long as
those of the built-in text (the documentation inside CPython), packed best-fit; a step takes rows drawn from all, the
same for each way:

    varlen      each document by itself, krill's default
    plain       causal attention over the whole row; documents see each other
    sdpa        documents apart by a mask of all pairs, which transformers makes of position ids

In each round varlen and plain run once, in an order that turns, and each round has other rows; a ratio is the median
of the ratios within rounds. sdpa runs in the first two only, and its loss must be that of varlen. CPU seconds of one
thread, on CUDA seconds (bf16).
Prints a table and writes results/attention.json; with another --result, that file.

    python benchmarks/attention.py          (3 minutes on one core)

Must hold: varlen takes no more time than plain, at each length of a row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from krill.config.schema import TransformerConfig
from krill.data.packing import Rows, pack
from krill.models.build import build_model
from krill.sources import python_docs
from krill.training.batches import RowCollator

SHAPES = {1024: 4, 2048: 2, 8192: 1}
"""Tokens of a row: rows of a step."""
WAYS, ROUNDS, MASKED_ROUNDS = ("varlen", "plain", "sdpa"), 7, 2
VOCABULARY = 4096
BYTES_PER_TOKEN = 3.5
"""About what a tokenizer of 4096 entries makes of this text; only lengths matter here."""


@dataclass(frozen=True)
class Lengths:
    """Documents of random ids, as long as those of the built-in text."""

    ends: np.ndarray
    pad_id: int = 2

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.random.default_rng(start).integers(3, VOCABULARY, stop - start)


def rows_of(sequence_len: int) -> Rows:
    tokens = [2 + int(len(text.encode()) / BYTES_PER_TOKEN) for text in python_docs.read_python_docs()]
    return pack(Lengths(np.cumsum(tokens).astype(np.uint64)), sequence_len, "best_fit")


def model_for(sequence_len: int, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = TransformerConfig(
        name="measured", family="llama", hidden_size=256, intermediate_size=704, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=sequence_len,
        rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.02,
    )  # fmt: skip
    return build_model(config, VOCABULARY, bos_id=0, eos_id=1, pad_id=2).to(device).train()


def step(model: Any, way: str, inputs: dict[str, Any], device: torch.device) -> tuple[float, float]:
    """Seconds and loss of one step."""
    model.set_attn_implementation("sdpa" if way == "plain" else way)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    began = clock()
    with autocast:
        loss = model(**inputs).loss
    loss.backward()
    model.zero_grad()
    value = loss.item()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began, value


def inputs_of(way: str, batch: list[Any], device: torch.device) -> dict[str, Any]:
    inputs = RowCollator("varlen" if way == "varlen" else "sdpa", device)(batch)
    if way == "plain":
        del inputs["position_ids"]
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }


def measure(sequence_len: int, rounds: int, device: torch.device) -> dict[str, Any]:
    rows, model = rows_of(sequence_len), model_for(sequence_len, device)
    chance = np.random.default_rng(0)
    taken = {way: list[float]() for way in WAYS}
    documents = []
    for turn in range(-1, rounds):  # the first warms up
        drawn = chance.choice(len(rows), SHAPES[sequence_len], replace=False)
        batch = [rows.get_row(int(index)) for index in drawn]
        losses = {}
        for way in _order(turn):
            seconds, losses[way] = step(model, way, inputs_of(way, batch, device), device)
            if turn >= 0:
                taken[way].append(seconds)
        if "sdpa" in losses:
            close = 1e-5 if device.type == "cpu" else 1e-2
            assert abs(losses["varlen"] - losses["sdpa"]) <= close * losses["sdpa"], losses
        documents.append(sum(len(row.lengths) for row in batch))
    ratios = {
        way: [a / b for a, b in zip(values, taken["plain"], strict=False)] for way, values in taken.items()
    }
    return {
        "rows": SHAPES[sequence_len],
        "documents": statistics.median(documents[1:]),
        "seconds": {way: round(statistics.median(values), 3) for way, values in taken.items()},
        "of_plain": {way: round(statistics.median(values), 3) for way, values in ratios.items()},
        "varlen_of_plain_in_rounds": [round(ratio, 3) for ratio in ratios["varlen"]],
    }


def _order(turn: int) -> list[str]:
    pair = ["varlen", "plain"] if turn % 2 else ["plain", "varlen"]
    return [*pair, "sdpa"] if 0 <= turn < MASKED_ROUNDS else pair


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(asked.device)
    found = {}
    print(f"{'tokens':>6} {'rows':>5} {'documents':>9} " + " ".join(f"{way:>15}" for way in WAYS))
    for length in SHAPES:
        one = found[length] = measure(length, asked.rounds, device)
        cells = " ".join(f"{one['seconds'][way]:>7} s {one['of_plain'][way]:>5}" for way in WAYS)
        print(f"{length:>6} {one['rows']:>5} {one['documents']:>9} {cells}", flush=True)
    cuda = device.type == "cuda"
    result = {
        "question": "a training step with documents apart, by varlen, over one with plain causal attention",
        "date": date.today().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "processor": torch.cuda.get_device_name() if cuda else "cpu",
            "cores": os.cpu_count(),
            "threads": 1,
        },
        "versions": {name: version(name) for name in ("krill", "torch", "transformers")},
        "rounds": asked.rounds,
        "lengths": found,
        "holds": {str(length): one["of_plain"]["varlen"] <= 1.0 for length, one in found.items()},
    }
    asked.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
