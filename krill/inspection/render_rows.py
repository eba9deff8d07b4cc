"""Renders rows of tokens, or a text, for a terminal, colored by token and readable without colors.

    special     yellow       ⟨eos⟩              word    bright blue and bright cyan, alternating
    undecodable red          ⟨\\xec\\x95⟩         other   magenta

Ids are in brackets after their text. A line marks the beginning of each document.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from krill.data.packing import Rows
from krill.data.store import Split
from krill.inspection.token_display import TokenRenderer, TokenSpan, escape_unprintable

_KIND_STYLES = {"special": "yellow", "other": "magenta", "undecodable": "red"}
_WORD_STYLES = ("bright_blue", "bright_cyan")
"""Readable on black, unlike blue."""

MAX_SPAN_TOKENS = 16
"""A span of more tokens, such as a horizontal rule, is truncated if rows are."""


def make_stdout_console() -> Console:
    """Returns a console for standard output: with colors on a terminal or with FORCE_COLOR, never with NO_COLOR."""
    is_plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not sys.stdout.isatty(),
        color_system=None if is_plain else "auto",
    )


class RowDisplayOptions(NamedTuple):
    """How rows are displayed."""

    show_ids: bool
    """Whether to add the ids in brackets."""
    width: int
    """Width of the terminal in columns."""
    max_lines: int | None
    """Maximum number of lines of a row; None: no limit."""


def render_row(
    rows: Rows,
    index: int,
    split: Split,
    sources: list[str],
    renderer: TokenRenderer,
    options: RowDisplayOptions,
) -> Text:
    """Renders row `index` of `rows`, the packed rows of `split`. Raises IndexError if the row does not exist."""
    row = rows.get_row(index)
    segments = slice(rows.offsets[index], rows.offsets[index + 1])
    starts, lengths = rows.starts[segments].tolist(), rows.lengths[segments].tolist()
    filled = sum(lengths)
    padding = rows.sequence_len - filled
    screen = _ScreenText(options)
    segment_count = f"{len(lengths)} {'segment' if len(lengths) == 1 else 'segments'}"
    screen.append_line(
        f"row {index} of {len(rows):,}: {filled:,} tokens in {segment_count}, {padding:,} padding", "bold"
    )
    num_shown = 0
    for start, length in zip(starts, lengths, strict=True):
        if screen.is_full:
            break
        screen.append_line(_describe_document(split, sources, start, length), "cyan")
        for span in renderer.render(row.input_ids[num_shown : num_shown + length].tolist()):
            if screen.is_full:
                break
            screen.append_span(span)
            num_shown += len(span.ids)
        screen.end_line()
    if num_shown < filled:
        screen.append_line(
            f"… {filled - num_shown:,} more of {filled:,} tokens; use full=true for all", "dim"
        )
    elif padding:
        screen.append_line(f"⟨padding⟩ × {padding:,}", "dim")
    return screen.text


def render_text_tokens(spans: Iterable[TokenSpan], show_ids: bool) -> Text:
    """Renders a whole text by its tokens."""
    screen = _ScreenText(RowDisplayOptions(show_ids, 1, None))
    for span in spans:
        screen.append_span(span)
    screen.end_line()
    return screen.text


def _describe_document(split: Split, sources: list[str], start: int, length: int) -> str:
    """Describes the document at token `start` of the split, and the range of its tokens unless it is complete."""
    document = int(np.searchsorted(split.ends, np.uint64(start), side="right"))
    begin = int(split.ends[document - 1]) if document else 0
    size = int(split.ends[document]) - begin
    part = "" if length == size else f", tokens {start - begin:,} to {start - begin + length - 1:,}"
    source = escape_unprintable(sources[split.sources[document]])
    return f"── document {document:,} ({source}), {size:,} tokens{part}"


class _ScreenText:
    """Text that tracks the number of lines it takes on the screen."""

    def __init__(self, options: RowDisplayOptions) -> None:
        self.text = Text()
        self._options = options
        self._num_lines = self._line_width = self._num_words = 0

    @property
    def is_full(self) -> bool:
        """Whether the maximum number of lines is reached."""
        num_wrapped = self._line_width // self._options.width
        return (
            self._options.max_lines is not None and self._num_lines + num_wrapped >= self._options.max_lines
        )

    def append_line(self, text: str, style: str) -> None:
        """Appends a separate line."""
        self.end_line()
        self._append(text, style)
        self.end_line()

    def append_span(self, span: TokenSpan) -> None:
        """Appends a span, and ends the line if its text has a line end."""
        text, ids = escape_unprintable(span.text), [*map(str, span.ids)]
        if self._options.max_lines is not None and len(ids) > MAX_SPAN_TOKENS:
            text, ids = f"{text[:MAX_SPAN_TOKENS]}…", [*ids[: MAX_SPAN_TOKENS // 2], "…", ids[-1]]
        if span.kind in ("special", "undecodable"):
            text = f"⟨{text}⟩"
        self._num_words += span.kind == "word"
        self._append(text, _KIND_STYLES.get(span.kind) or _WORD_STYLES[self._num_words % 2])
        if self._options.show_ids:
            self._append(f"[{' '.join(ids)}]", "dim")
        if "\n" in span.text:
            self.end_line()

    def end_line(self) -> None:
        """Starts a new line, unless the current line is empty."""
        if self._line_width:
            self.text.append("\n")
            self._num_lines += -(-self._line_width // self._options.width)
            self._line_width = 0

    def _append(self, text: str, style: str) -> None:
        self.text.append(text, style)
        self._line_width += cell_len(text)
