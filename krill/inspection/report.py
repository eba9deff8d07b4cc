"""The figures of `krill.inspection.figures` as text for a terminal or a pipe, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.inspection.cells import EXCERPT, SOURCES, cut, decimal, percent, table, whole
from krill.inspection.picture import picture

BAR = 40
"""Columns of the longest bar."""


def text(figures: dict[str, Any]) -> str:
    """All figures, a block each."""
    blocks = [
        [*_head(figures)],
        [*_splits(figures["counts"])],
        [*_sources(figures["counts"])],
        [*_losses(figures["losses"])],
        [*_lengths(figures["lengths"])],
        [*_filling(figures["filling"])],
        [*_vocabulary(figures["vocabulary"])],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw the lengths of documents and the share of each source to `path`, a PNG file."""
    with picture(path) as (left, right):
        bins = figures["lengths"]["bins"]
        left.bar([_range(found) for found in bins], [found["documents"] for found in bins], width=0.9)
        left.tick_params(axis="x", rotation=45)
        left.set_xlabel("tokens of a document, training split")
        left.set_ylabel("documents")
        left.grid(axis="y", alpha=0.3)
        sources = _ranked(figures["counts"]["sources"])
        right.barh(
            [cut(name, 30) for name, _ in sources[:SOURCES]],
            [100 * (found["share"] or 0) for _, found in sources[:SOURCES]],
        )
        right.invert_yaxis()
        more = f" ({SOURCES} of {len(sources):,} sources)" if len(sources) > SOURCES else ""
        right.set_xlabel(f"share of tokens, %{more}")
        right.grid(axis="x", alpha=0.3)


# --- blocks ------------------------------------------------------------------------------------------------


def _head(figures: dict[str, Any]) -> Iterator[str]:
    tokenizer = figures["tokenizer"]
    yield f"folder      {figures['folder']}"
    yield f"signature   {figures['signature']}"
    yield (
        f"tokenizer   {tokenizer['vocab_size']:,} entries, bos {tokenizer['bos_id']}, eos {tokenizer['eos_id']}, "
        f"pad {tokenizer['pad_id']}; ids are {figures['dtype']}"
    )
    if figures["verified"]:
        yield "files       every hash is the manifest's"


def _splits(counts: dict[str, Any]) -> Iterator[str]:
    rows = [_counts(name, found) for name, found in counts["splits"].items()]
    yield from table(("split", *_COUNTS), [*rows, _counts("total", counts["total"])])


def _sources(counts: dict[str, Any]) -> Iterator[str]:
    ranked = _ranked(counts["sources"])
    rows = [_counts(cut(name, EXCERPT), found) for name, found in ranked[:SOURCES]]
    yield from table(("source", *_COUNTS), rows)
    if len(ranked) > SOURCES:
        yield f"… {len(ranked) - SOURCES:,} more sources; all of them: format=json"


def _losses(losses: dict[str, Any]) -> Iterator[str]:
    if losses["dropped"]:
        head = ("dropped", "documents", "bytes", "tokens", "for example")
        rows = [
            (rule, *(whole(found.get(key)) for key in ("documents", "bytes", "tokens")), _example(found))
            for rule, found in losses["dropped"].items()
        ]
        yield from table(head, rows, left=(0, 4))
    if losses["skipped"]:
        rows = [
            (reason, whole(found.get("records")), cut(", ".join(found.get("places", [])), EXCERPT))
            for reason, found in losses["skipped"].items()
        ]
        yield from table(("skipped", "records", "first places"), rows, left=(0, 2))
    if (repeated := losses["repeated"] or {}).get("documents"):
        yield (
            f"repeated    {repeated['documents']:,} documents ({repeated.get('tokens', 0):,} tokens) "
            "are there again, for the weight of their source"
        )
    if losses["leaks"] is not None:
        yield from _leaks(losses["leaks"])


def _leaks(leaks: Any) -> Iterator[str]:
    """Validation tokens that also stand in the training text."""
    if not isinstance(leaks, dict) or "leaked_tokens" not in leaks:
        yield f"leaks       {json.dumps(leaks, ensure_ascii=False)}"
        return
    share = leaks["leaked_tokens"] / max(1, leaks.get("validation_tokens", 0))
    yield (
        f"leaks       {leaks['leaked_tokens']:,} of {leaks.get('validation_tokens', 0):,} validation tokens "
        f"({percent(share)}) and {leaks.get('leaked_documents', 0):,} of {leaks.get('documents', 0):,} documents "
        f"are in the training text too, by runs of {leaks.get('ngram', '?')} tokens"
    )


def _lengths(lengths: dict[str, Any]) -> Iterator[str]:
    if not lengths["bins"]:
        yield "lengths     no document to train on"
        return
    yield (
        f"lengths     of training documents in tokens: mean {lengths['mean']:,.1f}, "
        f"median {lengths['median']:,.0f}, p95 {lengths['p95']:,.0f}, max {lengths['max']:,}"
    )
    most = max(found["documents"] for found in lengths["bins"])
    documents = sum(found["documents"] for found in lengths["bins"])
    rows = [
        (_range(found), whole(found["documents"]), percent(found["documents"] / documents),
         "█" * -(-BAR * found["documents"] // most))
        for found in lengths["bins"]
    ]  # fmt: skip
    yield from table(("tokens", "documents", "share", ""), rows, left=(3,))


def _filling(filled: list[dict[str, Any]]) -> Iterator[str]:
    head = ("sequence_len", "packing", "rows", "padding", "documents cut", "share")
    rows = [
        (whole(found["sequence_len"]), found["packing"], whole(found["rows"]), percent(found["padding"]),
         whole(found["documents_cut"]), percent(found["documents_cut_share"]))
        for found in filled
    ]  # fmt: skip
    yield from table(head, rows, left=(1,))


def _vocabulary(found: dict[str, Any]) -> Iterator[str]:
    which = "all" if found["counted"] == found["tokens"] else f"{found['counted']:,} of the"
    yield (
        f"vocabulary  {found['used']:,} of {found['size']:,} ids occur in {which} {found['tokens']:,} "
        f"training tokens, {found['never']:,} never{'; the most frequent:' if found['most_frequent'] else ''}"
    )
    rows = [
        (str(token["id"]), whole(token["count"]), percent(token["share"]), _quoted(token["text"]))
        for token in found["most_frequent"]
    ]
    if rows:
        yield from table(("id", "count", "share", "text"), rows, left=(3,))


# --- cells -------------------------------------------------------------------------------------------------

_COUNTS = ("documents", "tokens", "share", "text bytes", "bytes/token")


def _counts(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    return (
        name, whole(found["documents"]), whole(found["tokens"]), percent(found["share"]),
        whole(found["text_bytes"]), decimal(found["bytes_per_token"]),
    )  # fmt: skip


def _ranked(sources: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The sources with their counts, the largest first."""
    return sorted(sources.items(), key=lambda item: -item[1]["tokens"])


def _example(found: dict[str, Any]) -> str:
    """The first document that a rule dropped: its place and how it begins."""
    examples = found.get("examples") or [""]
    first = examples[0]
    words = f"{first.get('place', '')}: {first.get('text', '')}" if isinstance(first, dict) else str(first)
    return cut(words, EXCERPT)


def _range(found: dict[str, int]) -> str:
    return f"{found['from']:,}" if found["from"] == found["to"] else f"{found['from']:,}–{found['to']:,}"


def _quoted(words: str | None) -> str:
    return "" if words is None else f'"{words}"'
