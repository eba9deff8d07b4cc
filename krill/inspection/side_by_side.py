"""The figures of `krill.inspection.tokenizers` as text for a terminal or a pipe, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.inspection.cells import EXCERPT, SOURCES, cut, decimal, percent, table, whole
from krill.inspection.picture import picture
from krill.inspection.pieces import visible
from krill.inspection.tokenizers import RARE

LABEL = 40
"""Columns of a tokenizer's name; of a longer one the end is shown, where folders differ."""

SCRIPTS = {"ko": "ko (Hangul)", "en": "en (Latin)", "other": "other scripts"}


def text(figures: dict[str, Any]) -> str:
    """All figures, a block for each language and source where there are several."""
    found = figures["tokenizers"]
    blocks = [[*_tokenizers(found)], [*_compression("all text", [one["all"] for one in found], found)]]
    for group, named in (("languages", SCRIPTS), ("sources", {})):
        sizes = {name: counts["bytes"] for name, counts in found[0][group].items()}
        ranked = sorted(sizes, key=lambda name: -sizes[name])
        if len(ranked) == 1:
            blocks[1][0] += f"; all of it {named.get(ranked[0], f'source {cut(ranked[0], EXCERPT)}')}"
            continue
        for name in ranked[:SOURCES]:
            title = named.get(name, f"source {cut(name, EXCERPT)}")
            blocks.append([*_compression(title, [one[group][name] for one in found], found)])
        if len(ranked) > SOURCES:
            blocks.append([f"… {len(ranked) - SOURCES:,} more sources; all of them: format=json"])
    blocks.append([*_failures(found)])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw bytes per token of each language, and the use of the vocabularies, to `path`, a PNG file."""
    found = figures["tokenizers"]
    labels = [label(one) for one in found]
    languages = list(found[0]["languages"])
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "frameon": False}
    with picture(path) as (left, right):
        width = 0.8 / len(found)
        for index, one in enumerate(found):
            left.bar(
                [place + (index + 0.5) * width - 0.4 for place in range(len(languages))],
                [one["languages"][language]["bytes_per_token"] or 0 for language in languages],
                width,
                label=labels[index],
            )
        left.set_xticks(range(len(languages)), [SCRIPTS[language] for language in languages])
        left.set_ylabel("bytes per token")
        left.legend(**above)
        left.grid(axis="y", alpha=0.3)
        begin = [0.0] * len(found)
        uses = {"often": f"used {RARE} times or more", "rare": "less often", "never": "never"}
        for use, name in uses.items():
            shares = [100 * _use(one["vocabulary"])[use] for one in found]
            right.barh(range(len(found)), shares, left=begin, label=name)
            begin = [start + share for start, share in zip(begin, shares, strict=True)]
        right.set_yticks(range(len(found)), labels)
        right.invert_yaxis()
        right.set_xlabel(f"share of the vocabulary, %, in {figures['bytes']:,} bytes of text")
        right.legend(**above)


def label(one: dict[str, Any]) -> str:
    """A tokenizer's name, not too long."""
    name = visible(one["label"])
    return name if len(name) <= LABEL else f"…{name[1 - LABEL :]}"


# --- blocks ------------------------------------------------------------------------------------------------


def _tokenizers(found: list[dict[str, Any]]) -> Iterator[str]:
    head = (
        "tokenizer", "entries", "never used", "share", f"under {RARE} times", "share", "MB/s", "gigatoken MB/s"
    )  # fmt: skip
    rows = []
    for one in found:
        vocabulary, speed, use = one["vocabulary"], one["speed"], _use(one["vocabulary"])
        rows.append(
            (label(one), whole(one["vocab_size"]), whole(vocabulary["never"]), percent(use["never"]),
             whole(vocabulary["rare"]), percent(use["rare"]), _speed(speed["hf"]), _speed(speed["gigatoken"]))
        )  # fmt: skip
    yield from table(head, rows)
    speed = found[0]["speed"]
    yield (
        f"MB/s of {speed['bytes'] / 1e6:,.1f} MB on this machine: Hugging Face on {speed['cores']} cores, "
        "gigatoken on one"
    )


def _compression(title: str, counts: list[dict[str, Any]], found: list[dict[str, Any]]) -> Iterator[str]:
    first = counts[0]
    yield f"{title}: {first['documents']:,} documents, {first['bytes']:,} bytes, {first['words']:,} words"
    head = ("tokenizer", "tokens", "bytes/token", "tokens/word", "partial UTF-8", "round-trip failures")
    rows = [
        (label(one), whole(count["tokens"]), decimal(count["bytes_per_token"]),
         decimal(count["tokens_per_word"]), percent(count["undecodable"]), whole(count["round_trip_failures"]))
        for one, count in zip(found, counts, strict=True)
    ]  # fmt: skip
    yield from table(head, rows)


def _failures(found: list[dict[str, Any]]) -> Iterator[str]:
    """The first documents that each tokenizer does not give back."""
    rows = [
        (label(one), cut(example["source"], EXCERPT), whole(example["character"]),
         cut(example["text"], EXCERPT), cut(example["decoded"], EXCERPT))
        for one in found
        for example in one["round_trip"]["examples"]
    ]  # fmt: skip
    if rows:
        yield from table(
            ("round-trip failures", "source", "character", "text", "comes back as"), rows, (0, 1, 3, 4)
        )


def _use(vocabulary: dict[str, int]) -> dict[str, float]:
    """Shares of the entries that are no special tokens: never used, rare, and often."""
    entries = max(1, vocabulary["entries"])
    never, rare = vocabulary["never"] / entries, vocabulary["rare"] / entries
    return {"never": never, "rare": rare, "often": 1 - never - rare}


def _speed(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.1f}"
