"""Question: what does isolating the documents of a row cost per training run_step?

Forward, loss and backward of a Llama with 4 layers, hidden size 256, vocabulary 4096. The rows hold documents with
the lengths of the built-in text (the documentation inside CPython), packed best-fit; each step draws random rows, the
same for each variant:

    varlen      each document separately, krill's default
    plain       causal attention over the whole row; documents attend to each other
    sdpa        isolated by a mask of all pairs, which transformers builds from position ids

In each round varlen and plain run once, in alternating order and on new rows; a ratio is the median of the ratios
within rounds. sdpa runs in the first two rounds only, and its loss must equal that of varlen. CPU seconds of one
thread, or seconds on CUDA (bf16).
Prints a table and writes results/attention.json, or the file of --result.

    python benchmarks/attention.py          (3 minutes on one core)

Must hold: varlen takes no more time than plain, for each row length.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from krill.config.schema import TransformerConfig
from krill.data.packing import Rows, pack
from krill.models.build import build_model
from krill.runs.record import read_versions
from krill.sources import python_docs
from krill.training.batches import RowCollator

SHAPES = {1024: 4, 2048: 2, 8192: 1}
"""Rows per run_step for each row length in tokens."""
VARIANTS, ROUNDS, MASKED_ROUNDS = ("varlen", "plain", "sdpa"), 7, 2
VOCAB_SIZE = 4096
BYTES_PER_TOKEN = 3.5
"""About the compression of a tokenizer with 4096 entries on this text; only the lengths matter here."""


@dataclass(frozen=True)
class RandomDocuments:
    """A token stream of random ids with documents that end at `ends`."""

    ends: np.ndarray
    pad_id: int = 2

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.random.default_rng(start).integers(3, VOCAB_SIZE, stop - start)


def pack_rows(sequence_len: int) -> Rows:
    tokens = [2 + int(len(text.encode()) / BYTES_PER_TOKEN) for text in python_docs.read_python_docs()]
    return pack(RandomDocuments(np.cumsum(tokens).astype(np.uint64)), sequence_len, "best_fit")


def build_benchmark_model(sequence_len: int, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = TransformerConfig(
        name="measured", family="llama", hidden_size=256, intermediate_size=704, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=sequence_len,
        rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.02,
    )  # fmt: skip
    return build_model(config, VOCAB_SIZE, bos_id=0, eos_id=1, pad_id=2).to(device).train()


def run_step(model: Any, variant: str, inputs: dict[str, Any], device: torch.device) -> tuple[float, float]:
    """Runs one step; returns its seconds and its loss."""
    model.set_attn_implementation("sdpa" if variant == "plain" else variant)
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


def build_inputs(variant: str, batch: list[Any], device: torch.device) -> dict[str, Any]:
    inputs = RowCollator("varlen" if variant == "varlen" else "sdpa", device)(batch)
    if variant == "plain":
        del inputs["position_ids"]
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }


def measure(sequence_len: int, rounds: int, device: torch.device) -> dict[str, Any]:
    rows, model = pack_rows(sequence_len), build_benchmark_model(sequence_len, device)
    generator = np.random.default_rng(0)
    seconds = {variant: list[float]() for variant in VARIANTS}
    documents = []
    for number in range(-1, rounds):  # the first round warms up
        indices = generator.choice(len(rows), SHAPES[sequence_len], replace=False)
        batch = [rows.get_row(int(index)) for index in indices]
        losses = {}
        for variant in _get_order(number):
            inputs = build_inputs(variant, batch, device)
            elapsed, losses[variant] = run_step(model, variant, inputs, device)
            if number >= 0:
                seconds[variant].append(elapsed)
        if "sdpa" in losses:
            tolerance = 1e-5 if device.type == "cpu" else 1e-2
            assert abs(losses["varlen"] - losses["sdpa"]) <= tolerance * losses["sdpa"], losses
        documents.append(sum(len(row.lengths) for row in batch))
    ratios = {
        variant: [a / b for a, b in zip(values, seconds["plain"], strict=False)]
        for variant, values in seconds.items()
    }
    return {
        "rows": SHAPES[sequence_len],
        "documents": statistics.median(documents[1:]),
        "seconds": {variant: round(statistics.median(values), 3) for variant, values in seconds.items()},
        "of_plain": {variant: round(statistics.median(values), 3) for variant, values in ratios.items()},
        "varlen_of_plain_in_rounds": [round(ratio, 3) for ratio in ratios["varlen"]],
    }


def _get_order(number: int) -> list[str]:
    pair = ["varlen", "plain"] if number % 2 else ["plain", "varlen"]
    return [*pair, "sdpa"] if 0 <= number < MASKED_ROUNDS else pair


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    results = {}
    print(f"{'tokens':>6} {'rows':>5} {'documents':>9} " + " ".join(f"{variant:>15}" for variant in VARIANTS))
    for length in SHAPES:
        row = results[length] = measure(length, arguments.rounds, device)
        cells = " ".join(
            f"{row['seconds'][variant]:>7} s {row['of_plain'][variant]:>5}" for variant in VARIANTS
        )
        print(f"{length:>6} {row['rows']:>5} {row['documents']:>9} {cells}", flush=True)
    cuda = device.type == "cuda"
    result = {
        "question": "time of a training step with isolated documents (varlen) over one with plain causal attention",
        "date": date.today().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "processor": torch.cuda.get_device_name() if cuda else "cpu",
            "cores": os.cpu_count(),
            "threads": 1,
        },
        "versions": read_versions("krill", "torch", "transformers"),
        "rounds": arguments.rounds,
        "lengths": results,
        "holds": {str(length): row["of_plain"]["varlen"] <= 1.0 for length, row in results.items()},
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
