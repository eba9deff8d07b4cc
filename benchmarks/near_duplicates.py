"""Question: which copies does near-duplicate removal find, does it drop anything else, and at what speed?

Reads ko.parquet and en.parquet (columns id and text; a copy of document X with some share of its words edited has
the id dup:<kind>:X) from a folder. For each language and shingle setting: recall compared with the theoretical recall
for the measured Jaccard similarities, the lowest similarity of a dropped document to the copy that is kept, and MB of
UTF-8 text per CPU second, keys and verification together. Then the same keys with shingles cut in Python, as a
reference, and time and memory for two million short documents. Prints tables and writes results/near_duplicates.json.

    python benchmarks/near_duplicates.py FOLDER          (about 2 minutes)

Must hold: recall 1.00 for exact and ws, at least 0.98 for near01; lowest similarity at least 0.5; 5 MB/s.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
import pyarrow.parquet
import rensa

from krill.config.schema import MinHashConfig
from krill.runs.record import read_versions
from krill.tables import format_table
from krill.text.minhash import MinHashSigner, compute_jaccard_similarity, find_near_duplicates
from krill.text.shingles import hash_shingles, sort_unique

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    MinHashConfig(threshold=0.8, unit="character", size=10, bands=16, rows=8),
    MinHashConfig(threshold=0.7, unit="character", size=10, bands=16, rows=8),
    MinHashConfig(threshold=0.8, unit="word", size=5, bands=16, rows=8),
]
KINDS = ["exact", "ws", "near01", "near05", "near10", "near20", "near30"]


def measure_cpu_seconds(work: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """Returns the lowest CPU seconds of several runs, over all threads, and the result."""
    best, result = float("inf"), None
    for _ in range(times):
        began = time.process_time()
        result = work()
        best = min(best, time.process_time() - began)
    return best, result


def count_megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def compute_jaccard(one: str, other: str, config: MinHashConfig) -> float:
    """Computes the Jaccard similarity of two texts from their shingles."""
    hashes, offsets = hash_shingles([one, other], config.unit, config.size)
    return compute_jaccard_similarity(sort_unique(hashes[: offsets[1]]), sort_unique(hashes[offsets[1] :]))


def measure(ids: list[str], texts: list[str], config: MinHashConfig) -> dict[str, Any]:
    """Returns speed, recall and precision of one setting for one language."""
    signing, keys = measure_cpu_seconds(lambda: MinHashSigner(config).compute_keys(texts))
    bands = np.ascontiguousarray(keys.T)
    merging, copies = measure_cpu_seconds(
        lambda: find_near_duplicates(
            len(texts), lambda band: bands[band], lambda some: [texts[index] for index in some], config
        )
    )
    dropped = np.flatnonzero(copies >= 0).tolist()
    size = count_megabytes(texts)
    return {
        "near": config.model_dump(),
        "megabytes": round(size, 1),
        "documents": len(texts),
        "dropped": len(dropped),
        "least_similarity": round(
            min(compute_jaccard(texts[index], texts[copies[index]], config) for index in dropped), 3
        ),
        "mb_per_cpu_second": {
            "keys": round(size / signing, 1),
            "near_copies": round(size / merging, 1),
            "together": round(size / (signing + merging), 1),
        },
        "copies": measure_recall(ids, texts, copies, config),
    }


def measure_recall(
    ids: list[str], texts: list[str], copies: np.ndarray, config: MinHashConfig
) -> dict[str, dict[str, float]]:
    """Returns for each kind the number of complete pairs, their similarities, and theoretical and actual recall.

    Recall is the share of all pairs that are similar and of which one document was dropped.
    """
    assert config.threshold is not None
    indices = {name: index for index, name in enumerate(ids)}
    pairs: defaultdict[str, list[tuple[float, bool]]] = defaultdict(list)
    for name, index in indices.items():
        kind, _, original = name.removeprefix("dup:").partition(":")
        if name.startswith("dup:") and original in indices:
            pair = (index, indices[original])
            was_dropped = bool((copies[list(pair)] >= 0).any())
            pairs[kind].append((compute_jaccard(texts[pair[0]], texts[pair[1]], config), was_dropped))
    result = {}
    for kind in KINDS:
        similarity, is_dropped = (np.array(column) for column in zip(*pairs[kind], strict=True))
        theory = (1 - (1 - similarity**config.rows) ** config.bands) * (similarity >= config.threshold)
        result[kind] = {
            "pairs": len(similarity),
            "jaccard_p10": round(float(np.percentile(similarity, 10)), 3),
            "jaccard_median": round(float(np.median(similarity)), 3),
            "jaccard_p90": round(float(np.percentile(similarity, 90)), 3),
            "theory": round(float(theory.mean()), 3),
            "recall": round(float((is_dropped & (similarity >= config.threshold)).mean()), 3),
        }
    return result


def sign_in_python(texts: list[str], config: MinHashConfig) -> Any:
    """Computes signatures the usual way: shingles cut as Python strings, hashed by rensa."""
    units = [text.split() if config.unit == "word" else "".join(text.split()) for text in texts]
    cut = [
        {
            " ".join(unit[start : start + config.size])
            if config.unit == "word"
            else unit[start : start + config.size]
            for start in range(max(1, len(unit) - config.size + 1))
        }
        for unit in units
    ]
    return rensa.RMinHash.digest_matrix_from_token_sets(cut, config.bands * config.rows, 1).to_rows()


def measure_reference(texts: list[str], config: MinHashConfig) -> dict[str, float]:
    """Returns MB per CPU second of the keys alone, by krill and the usual way, on the same text."""
    size = count_megabytes(texts)
    krill, _ = measure_cpu_seconds(lambda: MinHashSigner(config).compute_keys(texts))
    python, _ = measure_cpu_seconds(lambda: sign_in_python(texts, config), times=1)
    return {
        "keys": round(size / krill, 1),
        "shingles_in_python": round(size / python, 1),
        "ratio": round(python / krill, 1),
    }


def measure_scale(documents: int = 2_000_000, share: float = 0.05) -> dict[str, float]:
    """Removes near duplicates from short documents, of which a share are copies that keep each key with p = 0.5."""
    config = SETTINGS[0]
    rng = np.random.default_rng(0)
    original = np.arange(documents)
    copied = rng.random(documents) < share
    original[copied] = rng.integers(0, documents, int(copied.sum()))

    def band(index: int) -> np.ndarray:
        keys = original.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        lost = copied & (np.random.default_rng(index).random(documents) < 0.5)
        keys[lost] += np.flatnonzero(lost).astype(np.uint64)
        return keys

    band(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, copies = measure_cpu_seconds(
        lambda: find_near_duplicates(
            documents, band, lambda some: [f"{original[index]:016d}" for index in some], config
        ),
        times=1,
    )
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {
        "documents": documents,
        "copies": int(copied.sum()),
        "dropped": int((copies >= 0).sum()),
        "cpu_seconds": round(seconds, 1),
        "bytes_per_document": round(growth / documents, 1),
    }


def print_table(language: str, result: dict[str, Any]) -> None:
    config, speed = result["near"], result["mb_per_cpu_second"]
    print(f"\n{language}: {config['size']} {config['unit']}s, threshold {config['threshold']}: "
          f"{result['dropped']:,} of {result['documents']:,} documents dropped, least similarity "
          f"{result['least_similarity']}; {speed['together']} MB/s (keys {speed['keys']})")  # fmt: skip
    rows = [
        (kind, str(row["pairs"]), *(f"{value:.3f}" for value in list(row.values())[1:]))
        for kind, row in result["copies"].items()
    ]
    header = ("copies", "pairs", "J p10", "median", "p90", "theory", "recall")
    print("\n".join(format_table(rows, header)))


def main() -> None:
    folder = Path(sys.argv[1])
    scaled = measure_scale()  # must run first: it reads the peak memory of this process
    results: dict[str, dict[str, Any]] = {"ko": {}, "en": {}}
    sample: list[str] = []
    for (language, settings), config in itertools.product(results.items(), SETTINGS):
        table = pyarrow.parquet.read_table(folder / f"{language}.parquet")
        ids, texts = table["id"].to_pylist(), [text.strip() for text in table["text"].to_pylist()]
        key = f"{config.unit}-{config.size} {config.threshold}"
        settings[key] = measure(ids, texts, config)
        print_table(language, settings[key])
        if config is SETTINGS[0]:
            sample += texts[::8]
    references = {config.unit: measure_reference(sample, config) for config in (SETTINGS[0], SETTINGS[2])}
    print(f"\nkeys alone, {count_megabytes(sample):.1f} MB: {references}\n{scaled}")
    report = {
        "question": "which copies near-duplicate removal finds, what else it drops, and at what speed",
        "date": date.today().isoformat(),
        "command": "python benchmarks/near_duplicates.py FOLDER",
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **read_versions("numpy", "rensa")},
        "results": results,
        "keys_mb_per_cpu_second": references,
        "scale": scaled,
    }
    target = ROOT / "benchmarks" / "results" / "near_duplicates.json"
    target.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
