"""Question: how soon and how fast are rows read from a token store?

Writes stores of 10⁷ and 10⁹ tokens, reads random rows of 2048 tokens in one process with a warm page cache, and times
opening a store up to its first row. For comparison it reads the same rows from a Hugging Face data set of int32 rows,
the usual format. Prints a table and writes results/store_reading.json.

    python benchmarks/store_reading.py          (1 minute, 2.3 GB of disk)

Must hold: first row within 10 ms of opening at any size; ≥ 100,000 rows of 2048 tokens per CPU second; 2 bytes per
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
from pathlib import Path

import numpy as np

from krill.data.store import SHARD_TOKENS, Split, Store, build_manifest, write_manifest, write_shard
from krill.runs.record import read_versions

ROW = 2048
DOCUMENT = 500
READS = 50_000


def write_store(folder: Path, tokens: int) -> Store:
    """Writes a store of documents of equal length, in shards as the preparation writes them."""
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
    no_counts = {"documents": 0, "tokens": 0, "text_bytes": 0}
    counts = {key: sum(record[key] for record in records) for key in ("documents", "tokens")}
    splits = {
        "train": {**no_counts, **counts, "shards": records},
        "validation": {**no_counts, "shards": []},
    }
    roles = {"signature": "t", "vocab_size": 32_000, "bos_id": 0, "eos_id": 1, "pad_id": 2}
    write_manifest(folder, build_manifest(np.dtype("<u2"), ["x"], splits, signature="s", tokenizer=roles))
    return Store.open(folder)


def time_first_row(folder: Path) -> float:
    """Returns the milliseconds from opening a store to its first row, the median of 20."""
    milliseconds = []
    for number in range(20):
        began = time.perf_counter()
        train = Store.open(folder).train
        start = number * 997 % (train.tokens - ROW)
        np.array(train.read(start, start + ROW))
        milliseconds.append(1000 * (time.perf_counter() - began))
    return statistics.median(milliseconds)


def measure_rows_per_second(read: Callable[[int], np.ndarray], rows: int, reads: int) -> float:
    """Returns the random rows read per CPU second, the median of 5 rounds; the first round warms the cache."""
    indices = np.random.default_rng(1).integers(0, rows, reads).tolist()
    rates = []
    for _ in range(6):
        began = time.process_time()
        for index in indices:
            read(index)
        rates.append(reads / (time.process_time() - began))
    return statistics.median(rates[1:])


def main() -> None:
    result: dict[str, object] = {
        "question": "first row after opening, and random rows of 2048 tokens per CPU-second",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": read_versions("krill", "numpy", "datasets"),
    }
    with tempfile.TemporaryDirectory() as temporary:
        for tokens in (10**7, 10**9):
            store = write_store(Path(temporary) / str(tokens), tokens)
            train = store.train

            def read_row(row: int, train: Split = train) -> np.ndarray:
                return np.array(train.read(row * ROW, (row + 1) * ROW))

            size = sum(file.stat().st_size for file in store.folder.glob("*.tokens"))
            result[f"{tokens:.0e} tokens"] = {
                "first_row_ms": round(time_first_row(store.folder), 3),
                "rows_per_cpu_second": round(measure_rows_per_second(read_row, train.tokens // ROW, READS)),
                "bytes_per_token": round(size / train.tokens, 3),
            }
            print(f"{tokens:.0e} tokens", result[f"{tokens:.0e} tokens"])
        from datasets import Dataset

        small = Store.open(Path(temporary) / str(10**7)).train
        table = {"input_ids": small.read(0, small.tokens // ROW * ROW).astype(np.int32).reshape(-1, ROW)}
        rows = Dataset.from_dict(table).with_format("numpy")
        rate = measure_rows_per_second(lambda row: rows[row]["input_ids"], len(rows), READS // 20)
        result["Hugging Face data set"] = {"rows_per_cpu_second": round(rate)}
        print("Hugging Face data set", result["Hugging Face data set"])
    (Path(__file__).parent / "results" / "store_reading.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
