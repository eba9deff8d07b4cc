"""Names and messages cannot send control sequences to a terminal."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from krill.cli import app, runs_view
from krill.errors import KrillError, SignalInterrupt, UsageError
from krill.inspection.render_rows import _describe_document
from krill.runs import table
from krill.runs.find import Run, RunGroup, run_at
from krill.terminal import TerminalFormatter, encode_input, escape_control_characters

ESCAPE = "\x1b[31mred"


def test_control_characters_are_escaped() -> None:
    assert escape_control_characters("가나 a|<b>") == "가나 a|<b>"
    assert (
        escape_control_characters(f"{ESCAPE}\u202e\x85\ta\n", keep="\n") == r"\x1b[31mred\u202e\x85\ta" + "\n"
    )
    assert escape_control_characters("\udcff") == r"\udcff"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("가\udcff", "UTF-8 (character 2); set the terminal to UTF-8"),
        ("\ud83d", r"Unicode: '\ud83d' (character 1); correct it"),
    ],
)
def test_input_that_is_not_text_is_named(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as error:
        encode_input(text, "text=")
    assert str(error.value) == f"text= is not valid {problem}"
    assert encode_input("가", "text=") == "가".encode()


def test_log_messages_and_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.makeLogRecord({"msg": "file %s\n\tread", "args": (ESCAPE,)})
    assert TerminalFormatter("%(message)s").format(record) == "file \\x1b[31mred\n\tread"
    assert app.print_error("train", KrillError(f"{ESCAPE}\nline\u2028two")) == 1
    assert capsys.readouterr().err == (
        "krill-train: error: \\x1b[31mred\nkrill-train: error: line\\u2028two\n"
    )


def test_an_interruption_is_not_called_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.print_error("train", SignalInterrupt("interrupted by SIGTERM", 75)) == 75
    assert capsys.readouterr().err == "krill-train: interrupted by SIGTERM\n"


def test_krill_runs_escapes_what_a_run_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        folder = tmp_path / f"{name}{ESCAPE}"
        folder.mkdir()
        status = {"state": "failed", "signature": name, "overrides": [f"x={name}{ESCAPE}"], "error": ESCAPE}
        (folder / "status.json").write_text(json.dumps(status))
        (folder / "log.txt").write_text(ESCAPE)
    group = run_at(tmp_path)
    assert isinstance(group, RunGroup)
    run = group.runs[0]
    assert isinstance(run, Run)
    runs_view.print_run(run)
    runs_view.print_sweep(group)
    runs_view.print_differences(table.build_rows(group.runs), {f"key{ESCAPE}": [ESCAPE, 2]})
    runs_view._StateLines().update(table.build_rows(group.runs))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.count(r"\x1b") > 10


def test_the_source_of_a_row_is_escaped() -> None:
    class Split:
        ends, sources = np.array([4], np.uint64), np.array([0])

    described = _describe_document(Split(), [ESCAPE], 0, 4)  # type: ignore[arg-type]
    assert described == r"── document 0 (\x1b[31mred), 4 tokens"
