"""The figures of `krill.inspection.compare_tokenizers` as text for a terminal or a pipe, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.inspection.compare_tokenizers import RARE_THRESHOLD
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
from krill.inspection.token_display import escape_unprintable

LABEL_WIDTH = 40
"""Columns of a tokenizer's name; of a longer one the end is shown, where folders differ."""

SCRIPT_LABELS = {"ko": "ko (Hangul)", "en": "en (Latin)", "other": "other scripts"}


def format_tokenizer_report(figures: dict[str, Any]) -> str:
    """All figures, a block for each language and source where there are several."""
    found = figures["tokenizers"]
    blocks = [
        [*_format_tokenizers(found)],
        [*_format_compression("all text", [one["all"] for one in found], found)],
    ]
    for group, named in (("languages", SCRIPT_LABELS), ("sources", {})):
        sizes = {name: counts["bytes"] for name, counts in found[0][group].items()}
        ranked = sorted(sizes, key=lambda name: -sizes[name])
        if len(ranked) == 1:
            blocks[1][0] += (
                f"; all of it {named.get(ranked[0], f'source {truncate_to_width(ranked[0], EXCERPT_WIDTH)}')}"
            )
            continue
        for name in ranked[:MAX_LISTED_SOURCES]:
            title = named.get(name, f"source {truncate_to_width(name, EXCERPT_WIDTH)}")
            blocks.append([*_format_compression(title, [one[group][name] for one in found], found)])
        if len(ranked) > MAX_LISTED_SOURCES:
            blocks.append([f"… {len(ranked) - MAX_LISTED_SOURCES:,} more sources; all of them: format=json"])
    blocks.append([*_format_round_trip_failures(found)])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def plot_tokenizers(figures: dict[str, Any], path: Path) -> None:
    """Draw bytes per token of each language, and the use of the vocabularies, to `path`, a PNG file."""
    found = figures["tokenizers"]
    labels = [shorten_label(one) for one in found]
    languages = list(found[0]["languages"])
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "frameon": False}
    with saved_figure(path) as (left, right):
        width = 0.8 / len(found)
        for index, one in enumerate(found):
            left.bar(
                [place + (index + 0.5) * width - 0.4 for place in range(len(languages))],
                [one["languages"][language]["bytes_per_token"] or 0 for language in languages],
                width,
                label=labels[index],
            )
        left.set_xticks(range(len(languages)), [SCRIPT_LABELS[language] for language in languages])
        left.set_ylabel("bytes per token")
        left.legend(**above)
        left.grid(axis="y", alpha=0.3)
        begin = [0.0] * len(found)
        uses = {"often": f"used {RARE_THRESHOLD} times or more", "rare": "less often", "never": "never"}
        for use, name in uses.items():
            shares = [100 * _compute_usage_shares(one["vocabulary"])[use] for one in found]
            right.barh(range(len(found)), shares, left=begin, label=name)
            begin = [start + share for start, share in zip(begin, shares, strict=True)]
        right.set_yticks(range(len(found)), labels)
        right.invert_yaxis()
        right.set_xlabel(f"share of the vocabulary, %, in {figures['bytes']:,} bytes of text")
        right.legend(**above)


def shorten_label(one: dict[str, Any]) -> str:
    """A tokenizer's name, not too long."""
    name = escape_unprintable(one["label"])
    return name if len(name) <= LABEL_WIDTH else f"…{name[1 - LABEL_WIDTH :]}"


# --- blocks ------------------------------------------------------------------------------------------------


def _format_tokenizers(found: list[dict[str, Any]]) -> Iterator[str]:
    head = (
        "tokenizer", "entries", "never used", "share", f"under {RARE_THRESHOLD} times", "share", "MB/s", "gigatoken MB/s"
    )  # fmt: skip
    rows = []
    for one in found:
        vocabulary, speed, use = one["vocabulary"], one["speed"], _compute_usage_shares(one["vocabulary"])
        rows.append(
            (shorten_label(one), format_integer(one["vocab_size"]), format_integer(vocabulary["never"]), format_percent(use["never"]),
             format_integer(vocabulary["rare"]), format_percent(use["rare"]), _format_speed(speed["hf"]), _format_speed(speed["gigatoken"]))
        )  # fmt: skip
    yield from format_table_lines(head, rows)
    speed = found[0]["speed"]
    yield (
        f"MB/s of {speed['bytes'] / 1e6:,.1f} MB on this machine: Hugging Face on {speed['cores']} cores, "
        "gigatoken on one"
    )


def _format_compression(
    title: str, counts: list[dict[str, Any]], found: list[dict[str, Any]]
) -> Iterator[str]:
    first = counts[0]
    yield f"{title}: {first['documents']:,} documents, {first['bytes']:,} bytes, {first['words']:,} words"
    head = ("tokenizer", "tokens", "bytes/token", "tokens/word", "partial UTF-8", "round-trip failures")
    rows = [
        (shorten_label(one), format_integer(count["tokens"]), format_decimal(count["bytes_per_token"]),
         format_decimal(count["tokens_per_word"]), format_percent(count["undecodable"]), format_integer(count["round_trip_failures"]))
        for one, count in zip(found, counts, strict=True)
    ]  # fmt: skip
    yield from format_table_lines(head, rows)


def _format_round_trip_failures(found: list[dict[str, Any]]) -> Iterator[str]:
    """The first documents that each tokenizer does not give back."""
    rows = [
        (shorten_label(one), truncate_to_width(example["source"], EXCERPT_WIDTH), format_integer(example["character"]),
         truncate_to_width(example["text"], EXCERPT_WIDTH), truncate_to_width(example["decoded"], EXCERPT_WIDTH))
        for one in found
        for example in one["round_trip"]["examples"]
    ]  # fmt: skip
    if rows:
        yield from format_table_lines(
            ("round-trip failures", "source", "character", "text", "comes back as"), rows, (0, 1, 3, 4)
        )


def _compute_usage_shares(vocabulary: dict[str, int]) -> dict[str, float]:
    """Shares of the entries that are no special tokens: never used, rare, and often."""
    entries = max(1, vocabulary["entries"])
    never, rare = vocabulary["never"] / entries, vocabulary["rare"] / entries
    return {"never": never, "rare": rare, "often": 1 - never - rare}


def _format_speed(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.1f}"
