"""Commands as a person runs them: the console scripts, in an empty folder, on a small text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from commands import Command


@pytest.fixture
def krill(tmp_path: Path) -> Command:
    """krill("train", "lr=1e-3", …) runs krill-train in tmp_path; `code` is the exit code that is expected."""

    def run(
        command: str, *words: str, code: int = 0, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).with_name(f"krill-{command}")
        clean = {key: value for key, value in os.environ.items() if not key.startswith("KRILL_")}
        environment = clean | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [script, *words], cwd=cwd, env=environment, text=True, capture_output=True, timeout=300
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """The words that choose a small corpus: the help topics of Python, a document each."""
    file = tmp_path / "topics.jsonl"
    lines = (json.dumps({"text": topics[name]}) for name in sorted(topics))
    file.write_text("\n".join(lines), encoding="utf-8")
    return f"data.paths=[{file}]"
