"""Formats the metrics of `krill.inspection.compare_tokenizers` as text, and plots them."""

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
    truncate_to_width,
)
from krill.inspection.token_display import escape_unprintable
from krill.tables import fit_table, wrap_text

LABEL_WIDTH = 40
"""Maximum length of a label; a longer one is truncated at the start, as folders differ at the end."""

SCRIPT_LABELS = {"ko": "ko (Hangul)", "en": "en (Latin)", "other": "other scripts"}


def format_tokenizer_report(metrics: dict[str, Any], width: int | None = None) -> str:
    """Formats all metrics, with a block for each language and source if there are several.

    `width`: of the terminal; None: not a terminal.
    """
    tokenizers = metrics["tokenizers"]
    blocks = [
        [*_format_tokenizers(tokenizers, width)],
        [*_format_compression("all text", [tokenizer["all"] for tokenizer in tokenizers], tokenizers, width)],
    ]
    for group, titles in (("languages", SCRIPT_LABELS), ("sources", {})):
        sizes = {name: counts["bytes"] for name, counts in tokenizers[0][group].items()}
        ranked = sorted(sizes, key=lambda name: -sizes[name])
        if len(ranked) == 1:
            title = titles.get(ranked[0], f"source {truncate_to_width(ranked[0], EXCERPT_WIDTH)}")
            blocks[1][0] += f"; all of it {title}"
            continue
        for name in ranked[:MAX_LISTED_SOURCES]:
            title = titles.get(name, f"source {truncate_to_width(name, EXCERPT_WIDTH)}")
            counts = [tokenizer[group][name] for tokenizer in tokenizers]
            blocks.append([*_format_compression(title, counts, tokenizers, width)])
        if len(ranked) > MAX_LISTED_SOURCES:
            blocks.append([f"… {len(ranked) - MAX_LISTED_SOURCES:,} more sources; use format=json for all"])
    blocks.append([*_format_round_trip_failures(tokenizers, width)])
    return wrap_text("\n\n".join("\n".join(block) for block in blocks if block), width)


def plot_tokenizers(metrics: dict[str, Any], path: Path) -> None:
    """Plots bytes per token by language and the usage of the vocabularies to `path`, a PNG file."""
    tokenizers = metrics["tokenizers"]
    labels = [shorten_label(tokenizer) for tokenizer in tokenizers]
    languages = list(tokenizers[0]["languages"])
    with saved_figure(path) as (left, right):
        width = 0.8 / len(tokenizers)
        for index, tokenizer in enumerate(tokenizers):
            left.bar(
                [position + (index + 0.5) * width - 0.4 for position in range(len(languages))],
                [tokenizer["languages"][language]["bytes_per_token"] or 0 for language in languages],
                width,
                label=labels[index],
            )
        left.set_xticks(range(len(languages)), [SCRIPT_LABELS[language] for language in languages])
        left.set_ylabel("bytes per token")
        left.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        left.grid(axis="y", alpha=0.3)
        starts = [0.0] * len(tokenizers)
        labels_by_usage = {
            "often": f"used {RARE_THRESHOLD} times or more",
            "rare": "less often",
            "never": "never",
        }
        for usage, name in labels_by_usage.items():
            shares = [100 * _compute_usage_shares(tokenizer["vocabulary"])[usage] for tokenizer in tokenizers]
            right.barh(range(len(tokenizers)), shares, left=starts, label=name)
            starts = [start + share for start, share in zip(starts, shares, strict=True)]
        right.set_yticks(range(len(tokenizers)), labels)
        right.invert_yaxis()
        right.set_xlabel(f"share of the vocabulary, %, in {metrics['bytes']:,} bytes of text")
        right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)


def shorten_label(tokenizer: dict[str, Any]) -> str:
    """Returns the label of a tokenizer, truncated to LABEL_WIDTH."""
    label = escape_unprintable(tokenizer["label"])
    return label if len(label) <= LABEL_WIDTH else f"…{label[1 - LABEL_WIDTH :]}"


# --- blocks ------------------------------------------------------------------------------------------------


def _format_tokenizers(tokenizers: list[dict[str, Any]], width: int | None) -> Iterator[str]:
    header = (
        "tokenizer", "entries", "never used", "share", f"under {RARE_THRESHOLD} times", "share", "MB/s",
        "gigatoken MB/s",
    )  # fmt: skip
    rows = []
    for tokenizer in tokenizers:
        vocabulary, speed = tokenizer["vocabulary"], tokenizer["speed"]
        usage = _compute_usage_shares(vocabulary)
        rows.append((
            shorten_label(tokenizer), format_integer(tokenizer["vocab_size"]),
            format_integer(vocabulary["never"]), format_percent(usage["never"]),
            format_integer(vocabulary["rare"]), format_percent(usage["rare"]),
            _format_speed(speed["hf"]), _format_speed(speed["gigatoken"]),
        ))  # fmt: skip
    lines = fit_table(header, rows, width, fold=(0,), drop=(7, 6, 5, 4))
    yield from lines
    speed = tokenizers[0]["speed"]
    if "MB/s" not in lines[0]:
        return
    yield (
        f"MB/s on {speed['bytes'] / 1e6:,.1f} MB of text, on this machine: Hugging Face on {speed['cores']} cores, "
        "gigatoken on one"
    )


def _format_compression(
    title: str, counts: list[dict[str, Any]], tokenizers: list[dict[str, Any]], width: int | None
) -> Iterator[str]:
    first = counts[0]
    yield f"{title}: {first['documents']:,} documents, {first['bytes']:,} bytes, {first['words']:,} words"
    header = ("tokenizer", "tokens", "bytes/token", "tokens/word", "partial UTF-8", "round-trip failures")
    rows = [
        (
            shorten_label(tokenizer), format_integer(count["tokens"]), format_decimal(count["bytes_per_token"]),
            format_decimal(count["tokens_per_word"]), format_percent(count["undecodable"]),
            format_integer(count["round_trip_failures"]),
        )
        for tokenizer, count in zip(tokenizers, counts, strict=True)
    ]  # fmt: skip
    yield from fit_table(header, rows, width, fold=(0,), drop=(4, 3))


def _format_round_trip_failures(tokenizers: list[dict[str, Any]], width: int | None) -> Iterator[str]:
    """Formats the first documents that each tokenizer does not decode to the original text."""
    rows = [
        (
            shorten_label(tokenizer), truncate_to_width(example["source"], EXCERPT_WIDTH),
            format_integer(example["character"]), truncate_to_width(example["text"], EXCERPT_WIDTH),
            truncate_to_width(example["decoded"], EXCERPT_WIDTH),
        )
        for tokenizer in tokenizers
        for example in tokenizer["round_trip"]["examples"]
    ]  # fmt: skip
    if rows:
        header = ("round-trip failures", "source", "character", "text", "decoded as")
        yield from fit_table(header, rows, width, left=(0, 1, 3, 4), fold=(0, 1, 3, 4), drop=(1, 0))


def _compute_usage_shares(vocabulary: dict[str, int]) -> dict[str, float]:
    """Returns the shares of the entries other than special tokens that are used never, rarely and often."""
    entries = max(1, vocabulary["entries"])
    never, rare = vocabulary["never"] / entries, vocabulary["rare"] / entries
    return {"never": never, "rare": rare, "often": 1 - never - rare}


def _format_speed(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.1f}"
