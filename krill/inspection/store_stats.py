"""Computes the statistics of a token store: counts, lengths of documents, packing, usage of the vocabulary.

Reads the manifest, the ends of documents and a bounded number of tokens. Every statistic is a JSON value. Lengths,
rows and tokens are those of the training split, including bos and eos.

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
"""Number of tokens that are counted at once."""

PackingMethod = Literal["wrapped", "best_fit"]


def compute_store_stats(
    store: Store, config: InspectConfig, renderer: TokenRenderer | None
) -> dict[str, Any]:
    """Returns the statistics of all functions below, for the settings of `config`.

    Without a `renderer` the texts of the most frequent tokens are null.
    """
    vocabulary = compute_vocabulary_usage(store.train, store.vocab_size, config.vocabulary_tokens, config.top)
    for token in vocabulary["most_frequent"]:
        token["text"] = renderer.render_token(token["id"]) if renderer else None
    return {
        "folder": str(store.folder),
        "signature": store.signature,
        "dtype": store.dtype.name,
        "tokenizer": store.manifest["tokenizer"],
        "verified": config.verify,
        "counts": compute_counts(store),
        "exclusions": collect_exclusions(store.manifest),
        "lengths": compute_length_stats(store.train),
        "packing": [
            compute_packing_stats(store.train, length, config.packing)
            for length in dict.fromkeys([config.sequence_len, *config.sequence_lens])
        ],
        "vocabulary": vocabulary,
    }


def compute_counts(store: Store) -> dict[str, Any]:
    """Returns documents, tokens, text_bytes, share and bytes_per_token, per split and per source over both splits.

    share: of all tokens. bytes_per_token: without bos and eos, which are not text.
    """
    splits = store.manifest["splits"]
    total = _sum_counts([splits[name] for name in SPLITS])
    sources = {
        source: _sum_counts([splits[name].get("by_source", {}).get(source, {}) for name in SPLITS])
        for source in store.sources
    }
    total_tokens = total["tokens"]
    return {
        "splits": {name: _add_ratios(_sum_counts([splits[name]]), total_tokens) for name in SPLITS},
        "total": _add_ratios(total, total_tokens),
        "sources": {source: _add_ratios(values, total_tokens) for source, values in sources.items()},
    }


def collect_exclusions(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns how the store differs from its sources: documents dropped, skipped and repeated, lost text, and leaks.

    dropped: rule → documents, bytes, tokens, examples. skipped: reason → records, places. A number alone in the
    manifest is a count. unknown: the unk tokens, if there are any, and their share of all tokens.
    """
    dropped = {rule: _to_counts(value, "documents") for rule, value in manifest.get("dropped", {}).items()}
    skipped = {reason: _to_counts(value, "records") for reason, value in manifest.get("skipped", {}).items()}
    others = {key: manifest.get(key) for key in ("repeated", "leaks")}
    if unknown := manifest.get("unknown_tokens"):
        others["unknown"] = {"tokens": unknown, "share": unknown / manifest["read"]["tokens"]}
    return {"dropped": dropped, "skipped": skipped, **others}


def compute_length_stats(split: Split) -> dict[str, Any]:
    """Returns mean, median, p95 and max tokens per document (null without documents), and bins 2ᵏ to 2ᵏ⁺¹ − 1."""
    tokens = np.diff(split.ends.astype(np.int64), prepend=0)
    if not len(tokens):
        return {"mean": None, "median": None, "p95": None, "max": None, "bins": []}
    # frexp gives the exact exponent; log2 would round.
    exponents = np.frexp(np.maximum(tokens, 1))[1] - 1
    documents = np.bincount(exponents)
    bin_tokens = np.bincount(exponents, weights=tokens).astype(np.int64)
    bins = [
        {"from": 2**k, "to": 2 ** (k + 1) - 1, "documents": int(documents[k]), "tokens": int(bin_tokens[k])}
        for k in range(int(exponents.min()), len(documents))
    ]
    median, p95 = np.percentile(tokens, (50, 95)).tolist()
    return {
        "mean": float(tokens.mean()), "median": median, "p95": p95, "max": int(tokens.max()), "bins": bins
    }  # fmt: skip


def compute_packing_stats(split: Split, sequence_len: int, packing: PackingMethod) -> dict[str, Any]:
    """Returns the number of rows, the share of padding, and the number and the share of documents that are cut."""
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


def compute_vocabulary_usage(
    split: Split, vocab_size: int, max_tokens: int | None, top: int
) -> dict[str, Any]:
    """Counts the occurrences of each id among at most `max_tokens` tokens, spread evenly over the split.

    counted: the number of counted tokens. used, never: the number of ids that do and do not occur. most_frequent: the
    `top` ids with their count and share. Raises KrillError for an id that is not in the vocabulary.
    """
    occurrences = np.zeros(vocab_size, np.int64)
    for start, stop in _iterate_blocks(split.tokens, max_tokens):
        tokens = split.read(start, stop)
        if (highest := int(tokens.max())) >= vocab_size:
            raise KrillError(
                f"{split.name}: token id {highest} among tokens [{start}, {stop}), but the vocabulary has "
                f"{vocab_size} entries: a file is corrupt; use verify=true to find it"
            )
        occurrences += np.bincount(tokens, minlength=vocab_size)
    counted = int(occurrences.sum())
    used = int(np.count_nonzero(occurrences))
    order = np.argsort(-occurrences, kind="stable")[: min(top, used)].tolist()
    return {
        "size": vocab_size,
        "counted": counted,
        "tokens": split.tokens,
        "used": used,
        "never": vocab_size - used,
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
    """Returns part / whole, or None if `whole` is 0."""
    return part / whole if whole else None


def _iterate_blocks(total: int, max_tokens: int | None) -> Iterator[tuple[int, int]]:
    """Yields the ranges (start, stop) to count; they do not overlap."""
    if max_tokens is None or max_tokens >= total:
        yield from (
            (start, min(start + TOKENS_PER_BLOCK, total)) for start in range(0, total, TOKENS_PER_BLOCK)
        )
        return
    size = min(TOKENS_PER_BLOCK, max_tokens)
    num_blocks = max_tokens // size
    for index in range(num_blocks):
        start = index * (total - size) // max(1, num_blocks - 1)
        yield start, start + size


def _sum_counts(parts: list[dict[str, Any]]) -> dict[str, int]:
    return {
        key: sum(part.get(key, 0) for part in parts) for key in ("documents", "tokens", "text_bytes")
    }  # fmt: skip


def _add_ratios(values: dict[str, int], total_tokens: int) -> dict[str, Any]:
    text_tokens = values["tokens"] - 2 * values["documents"]
    return {
        **values,
        "share": _divide_or_none(values["tokens"], total_tokens),
        "bytes_per_token": _divide_or_none(values["text_bytes"], text_tokens),
    }


def _to_counts(value: Any, key: str) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {key: value}
