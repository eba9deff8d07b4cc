"""Rows of tokens, or a text, for a terminal, coloured by token, and readable without colours too.

    special     yellow       ⟨eos⟩              word    blue, two shades in turn, so that borders are seen
    undecodable red          ⟨\\xec\\x95⟩         other   magenta

Ids stand in brackets behind what they spell. A line tells where each document begins.
"""

from __future__ import annotations

import os
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
_WORD_STYLES = ("blue", "bright_blue")

MAX_SPAN_TOKENS = 16
"""A run of more tokens, such as a ruled line, is shown by its beginning where rows are not shown whole."""


def make_stdout_console() -> Console:
    """Standard output: in colours on a terminal or with FORCE_COLOR, without any escape with NO_COLOR."""
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        highlight=False, markup=False, emoji=False, soft_wrap=True, color_system=None if plain else "auto"
    )


class RowDisplayOptions(NamedTuple):
    """How rows are shown."""

    show_ids: bool
    """With the ids in brackets."""
    width: int
    """Columns of the screen."""
    max_lines: int | None
    """So many lines of a row are shown; None: all."""


def render_row(
    rows: Rows, index: int, split: Split, sources: list[str], speller: TokenRenderer, view: RowDisplayOptions
) -> Text:
    """Row `index` of `rows`, which are those of `split`. Raises IndexError if there is no such row."""
    row = rows.get_row(index)
    segments = slice(rows.offsets[index], rows.offsets[index + 1])
    starts, lengths = rows.starts[segments].tolist(), rows.lengths[segments].tolist()
    filled = sum(lengths)
    padding = rows.sequence_len - filled
    page = _ScreenText(view)
    number = f"{len(lengths)} {'segment' if len(lengths) == 1 else 'segments'}"
    page.append_line(
        f"row {index} of {len(rows):,}: {filled:,} tokens in {number}, {padding:,} padding", "bold"
    )
    shown = 0
    for start, length in zip(starts, lengths, strict=True):
        if page.is_full:
            break
        page.append_line(_describe_document(split, sources, start, length), "cyan")
        for piece in speller.render(row.input_ids[shown : shown + length].tolist()):
            if page.is_full:
                break
            page.append_span(piece)
            shown += len(piece.ids)
        page.end_line()
    if shown < filled:
        page.append_line(f"… {filled - shown:,} more of {filled:,} tokens; all of them: full=true", "dim")
    elif padding:
        page.append_line(f"⟨padding⟩ × {padding:,}", "dim")
    return page.text


def render_text_tokens(pieces: Iterable[TokenSpan], ids: bool) -> Text:
    """A text by its tokens, whole."""
    page = _ScreenText(RowDisplayOptions(ids, 1, None))
    for piece in pieces:
        page.append_span(piece)
    page.end_line()
    return page.text


def _describe_document(split: Split, sources: list[str], start: int, length: int) -> str:
    """Which document, and which of its tokens, begin at token `start` of the split."""
    document = int(np.searchsorted(split.ends, np.uint64(start), side="right"))
    begin = int(split.ends[document - 1]) if document else 0
    size = int(split.ends[document]) - begin
    part = "" if length == size else f", tokens {start - begin:,} to {start - begin + length - 1:,}"
    return f"── document {document:,} ({sources[split.sources[document]]}), {size:,} tokens{part}"


class _ScreenText:
    """Text that knows how many lines of the screen it takes."""

    def __init__(self, view: RowDisplayOptions) -> None:
        self.text = Text()
        self._options = view
        self._num_lines = self._line_width = self._num_words = 0

    @property
    def is_full(self) -> bool:
        """Whether no further line is to be shown."""
        begun = self._line_width // self._options.width
        return self._options.max_lines is not None and self._num_lines + begun >= self._options.max_lines

    def append_line(self, text: str, style: str) -> None:
        """Append a line of its own."""
        self.end_line()
        self._append(text, style)
        self.end_line()

    def append_span(self, piece: TokenSpan) -> None:
        """Append a piece; the line ends where its text ends one."""
        text, ids = escape_unprintable(piece.text), [*map(str, piece.ids)]
        if self._options.max_lines is not None and len(ids) > MAX_SPAN_TOKENS:
            text, ids = f"{text[:MAX_SPAN_TOKENS]}…", [*ids[: MAX_SPAN_TOKENS // 2], "…", ids[-1]]
        if piece.kind in ("special", "undecodable"):
            text = f"⟨{text}⟩"
        self._num_words += piece.kind == "word"
        self._append(text, _KIND_STYLES.get(piece.kind) or _WORD_STYLES[self._num_words % 2])
        if self._options.show_ids:
            self._append(f"[{' '.join(ids)}]", "dim")
        if "\n" in piece.text:
            self.end_line()

    def end_line(self) -> None:
        """Begin a new line, unless one has just begun."""
        if self._line_width:
            self.text.append("\n")
            self._num_lines += -(-self._line_width // self._options.width)
            self._line_width = 0

    def _append(self, text: str, style: str) -> None:
        self.text.append(text, style)
        self._line_width += cell_len(text)
