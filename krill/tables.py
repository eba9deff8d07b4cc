"""Formats tables and lines: for a terminal they fit its width, a log or a pipe has none; and Markdown."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from krill.terminal import escape_control_characters

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


def fit_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int | None,
    left: Sequence[int] = (0,),
    indent: str = "",
    min_widths: Sequence[int] = (),
    fold: Sequence[int] = (),
    drop: Sequence[int] = (),
    own_line: int | None = None,
) -> list[str]:
    """Returns the lines of a table that is at most `width` columns wide; None: any width, and nothing is left out.

    Columns are given by their indices. If the table is too wide, the column `own_line` (paths, which stay whole) gets
    a line below each row, the columns `drop` are left out, the first one first, until those of `fold` have a third of
    the width, and the cells of these are folded.
    """
    table = [list(header), *map(list, rows)]
    content = [max(map(measure_width, column)) for column in zip(*table, strict=True)]

    def measure(columns: Sequence[int], limit: int | None = None) -> int:
        widths = (min(content[one], limit) if limit and one in fold else content[one] for one in columns)
        return len(indent) + sum(widths) + 2 * (len(columns) - 1)

    columns = list(range(len(header)))
    if width is None or measure(columns) <= width:
        return format_table(table[1:], header, left, indent, min_widths if width is None else ())
    columns = [one for one in columns if one != own_line]
    share = max(8, width // 3 // max(1, len(fold)))
    for one in drop:
        if measure(columns, share) > width:
            columns.remove(one)
    folded = [one for one in columns if one in fold]
    spare = width - measure([one for one in columns if one not in fold]) - 2 * len(folded)
    limits = (
        one for one in range(spare, 2, -1) if sum(min(content[column], one) for column in folded) <= spare
    )
    limit = next(limits, 2)
    new_left = [index for index, one in enumerate(columns) if one in left]
    cells = [[_fold(line[one], limit) if one in folded else [line[one]] for one in columns] for line in table]
    heights = [max(map(len, line)) for line in cells]
    split = [
        [pieces[row] if row < len(pieces) else "" for pieces in line]
        for line, height in zip(cells, heights, strict=True)
        for row in range(height)
    ]
    formatted = iter(format_table(split, left=new_left, indent=indent))
    lines = []
    for index, height in enumerate(heights):
        lines += [next(formatted) for _ in range(height)]
        if own_line is not None and index and (path := table[index][own_line]):
            lines.append(" " * max(0, min(len(indent) + 4, width - measure_width(path))) + path)
    return lines


def get_terminal_width(file: TextIO) -> int | None:
    """Returns the columns of the terminal that `file` is, as $COLUMNS has them if it is set; None: not a terminal."""
    if not file.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(file.fileno()).columns or None
    except (OSError, ValueError):  # a terminal without a size
        return 80


def print_wrapped(text: str, file: TextIO | None = None) -> None:
    """Prints `text` to `file`, by default standard output; on a terminal its lines are wrapped between words.

    Names and messages may have control characters: they are escaped, but for line ends and tabs.
    """
    file = sys.stdout if file is None else file
    print(
        wrap_text(escape_control_characters(text, keep="\n\t"), get_terminal_width(file)),
        file=file,
        flush=True,
    )


def wrap_text(text: str, width: int | None) -> str:
    """Returns `text` with lines of at most `width` columns; None: unchanged.

    Lines are wrapped between words, below the value if they begin with a name and at least two spaces. A path or an
    assignment stays whole, a command is continued with a backslash, so that both can be copied.
    """
    if width is None:
        return text
    return "\n".join(wrapped for line in text.split("\n") for wrapped in _wrap_line(line, width))


_LABEL = re.compile(r"\s*(?:\S+(?: \S+)* {2,})?")
"""The beginning of a line that has a name and a value in columns."""

_COMMAND = re.compile(r"\s*krill-[a-z]+")
"""A command; it may be at the beginning of a value or after a colon. `krill-train:` is where an error comes from."""


def _wrap_line(line: str, width: int) -> Iterator[str]:
    if measure_width(line) <= width:
        yield line
        return
    label = _LABEL.match(line)
    current = label[0] if label and measure_width(label[0]) <= width // 2 else ""
    hanging, rest = measure_width(current), line[len(current) :]
    continuation, is_empty, ends_with_colon = "", True, True
    for word in re.findall(r"\s*\S+", rest):
        is_command = ends_with_colon and _COMMAND.fullmatch(word)
        ends_with_colon = word.endswith(":")
        is_whole = bool(set(word) & set("/="))
        if measure_width(current + word) > width - len(continuation) and not (is_empty and not is_whole):
            if current.strip():
                yield current.rstrip() + continuation
            word = word.strip()
            current, is_empty = " " * max(0, min(hanging, width - measure_width(word))), True
        if not is_whole and measure_width(current + word) > width:
            *full, word = _fold(word, width - measure_width(current))
            for piece in full:
                yield current + piece
                current = " " * hanging
        current, is_empty = current + word, False
        if is_command:
            continuation = " \\"
    yield current


def _fold(text: str, width: int) -> list[str]:
    """Returns `text` in lines of at most `width` columns, split between words, or in a word that is longer."""
    lines = [""]
    for word in re.findall(r"\s*\S+", text):
        if measure_width(lines[-1] + word) > width and lines[-1]:
            lines.append("")
            word = word.lstrip()
        for character in word if measure_width(word) > width else [word]:
            if measure_width(lines[-1] + character) > width and lines[-1]:
                lines.append("")
            lines[-1] += character
    return lines


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
