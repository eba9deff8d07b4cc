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
from krill.inspection.pieces import Piece, Speller, visible

_STYLES = {"special": "yellow", "other": "magenta", "undecodable": "red"}
_WORDS = ("blue", "bright_blue")

LONG_RUN = 16
"""A run of more tokens, such as a ruled line, is shown by its beginning where rows are not shown whole."""


def console() -> Console:
    """Standard output: in colours on a terminal or with FORCE_COLOR, without any escape with NO_COLOR."""
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        highlight=False, markup=False, emoji=False, soft_wrap=True, color_system=None if plain else "auto"
    )


class View(NamedTuple):
    """How rows are shown."""

    ids: bool
    """With the ids in brackets."""
    width: int
    """Columns of the screen."""
    lines: int | None
    """So many lines of a row are shown; None: all."""


def coloured(rows: Rows, index: int, split: Split, sources: list[str], speller: Speller, view: View) -> Text:
    """Row `index` of `rows`, which are those of `split`. Raises IndexError if there is no such row."""
    row = rows.row(index)
    segments = slice(rows.offsets[index], rows.offsets[index + 1])
    starts, lengths = rows.starts[segments].tolist(), rows.lengths[segments].tolist()
    filled = sum(lengths)
    padding = rows.sequence_len - filled
    page = _Page(view)
    number = f"{len(lengths)} {'segment' if len(lengths) == 1 else 'segments'}"
    page.line(f"row {index} of {len(rows):,}: {filled:,} tokens in {number}, {padding:,} padding", "bold")
    shown = 0
    for start, length in zip(starts, lengths, strict=True):
        if page.full:
            break
        page.line(_place(split, sources, start, length), "cyan")
        for piece in speller.pieces(row.input_ids[shown : shown + length].tolist()):
            if page.full:
                break
            page.piece(piece)
            shown += len(piece.ids)
        page.end_line()
    if shown < filled:
        page.line(f"… {filled - shown:,} more of {filled:,} tokens; all of them: full=true", "dim")
    elif padding:
        page.line(f"⟨padding⟩ × {padding:,}", "dim")
    return page.text


def coloured_pieces(pieces: Iterable[Piece], ids: bool) -> Text:
    """A text by its tokens, whole."""
    page = _Page(View(ids, 1, None))
    for piece in pieces:
        page.piece(piece)
    page.end_line()
    return page.text


def _place(split: Split, sources: list[str], start: int, length: int) -> str:
    """Which document, and which of its tokens, begin at token `start` of the split."""
    document = int(np.searchsorted(split.ends, np.uint64(start), side="right"))
    begin = int(split.ends[document - 1]) if document else 0
    size = int(split.ends[document]) - begin
    part = "" if length == size else f", tokens {start - begin:,} to {start - begin + length - 1:,}"
    return f"── document {document:,} ({sources[split.sources[document]]}), {size:,} tokens{part}"


class _Page:
    """Text that knows how many lines of the screen it takes."""

    def __init__(self, view: View) -> None:
        self.text = Text()
        self._view = view
        self._finished = self._cells = self._words = 0

    @property
    def full(self) -> bool:
        """Whether no further line is to be shown."""
        begun = self._cells // self._view.width
        return self._view.lines is not None and self._finished + begun >= self._view.lines

    def line(self, text: str, style: str) -> None:
        """Append a line of its own."""
        self.end_line()
        self._add(text, style)
        self.end_line()

    def piece(self, piece: Piece) -> None:
        """Append a piece; the line ends where its text ends one."""
        text, ids = visible(piece.text), [*map(str, piece.ids)]
        if self._view.lines is not None and len(ids) > LONG_RUN:
            text, ids = f"{text[:LONG_RUN]}…", [*ids[: LONG_RUN // 2], "…", ids[-1]]
        if piece.kind in ("special", "undecodable"):
            text = f"⟨{text}⟩"
        self._words += piece.kind == "word"
        self._add(text, _STYLES.get(piece.kind) or _WORDS[self._words % 2])
        if self._view.ids:
            self._add(f"[{' '.join(ids)}]", "dim")
        if "\n" in piece.text:
            self.end_line()

    def end_line(self) -> None:
        """Begin a new line, unless one has just begun."""
        if self._cells:
            self.text.append("\n")
            self._finished += -(-self._cells // self._view.width)
            self._cells = 0

    def _add(self, text: str, style: str) -> None:
        self.text.append(text, style)
        self._cells += cell_len(text)
