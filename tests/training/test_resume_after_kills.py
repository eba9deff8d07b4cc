"""Tests that a training killed repeatedly at random moments ends with the same bytes as an uninterrupted one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "kills", "steps"),
    [
        ("muon_moonlight", 20, 160),
        ("adamw", 3, 40),
        ("muon_keller", 3, 40),
        ("muon_pto", 3, 40),
        ("workers", 3, 40),
        ("sigterm", 3, 40),
        ("ranks", 3, 40),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    variant: str, kills: int, steps: int, tmp_path: Path
) -> None:
    result = tmp_path / "kills.json"
    arguments = [
        "--forked",
        f"--kills={kills}",
        f"--steps={steps}",
        "--variants",
        variant,
        f"--result={result}",
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(result.read_text())["variants"][variant]
    assert report["same"]
    assert report["orphans"] == 0
    assert sum(report["killed_in"].values()) == kills
