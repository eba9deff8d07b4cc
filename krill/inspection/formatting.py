"""Formats numbers and excerpts as cells of a table."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from krill.inspection.token_display import escape_unprintable

EXCERPT_WIDTH = 60
"""Maximum width of an excerpt, in columns of the terminal."""

MAX_LISTED_SOURCES = 20
"""Maximum number of sources that are listed, the largest first; format=json has all."""
MIN_BARS = 4
"""Minimum number of bars for which a plot has room, so that a single one does not fill it."""


def format_integer(number: int | None) -> str:
    """Formats 1234 as 1,234, None as an empty string."""
    return "" if number is None else f"{number:,}"


def format_decimal(number: float | None) -> str:
    """Formats a number with two decimal places, None as an empty string."""
    return "" if number is None else f"{number:,.2f}"


def format_percent(share: float | None) -> str:
    """Formats 0.1 as 10.00 %, None as an empty string."""
    return "" if share is None else f"{100 * share:.2f} %"


def truncate_to_width(text: str, width: int) -> str:
    """Returns `text` on one line of at most `width` columns, with an ellipsis if it is truncated."""
    text = escape_unprintable(text)
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"
