"""Tables align cells of any script, and Markdown cells are escaped."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from krill.tables import format_markdown_table, format_table, measure_width


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert format_table([("a", "1"), ("가나다", "1,000")], ("name", "count"), left=(0,)) == [
        "name    count",
        "a           1",
        "가나다  1,000",
    ]


def test_lines_are_indented_and_have_no_trailing_space() -> None:
    assert format_table([("key=[…]", "meaning"), ("k", "")], left=(0, 1), indent="  ") == [
        "  key=[…]  meaning",
        "  k",
    ]


def test_columns_have_minimum_widths() -> None:
    assert format_table([("a", "b", "c")], min_widths=(3, 2)) == ["a     b  c"]
    assert format_table([("long", "b")], min_widths=(3, 2)) == ["long   b"]


def test_a_table_without_rows_is_its_header() -> None:
    assert format_table([], ("a", "b")) == ["a  b"]
    assert format_table([]) == []


def test_rows_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="argument"):
        format_table([("a", "b"), ("a",)])


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"))))
def test_widths_are_those_of_rich(text: str) -> None:
    assert measure_width(text) == cell_len(text)


def test_every_single_column_character_has_one_column() -> None:
    for point in range(0x20, 0x2028):
        if measure_width(chr(point)) == 1:
            assert cell_len(chr(point)) == 1, hex(point)


def test_markdown_cells_are_escaped() -> None:
    assert format_markdown_table(("key", "type"), [("a", "int | None"), ("b", 3)]) == [
        "| key | type |",
        "| --- | --- |",
        "| a | int \\| None |",
        "| b | 3 |",
    ]


def test_the_module_does_not_import_rich_for_plain_text() -> None:
    program = (
        "import sys; from krill.tables import format_table;"
        "print(format_table([('é', '…')]), 'rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['é  …'] False\n"
