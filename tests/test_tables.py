"""Tables align cells of any script, and Markdown cells are escaped."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from krill.tables import fit_table, format_markdown_table, format_table, measure_width, wrap_text


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


HEADER = ("이름", "state", "loss", "seconds", "folder")
ROWS = [
    (
        "한국어 말뭉치 lr=0.001 optimizer=muon_keller",
        "finished",
        "4.25",
        "129",
        "outputs/runs/한국어/2030-aaaa1111",
    ),
    ("짧은 것", "failed", "", "", "outputs/runs/b/2030-bbbb2222"),
]


@pytest.mark.parametrize(("width", "num_columns"), [(36, 3), (60, 4), (80, 4), (100, 4), (120, 5)])
def test_a_table_fits_the_terminal_and_keeps_what_is_important(width: int, num_columns: int) -> None:
    lines = fit_table(HEADER, ROWS, width, left=(0, 1, 4), fold=(0,), drop=(3, 2), own_line=4)
    assert max(map(cell_len, lines)) <= width
    assert tuple(lines[0].split()) == HEADER[:num_columns]
    assert all(row[4] in "\n".join(lines) for row in ROWS), "a path stays whole"
    letters = "".join("".join(lines[1:]).split())
    assert sum(letter in letters for letter in "한국어말뭉치lr=0.001짧은것") == len(
        "한국어말뭉치lr=0.001짧은것"
    )


def test_a_table_without_a_terminal_is_complete() -> None:
    lines = fit_table(HEADER, ROWS, None, left=(0, 1, 4), fold=(0,), drop=(3, 2), own_line=4)
    assert lines == format_table(ROWS, HEADER, left=(0, 1, 4))


@given(
    st.lists(st.tuples(*[st.text("abc 가나다/=", max_size=50)] * 3), max_size=4),
    st.integers(min_value=24, max_value=90),
)
def test_any_folded_table_fits(rows: list[tuple[str, str, str]], width: int) -> None:
    lines = fit_table(("a", "b", "c"), rows, width, left=(0, 1, 2), fold=(0, 1, 2))
    assert all(cell_len(line) <= width for line in lines)
    letters = sorted(letter for row in rows for cell in row for letter in cell if letter != " ")
    assert sorted("".join(lines[1:]).replace(" ", "")) == letters


@pytest.mark.parametrize(
    ("line", "wrapped"),
    [
        ("optimizer   muon: 임베딩 7 at 3, vectors 1", ["optimizer   muon: 임베딩 7 at 3,", "            vectors 1"]),
        ("folder      outputs/runs/llama/2030-01", ["folder", "      outputs/runs/llama/2030-01"]),
        ("folder      outputs/runs/llama_nano/2030-01-01-aa", ["folder", "outputs/runs/llama_nano/2030-01-01-aa"]),
        ("next        krill-infer a/b steps=123456", ["next        krill-infer a/b \\", "            steps=123456"]),
        ("krill-train: error: lr=abc: not a number", ["krill-train: error: lr=abc: not", "a number"]),
        (
            "error: no tokenizer; run: krill-tokenizer data=files name=abc",
            ["error: no tokenizer; run:", "krill-tokenizer data=files \\", "name=abc"],
        ),
        ("가나다라마바사아자차카타파하가나다라마바사", ["가나다라마바사아자차카타파하가나", "다라마바사"]),
        ("short  line", ["short  line"]),
    ],
)  # fmt: skip
def test_a_line_is_wrapped_between_words_below_its_value(line: str, wrapped: list[str]) -> None:
    assert wrap_text(line, 32) == "\n".join(wrapped)
    assert wrap_text(line, None) == line


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
