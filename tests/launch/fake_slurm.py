"""Fake SLURM commands that print what a test gives them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def install(folder: Path, patch: pytest.MonkeyPatch, **answers: str) -> Path:
    """Put commands on PATH; each prints its answer and appends its command line to the file that is returned."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name in ("sbatch", "sinfo", "squeue", "scontrol", "sacct", "scancel", "srun"):
        answer = bin_folder / f"{name}.txt"
        answer.write_text(answers.get(name, ""))
        command = bin_folder / name
        command.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\ncat {answer}\n')
        command.chmod(0o755)
    patch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "calls"
