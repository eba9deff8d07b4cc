"""The figures of `krill.inspection.store_stats` as text for a terminal or a pipe, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.inspection.figure import saved_figure
from krill.inspection.formatting import (
    EXCERPT_WIDTH,
    MAX_LISTED_SOURCES,
    format_decimal,
    format_integer,
    format_percent,
    format_table_lines,
    truncate_to_width,
)

BAR_WIDTH = 40
"""Columns of the longest bar."""


def format_store_report(figures: dict[str, Any]) -> str:
    """All figures, a block each."""
    blocks = [
        [*_format_header(figures)],
        [*_format_splits(figures["counts"])],
        [*_format_sources(figures["counts"])],
        [*_format_exclusions(figures["losses"])],
        [*_format_lengths(figures["lengths"])],
        [*_format_packing(figures["filling"])],
        [*_format_vocabulary(figures["vocabulary"])],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def plot_store(figures: dict[str, Any], path: Path) -> None:
    """Draw the lengths of documents and the share of each source to `path`, a PNG file."""
    with saved_figure(path) as (left, right):
        bins = figures["lengths"]["bins"]
        left.bar([_format_range(found) for found in bins], [found["documents"] for found in bins], width=0.9)
        left.tick_params(axis="x", rotation=45)
        left.set_xlabel("tokens of a document, training split")
        left.set_ylabel("documents")
        left.grid(axis="y", alpha=0.3)
        sources = _sort_by_tokens(figures["counts"]["sources"])
        right.barh(
            [truncate_to_width(name, 30) for name, _ in sources[:MAX_LISTED_SOURCES]],
            [100 * (found["share"] or 0) for _, found in sources[:MAX_LISTED_SOURCES]],
        )
        right.invert_yaxis()
        more = (
            f" ({MAX_LISTED_SOURCES} of {len(sources):,} sources)"
            if len(sources) > MAX_LISTED_SOURCES
            else ""
        )
        right.set_xlabel(f"share of tokens, %{more}")
        right.grid(axis="x", alpha=0.3)


# --- blocks ------------------------------------------------------------------------------------------------


def _format_header(figures: dict[str, Any]) -> Iterator[str]:
    tokenizer = figures["tokenizer"]
    yield f"folder      {figures['folder']}"
    yield f"signature   {figures['signature']}"
    yield (
        f"tokenizer   {tokenizer['vocab_size']:,} entries, bos {tokenizer['bos_id']}, eos {tokenizer['eos_id']}, "
        f"pad {tokenizer['pad_id']}; ids are {figures['dtype']}"
    )
    if figures["verified"]:
        yield "files       every hash is the manifest's"


def _format_splits(counts: dict[str, Any]) -> Iterator[str]:
    rows = [_format_counts(name, found) for name, found in counts["splits"].items()]
    yield from format_table_lines(
        ("split", *_COUNT_COLUMNS), [*rows, _format_counts("total", counts["total"])]
    )


def _format_sources(counts: dict[str, Any]) -> Iterator[str]:
    ranked = _sort_by_tokens(counts["sources"])
    rows = [
        _format_counts(truncate_to_width(name, EXCERPT_WIDTH), found)
        for name, found in ranked[:MAX_LISTED_SOURCES]
    ]
    yield from format_table_lines(("source", *_COUNT_COLUMNS), rows)
    if len(ranked) > MAX_LISTED_SOURCES:
        yield f"… {len(ranked) - MAX_LISTED_SOURCES:,} more sources; all of them: format=json"


def _format_exclusions(losses: dict[str, Any]) -> Iterator[str]:
    if losses["dropped"]:
        head = ("dropped", "documents", "bytes", "tokens", "for example")
        rows = [
            (
                rule,
                *(format_integer(found.get(key)) for key in ("documents", "bytes", "tokens")),
                _format_example(found),
            )
            for rule, found in losses["dropped"].items()
        ]
        yield from format_table_lines(head, rows, left=(0, 4))
    if losses["skipped"]:
        rows = [
            (
                reason,
                format_integer(found.get("records")),
                truncate_to_width(", ".join(found.get("places", [])), EXCERPT_WIDTH),
            )
            for reason, found in losses["skipped"].items()
        ]
        yield from format_table_lines(("skipped", "records", "first places"), rows, left=(0, 2))
    if (repeated := losses["repeated"] or {}).get("documents"):
        yield (
            f"repeated    {repeated['documents']:,} documents ({repeated.get('tokens', 0):,} tokens) "
            "are there again, for the weight of their source"
        )
    if losses["leaks"] is not None:
        yield from _format_contamination(losses["leaks"])


def _format_contamination(leaks: Any) -> Iterator[str]:
    """Validation tokens that also stand in the training text."""
    if not isinstance(leaks, dict) or "leaked_tokens" not in leaks:
        yield f"leaks       {json.dumps(leaks, ensure_ascii=False)}"
        return
    share = leaks["leaked_tokens"] / max(1, leaks.get("validation_tokens", 0))
    yield (
        f"leaks       {leaks['leaked_tokens']:,} of {leaks.get('validation_tokens', 0):,} validation tokens "
        f"({format_percent(share)}) and {leaks.get('leaked_documents', 0):,} of {leaks.get('documents', 0):,} documents "
        f"are in the training text too, by runs of {leaks.get('ngram', '?')} tokens"
    )


def _format_lengths(lengths: dict[str, Any]) -> Iterator[str]:
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
        (_format_range(found), format_integer(found["documents"]), format_percent(found["documents"] / documents),
         "█" * -(-BAR_WIDTH * found["documents"] // most))
        for found in lengths["bins"]
    ]  # fmt: skip
    yield from format_table_lines(("tokens", "documents", "share", ""), rows, left=(3,))


def _format_packing(filled: list[dict[str, Any]]) -> Iterator[str]:
    head = ("sequence_len", "packing", "rows", "padding", "documents cut", "share")
    rows = [
        (format_integer(found["sequence_len"]), found["packing"], format_integer(found["rows"]), format_percent(found["padding"]),
         format_integer(found["documents_cut"]), format_percent(found["documents_cut_share"]))
        for found in filled
    ]  # fmt: skip
    yield from format_table_lines(head, rows, left=(1,))


def _format_vocabulary(found: dict[str, Any]) -> Iterator[str]:
    which = "all" if found["counted"] == found["tokens"] else f"{found['counted']:,} of the"
    yield (
        f"vocabulary  {found['used']:,} of {found['size']:,} ids occur in {which} {found['tokens']:,} "
        f"training tokens, {found['never']:,} never{'; the most frequent:' if found['most_frequent'] else ''}"
    )
    rows = [
        (
            str(token["id"]),
            format_integer(token["count"]),
            format_percent(token["share"]),
            _quote_token(token["text"]),
        )
        for token in found["most_frequent"]
    ]
    if rows:
        yield from format_table_lines(("id", "count", "share", "text"), rows, left=(3,))


# --- cells -------------------------------------------------------------------------------------------------

_COUNT_COLUMNS = ("documents", "tokens", "share", "text bytes", "bytes/token")


def _format_counts(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    return (
        name, format_integer(found["documents"]), format_integer(found["tokens"]), format_percent(found["share"]),
        format_integer(found["text_bytes"]), format_decimal(found["bytes_per_token"]),
    )  # fmt: skip


def _sort_by_tokens(sources: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The sources with their counts, the largest first."""
    return sorted(sources.items(), key=lambda item: -item[1]["tokens"])


def _format_example(found: dict[str, Any]) -> str:
    """The first document that a rule dropped: its place and how it begins."""
    examples = found.get("examples") or [""]
    first = examples[0]
    words = f"{first.get('place', '')}: {first.get('text', '')}" if isinstance(first, dict) else str(first)
    return truncate_to_width(words, EXCERPT_WIDTH)


def _format_range(found: dict[str, int]) -> str:
    return f"{found['from']:,}" if found["from"] == found["to"] else f"{found['from']:,}–{found['to']:,}"


def _quote_token(words: str | None) -> str:
    return "" if words is None else f'"{words}"'
