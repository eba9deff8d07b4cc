"""The benchmark that compares krill with plain loops on a GPU also runs on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "train_gpu.py"


@pytest.mark.slow
def test_gpu_benchmark_measures_every_contestant(tmp_path: Path, texts: Path) -> None:
    result = tmp_path / "result.json"
    overrides = ["data=files", f"data.paths=[{texts}]", "data.min_chars=0", "tokenizer.vocab_size=320"]
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--result", str(result), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    figures = json.loads(result.read_text())["models"]["llama_pico"]["64"]
    for name in ("krill", "trainer", "plain"):
        assert figures[name]["micro_batch"] == 4
        assert figures[name]["tokens_per_second"] > 0
        assert 0 < figures[name]["mfu"] < 1
    assert figures["krill_to_plain"] > 0
