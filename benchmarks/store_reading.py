"""Question: how soon and how fast are rows read from a token store?

Writes stores of 10⁷ and 10⁹ tokens, reads random rows of 2048 tokens from one process with the page cache warm, and
times opening a store anew to its first row. Beside it the same rows from a Hugging Face data set of rows of int32, as
the original keeps them. Prints a table and writes results/store_reading.json.

    python benchmarks/store_reading.py          (1 minute, 2.3 GB of disk)

Must hold: first row within 10 ms of opening at any size; ≥ 100,000 rows of 2048 tokens per CPU-second; 2 bytes a
token.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from krill.data.store import SHARD_TOKENS, Split, Store, build_manifest, write_manifest, write_shard

ROW = 2048
DOCUMENT = 500
READS = 50_000


def written(folder: Path, tokens: int) -> Store:
    """A store of documents of the same length, in shards as the preparation cuts them."""
    folder.mkdir()
    block = np.random.default_rng(0).integers(0, 32_000, DOCUMENT * 2000, dtype=np.uint16)
    records = []
    for number, first in enumerate(range(0, tokens, SHARD_TOKENS)):
        blocks = -(-min(SHARD_TOKENS, tokens - first) // len(block))
        documents = blocks * len(block) // DOCUMENT
        records.append(
            write_shard(
                folder, f"train-{number:05d}", np.dtype("<u2"), [block] * blocks,
                np.full(documents, DOCUMENT), np.zeros(documents),
            )
        )  # fmt: skip
    nothing = {"documents": 0, "tokens": 0, "text_bytes": 0}
    counts = {key: sum(record[key] for record in records) for key in ("documents", "tokens")}
    splits = {
        "train": {**nothing, **counts, "shards": records},
        "validation": {**nothing, "shards": []},
    }
    roles = {"signature": "t", "vocab_size": 32_000, "bos_id": 0, "eos_id": 1, "pad_id": 2}
    write_manifest(folder, build_manifest(np.dtype("<u2"), ["x"], splits, signature="s", tokenizer=roles))
    return Store.open(folder)


def first_row(folder: Path) -> float:
    """Milliseconds from opening a store to its first row, the median of 20."""
    taken = []
    for turn in range(20):
        began = time.perf_counter()
        train = Store.open(folder).train
        place = turn * 997 % (train.tokens - ROW)
        np.array(train.read(place, place + ROW))
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def rows_per_second(read: Callable[[int], np.ndarray], rows: int, reads: int) -> float:
    """Random rows per CPU-second, each touched, the median of 5 rounds; the first round warms the cache."""
    places = np.random.default_rng(1).integers(0, rows, reads).tolist()
    rates = []
    for _ in range(6):
        began = time.process_time()
        for place in places:
            read(place)
        rates.append(reads / (time.process_time() - began))
    return statistics.median(rates[1:])


def main() -> None:
    result: dict[str, object] = {
        "question": "first row after opening, and random rows of 2048 tokens per CPU-second",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("krill", "numpy", "datasets")},
    }
    with tempfile.TemporaryDirectory() as place:
        for tokens in (10**7, 10**9):
            store = written(Path(place) / str(tokens), tokens)
            train = store.train

            def row_of(row: int, train: Split = train) -> np.ndarray:
                return np.array(train.read(row * ROW, (row + 1) * ROW))

            size = sum(file.stat().st_size for file in store.folder.glob("*.tokens"))
            result[f"{tokens:.0e} tokens"] = {
                "first_row_ms": round(first_row(store.folder), 3),
                "rows_per_cpu_second": round(rows_per_second(row_of, train.tokens // ROW, READS)),
                "bytes_per_token": round(size / train.tokens, 3),
            }
            print(f"{tokens:.0e} tokens", result[f"{tokens:.0e} tokens"])
        from datasets import Dataset

        small = Store.open(Path(place) / str(10**7)).train
        table = {"input_ids": small.read(0, small.tokens // ROW * ROW).astype(np.int32).reshape(-1, ROW)}
        rows = Dataset.from_dict(table).with_format("numpy")
        rate = rows_per_second(lambda row: rows[row]["input_ids"], len(rows), READS // 20)
        result["Hugging Face data set"] = {"rows_per_cpu_second": round(rate)}
        print("Hugging Face data set", result["Hugging Face data set"])
    (Path(__file__).parent / "results" / "store_reading.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
