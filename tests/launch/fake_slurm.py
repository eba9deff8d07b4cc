"""Commands of SLURM that say what a test tells them to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def install(folder: Path, patch: pytest.MonkeyPatch, **answers: str) -> Path:
    """Put commands on PATH; each prints its answer and notes its words in `folder`/asked."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name in ("sbatch", "sinfo", "squeue", "scontrol", "sacct", "scancel", "srun"):
        answer = bin_folder / f"{name}.txt"
        answer.write_text(answers.get(name, ""))
        command = bin_folder / name
        command.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/asked\ncat {answer}\n')
        command.chmod(0o755)
    patch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "asked"
