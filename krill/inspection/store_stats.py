"""What is in a token store, in figures: counts, lengths of documents, how they fill rows, which tokens occur.

Reads the manifest, where documents end, and a bounded number of tokens. Every figure is a JSON value. Lengths,
rows and tokens are those of the training split, bos and eos included.

25 M tokens in 100,000 documents take 0.2 s and 11 MB beside the memory map (one core).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from krill.data.packing import pack
from krill.data.store import SPLITS, Split, Store
from krill.errors import KrillError

if TYPE_CHECKING:
    from krill.config.schema import InspectConfig
    from krill.inspection.token_display import TokenRenderer

TOKENS_PER_BLOCK = 2**20
"""Tokens that are counted at once."""

PackingMethod = Literal["wrapped", "best_fit"]


def compute_store_stats(store: Store, config: InspectConfig, speller: TokenRenderer | None) -> dict[str, Any]:
    """Every figure of the functions below, for what `config` asks.

    Without a `speller` the texts of the most frequent tokens are null.
    """
    found = compute_vocabulary_usage(store.train, store.vocab_size, config.vocabulary_tokens, config.top)
    for token in found["most_frequent"]:
        token["text"] = speller.render_token(token["id"]) if speller else None
    return {
        "folder": str(store.folder),
        "signature": store.signature,
        "dtype": store.dtype.name,
        "tokenizer": store.manifest["tokenizer"],
        "verified": config.verify,
        "counts": compute_counts(store),
        "losses": collect_exclusions(store.manifest),
        "lengths": compute_length_stats(store.train),
        "filling": [
            compute_packing_stats(store.train, length, config.packing)
            for length in dict.fromkeys([config.sequence_len, *config.sequence_lens])
        ],
        "vocabulary": found,
    }


def compute_counts(store: Store) -> dict[str, Any]:
    """Per split, and per source over both splits: documents, tokens, text_bytes, share, bytes_per_token.

    `share` is the share of all tokens; bytes_per_token leaves bos and eos out, which stand for no text.
    """
    splits = store.manifest["splits"]
    total = _sum_counts([splits[name] for name in SPLITS])
    sources = {
        source: _sum_counts([splits[name].get("by_source", {}).get(source, {}) for name in SPLITS])
        for source in store.sources
    }
    every = total["tokens"]
    return {
        "splits": {name: _add_ratios(_sum_counts([splits[name]]), every) for name in SPLITS},
        "total": _add_ratios(total, every),
        "sources": {source: _add_ratios(values, every) for source, values in sources.items()},
    }


def collect_exclusions(manifest: dict[str, Any]) -> dict[str, Any]:
    """What is not in the store as it was read: dropped per rule, skipped per reason, repeated, leaks if checked.

    Rule → documents, bytes, tokens, examples; reason → records, places. A bare number is a count.
    """
    dropped = {rule: _to_counts(found, "documents") for rule, found in manifest.get("dropped", {}).items()}
    skipped = {reason: _to_counts(found, "records") for reason, found in manifest.get("skipped", {}).items()}
    also = {key: manifest.get(key) for key in ("repeated", "leaks")}
    return {"dropped": dropped, "skipped": skipped, **also}


def compute_length_stats(split: Split) -> dict[str, Any]:
    """Tokens of documents: mean, median, p95, max (null without documents), and bins from 2ᵏ to 2ᵏ⁺¹ − 1."""
    tokens = np.diff(split.ends.astype(np.int64), prepend=0)
    if not len(tokens):
        return {"mean": None, "median": None, "p95": None, "max": None, "bins": []}
    # frexp gives the exponent exactly, which log2 in floating point does not.
    exponents = np.frexp(np.maximum(tokens, 1))[1] - 1
    documents = np.bincount(exponents)
    held = np.bincount(exponents, weights=tokens).astype(np.int64)
    bins = [
        {"from": 2**k, "to": 2 ** (k + 1) - 1, "documents": int(documents[k]), "tokens": int(held[k])}
        for k in range(int(exponents.min()), len(documents))
    ]
    median, p95 = np.percentile(tokens, (50, 95)).tolist()
    return {
        "mean": float(tokens.mean()), "median": median, "p95": p95, "max": int(tokens.max()), "bins": bins
    }  # fmt: skip


def compute_packing_stats(split: Split, sequence_len: int, packing: PackingMethod) -> dict[str, Any]:
    """How the documents fill rows: rows, the share of padding, the documents that are cut and their share."""
    rows = pack(split, sequence_len, packing)
    return {
        "sequence_len": sequence_len,
        "packing": packing,
        "rows": len(rows),
        "tokens": rows.tokens,
        "padding": rows.padding_fraction,
        "documents_cut": round(rows.cut_fraction * split.documents),
        "documents_cut_share": rows.cut_fraction,
    }


def compute_vocabulary_usage(split: Split, size: int, at_most: int | None, top: int) -> dict[str, Any]:
    """How often each of `size` ids occurs among at most `at_most` tokens, spread evenly over the split.

    counted: tokens that were looked at; used, never: ids that occur and that do not; most_frequent: the `top`
    ids with their count and share. Raises KrillError for an id that the vocabulary has not.
    """
    occurrences = np.zeros(size, np.int64)
    for start, stop in _iterate_blocks(split.tokens, at_most):
        tokens = split.read(start, stop)
        if (highest := int(tokens.max())) >= size:
            raise KrillError(
                f"{split.name}: token id {highest} among tokens [{start}, {stop}), but the vocabulary has {size} "
                "entries: the files are damaged; verify=true names the one"
            )
        occurrences += np.bincount(tokens, minlength=size)
    counted = int(occurrences.sum())
    used = int(np.count_nonzero(occurrences))
    order = np.argsort(-occurrences, kind="stable")[: min(top, used)].tolist()
    return {
        "size": size,
        "counted": counted,
        "tokens": split.tokens,
        "used": used,
        "never": size - used,
        "most_frequent": [
            {
                "id": token,
                "count": int(occurrences[token]),
                "share": _divide_or_none(int(occurrences[token]), counted),
            }
            for token in order
        ],
    }


def _divide_or_none(part: float, whole: float) -> float | None:
    """part / whole; None where there is no whole."""
    return part / whole if whole else None


def _iterate_blocks(total: int, at_most: int | None) -> Iterator[tuple[int, int]]:
    """(start, stop) of the stretches that are counted; they do not overlap."""
    if at_most is None or at_most >= total:
        yield from (
            (start, min(start + TOKENS_PER_BLOCK, total)) for start in range(0, total, TOKENS_PER_BLOCK)
        )
        return
    size = min(TOKENS_PER_BLOCK, at_most)
    number = at_most // size
    for index in range(number):
        start = index * (total - size) // max(1, number - 1)
        yield start, start + size


def _sum_counts(parts: list[dict[str, Any]]) -> dict[str, int]:
    return {
        key: sum(part.get(key, 0) for part in parts) for key in ("documents", "tokens", "text_bytes")
    }  # fmt: skip


def _add_ratios(values: dict[str, int], every: int) -> dict[str, Any]:
    text_tokens = values["tokens"] - 2 * values["documents"]
    return {
        **values,
        "share": _divide_or_none(values["tokens"], every),
        "bytes_per_token": _divide_or_none(values["text_bytes"], text_tokens),
    }


def _to_counts(found: Any, count: str) -> dict[str, Any]:
    return dict(found) if isinstance(found, dict) else {count: found}
