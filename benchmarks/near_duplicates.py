"""Question: which copies does near-duplicate removal find, does it drop anything else, and at what speed?

Reads ko.parquet and en.parquet (columns id and text; a copy of document X with some share of its words edited has
the id dup:<kind>:X) from a folder. For each language and shingle: recall beside what theory gives for the Jaccard
similarities measured, the least similarity of any dropped document to the copy that is kept, and MB of UTF-8 text
per CPU second, keys and verification together. Then the same keys with shingles cut in Python, as reference, and
time and memory for two million short documents. Prints tables and writes results/near_duplicates.json.

    python benchmarks/near_duplicates.py FOLDER          (about 2 minutes)

Must hold: recall 1.00 for exact and ws, at least 0.98 for near01; least similarity at least 0.5; 5 MB/s.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
import pyarrow.parquet
import rensa

from krill.config.schema import MinHashConfig
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


def cpu_seconds(work: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """Least CPU seconds of some runs, all threads together, and the result."""
    best, result = float("inf"), None
    for _ in range(times):
        began = time.process_time()
        result = work()
        best = min(best, time.process_time() - began)
    return best, result


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def jaccard(one: str, other: str, near: MinHashConfig) -> float:
    """Similarity of two texts by their shingles, computed anew."""
    hashes, offsets = hash_shingles([one, other], near.unit, near.size)
    return compute_jaccard_similarity(sort_unique(hashes[: offsets[1]]), sort_unique(hashes[offsets[1] :]))


def measure(ids: list[str], texts: list[str], near: MinHashConfig) -> dict[str, Any]:
    """Speed, recall and precision of one setting on one language."""
    signing, keys = cpu_seconds(lambda: MinHashSigner(near).compute_keys(texts))
    bands = np.ascontiguousarray(keys.T)
    merging, copies = cpu_seconds(
        lambda: find_near_duplicates(
            len(texts), lambda band: bands[band], lambda some: [texts[index] for index in some], near
        )
    )
    dropped = np.flatnonzero(copies >= 0).tolist()
    size = megabytes(texts)
    return {
        "near": near.model_dump(),
        "megabytes": round(size, 1),
        "documents": len(texts),
        "dropped": len(dropped),
        "least_similarity": round(
            min(jaccard(texts[index], texts[copies[index]], near) for index in dropped), 3
        ),
        "mb_per_cpu_second": {
            "keys": round(size / signing, 1),
            "near_copies": round(size / merging, 1),
            "together": round(size / (signing + merging), 1),
        },
        "copies": recall(ids, texts, copies, near),
    }


def recall(
    ids: list[str], texts: list[str], copies: np.ndarray, near: MinHashConfig
) -> dict[str, dict[str, float]]:
    """Per kind: pairs with both sides present, their similarities, the share that is similar and no pair any more."""
    assert near.threshold is not None
    place = {name: index for index, name in enumerate(ids)}
    found: defaultdict[str, list[tuple[float, bool]]] = defaultdict(list)
    for name, index in place.items():
        kind, _, original = name.removeprefix("dup:").partition(":")
        if name.startswith("dup:") and original in place:
            pair = (index, place[original])
            dropped = bool((copies[list(pair)] >= 0).any())
            found[kind].append((jaccard(texts[pair[0]], texts[pair[1]], near), dropped))
    result = {}
    for kind in KINDS:
        alike, gone = (np.array(column) for column in zip(*found[kind], strict=True))
        theory = (1 - (1 - alike**near.rows) ** near.bands) * (alike >= near.threshold)
        result[kind] = {
            "pairs": len(alike),
            "jaccard_p10": round(float(np.percentile(alike, 10)), 3),
            "jaccard_median": round(float(np.median(alike)), 3),
            "jaccard_p90": round(float(np.percentile(alike, 90)), 3),
            "theory": round(float(theory.mean()), 3),
            "recall": round(float((gone & (alike >= near.threshold)).mean()), 3),
        }
    return result


def in_python(texts: list[str], near: MinHashConfig) -> Any:
    """Signatures the usual way: shingles cut as strings, hashed by rensa."""
    units = [text.split() if near.unit == "word" else "".join(text.split()) for text in texts]
    cut = [
        {
            " ".join(unit[start : start + near.size])
            if near.unit == "word"
            else unit[start : start + near.size]
            for start in range(max(1, len(unit) - near.size + 1))
        }
        for unit in units
    ]
    return rensa.RMinHash.digest_matrix_from_token_sets(cut, near.bands * near.rows, 1).to_rows()


def reference(texts: list[str], near: MinHashConfig) -> dict[str, float]:
    """MB per CPU second of the keys alone, ours and the usual way, on the same text."""
    size = megabytes(texts)
    ours, _ = cpu_seconds(lambda: MinHashSigner(near).compute_keys(texts))
    usual, _ = cpu_seconds(lambda: in_python(texts, near), times=1)
    return {
        "keys": round(size / ours, 1),
        "shingles_in_python": round(size / usual, 1),
        "ratio": round(usual / ours, 1),
    }


def scale(documents: int = 2_000_000, share: float = 0.05) -> dict[str, float]:
    """Many short documents, a share of them copies that share each key with a chance of one half."""
    near = SETTINGS[0]
    chosen = np.random.default_rng(0)
    original = np.arange(documents)
    copied = chosen.random(documents) < share
    original[copied] = chosen.integers(0, documents, int(copied.sum()))

    def band(index: int) -> np.ndarray:
        keys = original.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        lost = copied & (np.random.default_rng(index).random(documents) < 0.5)
        keys[lost] += np.flatnonzero(lost).astype(np.uint64)
        return keys

    band(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, copies = cpu_seconds(
        lambda: find_near_duplicates(
            documents, band, lambda some: [f"{original[index]:016d}" for index in some], near
        ),
        times=1,
    )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {
        "documents": documents,
        "copies": int(copied.sum()),
        "dropped": int((copies >= 0).sum()),
        "cpu_seconds": round(seconds, 1),
        "bytes_per_document": round(grown / documents, 1),
    }


def show(language: str, result: dict[str, Any]) -> None:
    near, speed = result["near"], result["mb_per_cpu_second"]
    print(f"\n{language}: {near['size']} {near['unit']}s, threshold {near['threshold']}: "
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
    scaled = scale()  # first: it reads the peak of this process's memory
    results: dict[str, dict[str, Any]] = {"ko": {}, "en": {}}
    sample: list[str] = []
    for (language, found), near in itertools.product(results.items(), SETTINGS):
        table = pyarrow.parquet.read_table(folder / f"{language}.parquet")
        ids, texts = table["id"].to_pylist(), [text.strip() for text in table["text"].to_pylist()]
        key = f"{near.unit}-{near.size} {near.threshold}"
        found[key] = measure(ids, texts, near)
        show(language, found[key])
        if near is SETTINGS[0]:
            sample += texts[::8]
    references = {near.unit: reference(sample, near) for near in (SETTINGS[0], SETTINGS[2])}
    print(f"\nkeys alone, {megabytes(sample):.1f} MB: {references}\n{scaled}")
    report = {
        "question": "which copies near-duplicate removal finds, what else it drops, and at what speed",
        "date": date.today().isoformat(),
        "command": "python benchmarks/near_duplicates.py FOLDER",
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "rensa": version("rensa")},
        "results": results,
        "keys_mb_per_cpu_second": references,
        "scale": scaled,
    }
    target = ROOT / "benchmarks" / "results" / "near_duplicates.json"
    target.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
