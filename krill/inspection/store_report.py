"""Formats the statistics of `krill.inspection.store_stats` as text, and plots them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.config.paths import relative_path
from krill.inspection.figure import saved_figure
from krill.inspection.formatting import (
    EXCERPT_WIDTH,
    MAX_LISTED_SOURCES,
    MIN_BARS,
    format_decimal,
    format_integer,
    format_percent,
    truncate_to_width,
)
from krill.tables import fit_table, wrap_text

BAR_WIDTH = 40
"""Length of the longest bar, in columns."""


def format_store_report(stats: dict[str, Any], width: int | None = None) -> str:
    """Formats all statistics, a block each; `width`: of the terminal, None: not a terminal."""
    blocks = [
        [*_format_header(stats)],
        [*_format_splits(stats["counts"], width)],
        [*_format_sources(stats["counts"], width)],
        [*_format_exclusions(stats["exclusions"], width)],
        [*_format_lengths(stats["lengths"], width)],
        [*_format_packing(stats["packing"], width)],
        [*_format_vocabulary(stats["vocabulary"], width)],
    ]
    return wrap_text("\n\n".join("\n".join(block) for block in blocks if block), width)


def plot_store(stats: dict[str, Any], path: Path) -> None:
    """Plots the lengths of documents and the share of each source to `path`, a PNG file."""
    with saved_figure(path) as (left, right):
        bins = stats["lengths"]["bins"]
        left.bar([_format_range(one) for one in bins], [one["documents"] for one in bins], width=0.9)
        left.tick_params(axis="x", rotation=45)
        left.set_xlabel("tokens of a document, training split")
        left.set_ylabel("documents")
        left.grid(axis="y", alpha=0.3)
        sources = _sort_by_tokens(stats["counts"]["sources"])
        right.barh(
            [truncate_to_width(name, 30) for name, _ in sources[:MAX_LISTED_SOURCES]],
            [100 * (counts["share"] or 0) for _, counts in sources[:MAX_LISTED_SOURCES]],
        )
        right.set_ylim(max(len(sources[:MAX_LISTED_SOURCES]), MIN_BARS) - 0.5, -0.5)
        note = (
            f" ({MAX_LISTED_SOURCES} of {len(sources):,} sources)"
            if len(sources) > MAX_LISTED_SOURCES
            else ""
        )
        right.set_xlabel(f"share of tokens, %{note}")
        right.grid(axis="x", alpha=0.3)


# --- blocks ------------------------------------------------------------------------------------------------


def _format_header(stats: dict[str, Any]) -> Iterator[str]:
    tokenizer = stats["tokenizer"]
    yield f"folder      {relative_path(Path(stats['folder']))}"
    yield f"signature   {stats['signature']}"
    yield (
        f"tokenizer   {tokenizer['vocab_size']:,} entries, bos {tokenizer['bos_id']}, eos {tokenizer['eos_id']}, "
        f"pad {tokenizer['pad_id']}; ids are {stats['dtype']}"
    )
    if stats["verified"]:
        yield "files       every hash matches the manifest"


def _format_splits(counts: dict[str, Any], width: int | None) -> Iterator[str]:
    rows = [_format_counts(name, split) for name, split in counts["splits"].items()]
    rows.append(_format_counts("total", counts["total"]))
    yield from fit_table(("split", *_COUNT_COLUMNS), rows, width, drop=_DROPPED_FIRST)


def _format_sources(counts: dict[str, Any], width: int | None) -> Iterator[str]:
    ranked = _sort_by_tokens(counts["sources"])
    rows = [
        _format_counts(truncate_to_width(name, EXCERPT_WIDTH), source)
        for name, source in ranked[:MAX_LISTED_SOURCES]
    ]
    yield from fit_table(("source", *_COUNT_COLUMNS), rows, width, fold=(0,), drop=_DROPPED_FIRST)
    if len(ranked) > MAX_LISTED_SOURCES:
        yield f"… {len(ranked) - MAX_LISTED_SOURCES:,} more sources; use format=json for all"


def _format_exclusions(exclusions: dict[str, Any], width: int | None) -> Iterator[str]:
    if exclusions["dropped"]:
        header = ("dropped", "documents", "bytes", "tokens", "example")
        rows = [
            (
                rule,
                *(format_integer(counts.get(key)) for key in ("documents", "bytes", "tokens")),
                _format_example(counts),
            )
            for rule, counts in exclusions["dropped"].items()
        ]
        yield from fit_table(header, rows, width, left=(0, 4), fold=(4,), drop=(2, 3))
    if exclusions["skipped"]:
        rows = [
            (
                reason,
                format_integer(counts.get("records")),
                truncate_to_width(", ".join(counts.get("places", [])), EXCERPT_WIDTH),
            )
            for reason, counts in exclusions["skipped"].items()
        ]
        yield from fit_table(("skipped", "records", "first locations"), rows, width, left=(0, 2), fold=(0, 2))
    if (repeated := exclusions["repeated"] or {}).get("documents"):
        yield (
            f"repeated    {repeated['documents']:,} documents ({repeated.get('tokens', 0):,} tokens) "
            "are repetitions, by the weight of their source"
        )
    if unknown := exclusions.get("unknown"):
        yield (
            f"unknown     {unknown['tokens']:,} tokens ({format_percent(unknown['share'])}) are the unk token: "
            "text that the tokenizer cannot represent"
        )
    if exclusions["leaks"] is not None:
        yield from _format_contamination(exclusions["leaks"])


def _format_contamination(leaks: Any) -> Iterator[str]:
    """Formats how many validation tokens are also in the training text."""
    if not isinstance(leaks, dict) or "leaked_tokens" not in leaks:
        yield f"leaks       {json.dumps(leaks, ensure_ascii=False)}"
        return
    share = leaks["leaked_tokens"] / max(1, leaks.get("validation_tokens", 0))
    yield (
        f"leaks       {leaks['leaked_tokens']:,} of {leaks.get('validation_tokens', 0):,} validation tokens "
        f"({format_percent(share)}) and {leaks.get('leaked_documents', 0):,} of {leaks.get('documents', 0):,} "
        f"documents are also in the training text ({leaks.get('ngram', '?')}-grams)"
    )


def _format_lengths(lengths: dict[str, Any], width: int | None) -> Iterator[str]:
    if not lengths["bins"]:
        yield "lengths     no documents to train on"
        return
    yield (
        f"lengths     tokens per training document: mean {lengths['mean']:,.1f}, "
        f"median {lengths['median']:,.0f}, p95 {lengths['p95']:,.0f}, max {lengths['max']:,}"
    )
    counts = [one["documents"] for one in lengths["bins"]]
    rows = [
        (_format_range(one), format_integer(count), format_percent(count / sum(counts)),
         "█" * -(-BAR_WIDTH * count // max(counts)))
        for one, count in zip(lengths["bins"], counts, strict=True)
    ]  # fmt: skip
    yield from fit_table(("tokens", "documents", "share", ""), rows, width, left=(3,), drop=(3,))


def _format_packing(stats: list[dict[str, Any]], width: int | None) -> Iterator[str]:
    header = ("sequence_len", "packing", "rows", "padding", "documents cut", "share")
    rows = [
        (
            format_integer(one["sequence_len"]), one["packing"], format_integer(one["rows"]),
            format_percent(one["padding"]), format_integer(one["documents_cut"]),
            format_percent(one["documents_cut_share"]),
        )
        for one in stats
    ]  # fmt: skip
    yield from fit_table(header, rows, width, left=(1,), drop=(4, 3))


def _format_vocabulary(usage: dict[str, Any], width: int | None) -> Iterator[str]:
    counted = "all" if usage["counted"] == usage["tokens"] else f"{usage['counted']:,} of the"
    yield (
        f"vocabulary  {usage['used']:,} of {usage['size']:,} ids occur in {counted} {usage['tokens']:,} "
        f"training tokens, {usage['never']:,} never{'; the most frequent:' if usage['most_frequent'] else ''}"
    )
    rows = [
        (
            str(token["id"]),
            format_integer(token["count"]),
            format_percent(token["share"]),
            _quote_token(token["text"]),
        )
        for token in usage["most_frequent"]
    ]
    if rows:
        yield from fit_table(("id", "count", "share", "text"), rows, width, left=(3,), fold=(3,))


# --- cells -------------------------------------------------------------------------------------------------

_COUNT_COLUMNS = ("documents", "tokens", "share", "text bytes", "bytes/token")

_DROPPED_FIRST = (4, 5, 1)
"""Columns after the name that a narrow terminal does not show: text bytes, bytes/token, documents."""


def _format_counts(name: str, counts: dict[str, Any]) -> tuple[str, ...]:
    return (
        name, format_integer(counts["documents"]), format_integer(counts["tokens"]), format_percent(counts["share"]),
        format_integer(counts["text_bytes"]), format_decimal(counts["bytes_per_token"]),
    )  # fmt: skip


def _sort_by_tokens(sources: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the sources with their counts, the largest first."""
    return sorted(sources.items(), key=lambda item: -item[1]["tokens"])


def _format_example(counts: dict[str, Any]) -> str:
    """Formats the first document that a rule dropped: its location and its beginning."""
    examples = counts.get("examples") or [""]
    first = examples[0]
    text = f"{first.get('place', '')}: {first.get('text', '')}" if isinstance(first, dict) else str(first)
    return truncate_to_width(text, EXCERPT_WIDTH)


def _format_range(bounds: dict[str, int]) -> str:
    first, last = bounds["from"], bounds["to"]
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def _quote_token(text: str | None) -> str:
    return "" if text is None else f'"{text}"'
