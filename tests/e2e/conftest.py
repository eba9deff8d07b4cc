"""Commands as a user runs them: the console scripts, in an empty folder, on a small text."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from console import CompletedCommand, Krill, run_command


@pytest.fixture
def krill(tmp_path: Path) -> Krill:
    """krill("train", "lr=1e-3", …) runs krill-train in tmp_path; `code` is the expected exit code."""

    def run(command: str, *arguments: str, code: int = 0, cwd: Path = tmp_path) -> CompletedCommand:
        done = run_command(cwd, f"krill-{command}", *arguments)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """The override that chooses a small corpus: the help topics of Python, one document each."""
    file = tmp_path / "topics.jsonl"
    lines = (json.dumps({"text": topics[name]}) for name in sorted(topics))
    file.write_text("\n".join(lines), encoding="utf-8")
    return f"data.paths=[{file}]"
