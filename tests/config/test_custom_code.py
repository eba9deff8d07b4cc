"""Functions of the user: imported by file or module, hashed by their file's content, clear errors if missing."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from krill.config.custom_code import hash_custom_function, import_custom_function
from krill.errors import UsageError


@pytest.fixture
def code_file(tmp_path: Path) -> Path:
    path = tmp_path / "내 코드.py"
    path.write_text("def answer():\n    return 42\n\nclass Thing:\n    pass\n\nwrapped = print\n")
    return path


def test_a_function_of_a_file(code_file: Path, monkeypatch: pytest.MonkeyPatch):
    assert import_custom_function(f"{code_file}:answer")() == 42
    monkeypatch.chdir(code_file.parent)
    assert import_custom_function(f"{code_file.name}:answer")() == 42


def test_a_function_of_a_module():
    assert import_custom_function("textwrap:dedent") is textwrap.dedent
    assert hash_custom_function("textwrap:dedent") == hash_custom_function("textwrap:wrap")  # one file


def test_files_with_the_same_name_are_different_modules(code_file: Path, tmp_path: Path):
    other = tmp_path / "other" / code_file.name
    other.parent.mkdir()
    other.write_text("def answer():\n    return 43\n")
    assert (import_custom_function(f"{code_file}:answer")(), import_custom_function(f"{other}:answer")()) == (
        42,
        43,
    )


def test_the_hash_is_that_of_the_content(code_file: Path, tmp_path: Path):
    copy = tmp_path / "copy.py"
    copy.write_bytes(code_file.read_bytes())
    assert (
        hash_custom_function(f"{copy}:answer")
        == hash_custom_function(f"{code_file}:answer")
        == hash_custom_function(f"{code_file}:Thing")
    )
    copy.write_text(copy.read_text().replace("42", "41"))
    assert hash_custom_function(f"{copy}:answer") != hash_custom_function(f"{code_file}:answer")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nothere.py:answer", "nothere.py: no such file"),
        ("{file}:question", "has no function 'question'"),
        ("{file}", "use file.py:function"),
        ("answer", "use file.py:function"),
        ("{file}:", "use file.py:function"),
        ("no_such_package.module:answer", "no module 'no_such_package.module'"),
        ("json.nothere:answer", "no module 'json.nothere'"),
    ],
)
def test_a_missing_function_is_an_error(code_file: Path, reference: str, message: str):
    with pytest.raises(UsageError, match=message):
        import_custom_function(reference.format(file=code_file))


def test_code_without_a_python_source_has_no_hash(code_file: Path):
    with pytest.raises(UsageError, match="use a function of your own"):
        hash_custom_function(f"{code_file}:wrapped")


def test_a_missing_import_of_a_module_is_reported_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "krill_test_incomplete.py").write_text("import krill_test_absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"krill_test_incomplete\.py:1: cannot be imported: ModuleNotFoundError: .*krill_test_absent"
    with pytest.raises(UsageError, match=message):
        import_custom_function("krill_test_incomplete:answer")


def test_a_failed_import_is_tried_again(tmp_path: Path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0\n")
    with pytest.raises(UsageError, match=r"broken\.py:1: cannot be imported: ZeroDivisionError"):
        import_custom_function(f"{path}:answer")
    path.write_text("def answer():\n    return 'fixed, and longer'\n")
    assert import_custom_function(f"{path}:answer")().startswith("fixed")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os\ndef f(:\n    pass\n", "mine.py:2: cannot be imported: SyntaxError: invalid syntax"),
        ("def f():\nreturn 1\n", "mine.py:2: cannot be imported: IndentationError: "),
        ("import nothere\n", "mine.py:1: cannot be imported: ModuleNotFoundError: No module named 'nothere'"),
        ("\nimport helper\n", "helper.py:3: cannot be imported: RuntimeError: no GPU"),
        ("import json\n\njson.loads('{')\n", "mine.py:3: cannot be imported: JSONDecodeError: "),
        ("import sys\nsys.exit(3)\n", "mine.py:2: cannot be imported: SystemExit: 3"),
        ("assert False\n", "mine.py:1: cannot be imported: AssertionError: AssertionError"),
        ("x = '\0'\n", "mine.py"),
        ("answer = 42\n", "mine.py:answer: answer is a int, not a function"),
    ],
)
def test_code_that_cannot_be_imported_is_one_message_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
):
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "helper.py").write_text("import os\n\nraise RuntimeError('no GPU\\nat all')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        import_custom_function("mine.py:answer")
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    if "helper" not in code:
        with pytest.raises(UsageError, match=r"cannot be imported|not a function"):
            import_custom_function("mine:answer")
