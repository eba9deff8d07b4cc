"""Formats tables: aligned columns for a terminal, a log or a pipe, and Markdown.

Tables that must fit the width of a terminal, by folding cells or live, are rich's: `krill.runs.table`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SINGLE_COLUMN = re.compile(r"[ -~\xa1-\xac\xae-\u02ff\u2010-\u2027]*")
"""Characters that take one column each: Latin letters and common punctuation."""


def format_table(
    rows: Iterable[Sequence[str]],
    header: Sequence[str] | None = None,
    left: Sequence[int] = (0,),
    indent: str = "",
    min_widths: Sequence[int] = (),
) -> list[str]:
    """Returns the lines of a table whose columns are two spaces apart and as wide as their widest cell.

    The columns with an index in `left` are left-aligned, the others right-aligned. `min_widths` has the minimum
    widths of the first columns. Wide (East Asian) characters count as two. Raises ValueError for rows of different
    lengths.
    """
    lines = [*([header] if header is not None else []), *rows]
    columns = zip(*lines, strict=True)
    content_widths = [max(map(measure_width, column)) for column in columns]
    widths = [*map(max, content_widths, [*min_widths, *[0] * len(content_widths)])]
    table = []
    for line in lines:
        cells = [_align(cell, widths[index], index in left) for index, cell in enumerate(line)]
        table.append((indent + "  ".join(cells)).rstrip())
    return table


def format_markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Returns the lines of a Markdown table; `|` in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def measure_width(text: str) -> int:
    """Returns the number of terminal columns of `text`, which has no line break."""
    if _SINGLE_COLUMN.fullmatch(text):
        return len(text)
    from rich.cells import cell_len  # imported late, so that --help and its like start fast

    return cell_len(text)


def _align(cell: str, width: int, is_left: bool) -> str:
    space = " " * (width - measure_width(cell))
    return cell + space if is_left else space + cell
