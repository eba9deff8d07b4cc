"""Figures as cells of a table for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from krill.inspection.token_display import escape_unprintable

EXCERPT_WIDTH = 60
"""Columns of an example."""

MAX_LISTED_SOURCES = 20
"""So many sources are shown, the largest first; JSON has all."""


def format_integer(number: int | None) -> str:
    """1234 → 1,234; nothing where there is no number."""
    return "" if number is None else f"{number:,}"


def format_decimal(number: float | None) -> str:
    """Two places behind the point."""
    return "" if number is None else f"{number:,.2f}"


def format_percent(share: float | None) -> str:
    """0.1 → 10.00 %."""
    return "" if share is None else f"{100 * share:.2f} %"


def truncate_to_width(words: str, columns: int) -> str:
    """`words` on one line of at most so many columns."""
    words = escape_unprintable(words)
    return words if cell_len(words) <= columns else f"{set_cell_size(words, columns - 1).rstrip()}…"


def format_table_lines(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: tuple[int, ...] = (0,)
) -> Iterator[str]:
    """Lines of cells two spaces apart, those of the columns `left` from the left, the others from the right."""
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(cell + space if index in left else space + cell)
        yield "  ".join(cells).rstrip()
