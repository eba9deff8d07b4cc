"""Tests of the built-in documentation: enough text, always equal, without importing the described modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from krill.errors import UsageError
from krill.sources import python_docs


@pytest.fixture
def stripped_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda _: str(tmp_path))


def test_documents_have_enough_text_and_even_sizes() -> None:
    texts = list(python_docs.read_python_docs())
    assert 1_500_000 < sum(len(text.encode()) for text in texts) < 8_000_000
    assert len(texts) > 500
    assert max(map(len, texts)) < 10_000
    assert sum(len(text) for text in texts) / len(texts) > 1500


def test_contains_the_reference_the_library_and_the_builtins() -> None:
    text = "\n".join(python_docs.read_python_docs())
    assert 'The "assert" statement' in text
    assert "def json.dumps(obj, *, skipkeys=False" in text
    assert "class argparse.ArgumentParser(" in text
    assert "str.casefold" in text


def test_is_equal_in_every_process_and_imports_no_described_module() -> None:
    program = (
        "import sys, xxhash; from krill.sources import python_docs; "
        "text = '\\0'.join(python_docs.read_python_docs()); "
        "print(python_docs.fingerprint_python_docs(), xxhash.xxh3_128_hexdigest(text.encode()));"
        "print({'this', 'antigravity', 'idlelib'} & {*sys.modules})"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().endswith("set()\n")


@pytest.mark.usefixtures("stripped_python")
def test_python_without_source_files_raises_with_advice() -> None:
    with pytest.raises(UsageError, match="data=files"):
        python_docs.require_python_docs()
