"""A person's own function: found by file or module, known by its file's content, missed with a clear error."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from krill.config.custom_code import hash_custom_function, import_custom_function
from krill.errors import UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "내 코드.py"
    path.write_text("def answer():\n    return 42\n\nclass Thing:\n    pass\n\nwrapped = print\n")
    return path


def test_a_function_of_a_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    assert import_custom_function(f"{file}:answer")() == 42
    monkeypatch.chdir(file.parent)
    assert import_custom_function(f"{file.name}:answer")() == 42


def test_a_function_of_a_module():
    assert import_custom_function("textwrap:dedent") is textwrap.dedent
    assert hash_custom_function("textwrap:dedent") == hash_custom_function("textwrap:wrap")  # one file


def test_two_files_of_one_name_are_two(file: Path, tmp_path: Path):
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    other.write_text("def answer():\n    return 43\n")
    assert (import_custom_function(f"{file}:answer")(), import_custom_function(f"{other}:answer")()) == (
        42,
        43,
    )


def test_the_digest_is_that_of_the_content(file: Path, tmp_path: Path):
    copy = tmp_path / "copy.py"
    copy.write_bytes(file.read_bytes())
    assert (
        hash_custom_function(f"{copy}:answer")
        == hash_custom_function(f"{file}:answer")
        == hash_custom_function(f"{file}:Thing")
    )
    copy.write_text(copy.read_text().replace("42", "41"))
    assert hash_custom_function(f"{copy}:answer") != hash_custom_function(f"{file}:answer")


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("nothere.py:answer", "nothere.py: no such file"),
        ("{file}:question", "has no function 'question'"),
        ("{file}", "write file.py:function"),
        ("answer", "write file.py:function"),
        ("{file}:", "write file.py:function"),
        ("no_such_package.module:answer", "no module 'no_such_package.module'"),
        ("json.nothere:answer", "no module 'json.nothere'"),
    ],
)
def test_what_is_not_there(file: Path, reference: str, told: str):
    with pytest.raises(UsageError, match=told):
        import_custom_function(reference.format(file=file))


def test_what_is_not_python_has_no_digest(file: Path):
    with pytest.raises(UsageError, match="name a function of your own"):
        hash_custom_function(f"{file}:wrapped")


def test_a_module_that_misses_another_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "krill_test_incomplete.py").write_text("import krill_test_absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="krill_test_absent"):
        import_custom_function("krill_test_incomplete:answer")


def test_code_that_does_not_run_is_tried_again(tmp_path: Path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        import_custom_function(f"{path}:answer")
    path.write_text("def answer():\n    return 'mended, and longer'\n")
    assert import_custom_function(f"{path}:answer")().startswith("mended")
