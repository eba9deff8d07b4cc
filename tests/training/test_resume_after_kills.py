"""Tests that a training killed repeatedly at random moments ends with the same bytes as an uninterrupted one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from console import get_clean_environment, run_words

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variants", "kills", "steps"),
    [
        # One kill during start-up, two between steps, one within a save.
        (("muon_moonlight",), 4, 32),
        (("adamw", "muon_keller", "muon_pto", "workers", "sigterm"), 1, 24),
        (("ranks",), 1, 24),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    variants: tuple[str, ...], kills: int, steps: int, tmp_path: Path
) -> None:
    """benchmarks/results/kills.json has the result of many more kills."""
    result = tmp_path / "kills.json"
    arguments = [
        "--forked", f"--kills={kills}", f"--steps={steps}", f"--result={result}", "--variants", *variants,
    ]  # fmt: skip
    done = run_words(tmp_path, [sys.executable, str(SCRIPT), *arguments], get_clean_environment())
    assert done.returncode == 0, done.stderr
    reports = json.loads(result.read_text())["variants"]
    assert tuple(reports) == variants
    for report in reports.values():
        assert report["same"]
        assert report["orphans"] == 0
        assert sum(report["killed_in"].values()) == kills
