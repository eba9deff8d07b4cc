"""The console scripts as a person runs them, for the tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

Done = subprocess.CompletedProcess[str]


def run(cwd: Path, command: str, *words: str, **environment: str) -> Done:
    """Run a console script (`krill`, `krill-train`, …) in `cwd`, offline, whatever KRILL_… is set here."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("KRILL_")}
    return subprocess.run(
        [Path(sys.executable).with_name(command), *words],
        cwd=cwd,
        env=clean | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        text=True,
        capture_output=True,
        timeout=300,
    )


def complaints(done: Done) -> list[str]:
    """What an error of usage said, a line each; fails on anything that is not such an error."""
    assert done.returncode == 2, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(": error: " in line for line in lines), done.stderr
    return [line.partition(": error: ")[2] for line in lines]


def empty(folder: Path) -> bool:
    """Whether nothing was written there."""
    return not any(folder.iterdir())
