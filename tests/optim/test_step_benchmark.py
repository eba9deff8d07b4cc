"""The benchmark of optimizer steps, written for GPUs, runs on a CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "muon_step.py"


@pytest.mark.slow
def test_the_benchmark_times_every_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_optimizer")
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as for a script
    spec = importlib.util.spec_from_file_location("muon_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "ROW", 64)
    monkeypatch.setattr(script, "VOCAB_SIZE", 512)
    arguments = ["--models", "llama_pico", "--device", "cpu", "--rounds", "1", "--tokens", "2048"]
    monkeypatch.setattr(sys, "argv", ["muon_step.py", *arguments, "--result", str(tmp_path / "result.json")])
    script.main()
    result = json.loads((tmp_path / "result.json").read_text())["models"]["llama_pico"]
    assert result["step_ms"].keys() == {*script.VARIANTS, "upstream", "torch"}
    assert all(0 < share < 1 for share in result["share"].values())
