"""Progress output of a preparation: a progress bar or periodic log lines, and a summary table at the end."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from krill.sources.source import Part
from krill.tables import fit_table, get_terminal_width
from krill.terminal import start_progress_bar
from krill.text.filters import describe_thresholds

log = logging.getLogger("krill")
PREPARATION_LOG_SECONDS = 15.0
"""Minimum seconds between two log lines where there is no progress bar."""

MAX_REPEATED_RATIO = 10
"""Repetitions, as a multiple of the text's own tokens, above which weights look like shares."""
MAX_DROPPED_SHARE = 0.5
"""A rule that drops a larger share of the documents is worth a warning."""
INTENDED_RULES = ("duplicate", "weight")
"""Rules whose share follows from the text and the weights, not from a threshold."""


class PreparationProgress:
    """Counts the work done by the workers; a context manager that displays it."""

    def __init__(self, parts: Sequence[Part], missing: Sequence[int]) -> None:
        self._parts = parts
        self._bar: Progress | None = None
        self.restart(missing)

    def restart(self, missing: Sequence[int]) -> None:
        """Begins to count again: the parts with the indices `missing` are to be written."""
        self.documents = self.text_bytes = self._done_bytes = 0
        self._total_bytes = sum(self._parts[index].size for index in missing)
        self._start_time = self._last_log_time = time.monotonic()

    def __enter__(self) -> PreparationProgress:
        figures = TextColumn("{task.fields[figures]}")
        columns = (BarColumn(), TaskProgressColumn(), figures, TimeRemainingColumn())
        self._bar = start_progress_bar("tokens", *columns, is_transient=True)
        if self._bar:
            self._task = self._bar.add_task("", total=max(1, self._total_bytes), figures="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def advance(self, documents: int, text_bytes: int) -> None:
        """Adds encoded documents and bytes of text."""
        self.documents += documents
        self.text_bytes += text_bytes
        if self._bar:
            self._bar.update(self._task, figures=self._format_rates())
        elif time.monotonic() - self._last_log_time > PREPARATION_LOG_SECONDS:
            self._last_log_time = time.monotonic()
            log.info("tokens      %s%s", self._format_rates(), self._format_remaining())

    def finish_part(self, index: int) -> None:
        """Counts part `index` as finished."""
        self._done_bytes += self._parts[index].size
        if self._bar:
            self._bar.update(self._task, completed=self._done_bytes)

    def _format_rates(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._start_time)
        return (
            f"{self.documents:,} documents  {self.documents / seconds:,.0f} documents/s  "
            f"{self.text_bytes / seconds / 1e6:.1f} MB/s"
        )

    def _format_remaining(self) -> str:
        if not self._done_bytes:
            return ""
        seconds = (time.monotonic() - self._start_time) * (self._total_bytes / self._done_bytes - 1)
        return (
            f"  {100 * self._done_bytes / self._total_bytes:.0f} %  {timedelta(seconds=round(seconds))} left"
        )


def log_preparation_summary(manifest: dict[str, Any], weights: Sequence[float], seconds: float) -> None:
    """Logs what was kept, and a table of what each rule dropped, with an example."""
    splits, repeated, read = manifest["splits"], manifest["repeated"], manifest["read"]
    documents, tokens, text_bytes = (
        sum(split[key] for split in splits.values()) - repeated[key]
        for key in ("documents", "tokens", "text_bytes")
    )
    log.info(
        "tokens      %s documents kept (%s for validation), %s tokens from %.1f MB of text, %.2f bytes/token, %.1f s",
        f"{documents:,}", f"{splits['validation']['documents']:,}", f"{tokens:,}", text_bytes / 1e6,
        text_bytes / max(1, tokens - 2 * documents), seconds,
    )  # fmt: skip
    if repeated["documents"]:
        log.info(
            "repeated    %s repetitions of these documents, by weight: the store has %.1f times these tokens",
            f"{repeated['documents']:,}", 1 + repeated["tokens"] / max(1, tokens),
        )  # fmt: skip
    for line in format_weight_hint(weights, repeated["tokens"] / max(1, tokens)):
        log.warning("%s", line)
    if unknown := manifest["unknown_tokens"]:
        log.warning(
            "unknown     %s of %s tokens (%.2f %%) are the unk token: the tokenizer cannot represent this text, and "
            "it is lost; use a byte-level tokenizer, such as tokenizer=bpe_32k",
            f"{unknown:,}", f"{read['tokens']:,}", 100 * unknown / read["tokens"],
        )  # fmt: skip
    width = get_terminal_width(sys.stderr)
    for line in format_dropped_table(manifest["dropped"], read["documents"], width):
        log.info("%s", line)
    for reason, counts in manifest["skipped"].items():
        log.info("  %-28s %12s records skipped", reason, f"{counts['records']:,}")
    for line in format_data_hints(manifest["dropped"], manifest["read"], manifest["data"]):
        log.warning("%s", line)
    leaks = manifest["leaks"]
    if leaks["leaked_documents"]:
        advice = "" if manifest["data"]["near"] else "; data.minhash.threshold=0.8 drops near duplicates"
        log.warning(
            "leak check  %d of %d validation documents are at least half contained in the training text (%d-grams)%s",
            leaks["leaked_documents"], leaks["documents"], leaks["ngram"], advice,
        )  # fmt: skip


def format_weight_hint(weights: Sequence[float], repeated_ratio: float) -> list[str]:
    """Returns a line if weights look like shares: the text is repeated often, or none is stored as a whole."""
    meaning = "a weight is the number of times that a document occurs in an epoch, not a share"
    if repeated_ratio > MAX_REPEATED_RATIO:
        advice = "divide the weights by the smallest for the same mix in a smaller store"
    elif len(weights) > 1 and max(weights) < 1:
        advice = "each is below 1, so a part of each source is dropped; divide them by the largest for the same mix"
    else:
        return []
    return [f"weight      {meaning}; {advice}"]


def format_data_hints(
    dropped: dict[str, dict[str, Any]], read_counts: Mapping[str, int], rules: dict[str, Any]
) -> list[str]:
    """Returns a line for a rule that drops more than half of the documents, and one for decomposed text.

    `rules`: the values of min_chars, min_tokens, max_tokens and filters.
    """
    num_documents = max(1, read_counts["documents"])
    lines = []
    for rule, reasons in itertools.groupby(sorted(dropped), lambda verdict: verdict.partition(":")[0]):
        counts = {reason: dropped[reason]["documents"] for reason in reasons}
        share = sum(counts.values()) / num_documents
        if share > MAX_DROPPED_SHARE and rule not in INTENDED_RULES:
            change = suggest_change(max(counts, key=counts.__getitem__), rules)
            lines.append(
                f"dropped     {rule} drops {100 * share:.1f} % of the documents; to keep them, {change}"
            )
    if share := read_counts.get("decomposed", 0) / num_documents:
        lines.append(
            f"normalize   {max(100 * share, 0.1):.1f} % of the documents have decomposed letters (NFD, as macOS "
            "writes Hangul), which take up to three times the tokens, and which the leak check does not find in "
            "others; compose them: data.normalize=nfc"
        )
    return lines


def suggest_change(verdict: str, rules: dict[str, Any]) -> str:
    """Returns what to change so that fewer documents are dropped with this verdict.

    `rules`: as for `format_data_hints`.
    """
    if verdict == "min_tokens" and not rules[verdict]:
        return "use a tokenizer that has tokens for them"
    if verdict in rules:
        return f"change data.{verdict} (it is {rules[verdict]})"
    if verdict == "near duplicate":
        return "change data.minhash.threshold"
    if verdict == "empty":
        return "check text_column"
    return f"change {describe_thresholds(verdict, rules['filters'])}"


def format_dropped_table(
    dropped: dict[str, dict[str, Any]], num_documents: int, width: int | None = None
) -> list[str]:
    """Returns a table with a line per rule: dropped documents, their share of `num_documents`, bytes, an example.

    `width`: of the terminal; None: not a terminal.
    """
    if not dropped:
        return []
    rows = []
    for rule, counts in sorted(dropped.items(), key=lambda item: -item[1]["documents"]):
        example = counts["examples"][0] if counts["examples"] else {"place": "", "text": ""}
        share = counts["documents"] / max(1, num_documents)
        location = f"{example['place']} {example['text'][:40]!r}" if example["text"] else example["place"]
        rows.append(
            (
                rule,
                f"{counts['documents']:,}",
                f"{100 * share:.2f} %",
                f"{counts['bytes'] / 1e6:.2f}",
                location,
            )
        )
    header = ("dropped by", "documents", "share", "MB", "example")
    return fit_table(
        header, rows, width, left=(0, 4), indent="  ", min_widths=(28, 11, 6, 8), fold=(4,), drop=(3, 2)
    )
