"""A training step on a fake CUDA device, as `benchmarks/rehearse_gpu.py` runs it, for a tiny model.

It runs what krill does only on CUDA: bf16 autocast, torch's varlen_attn, events, copies that do not wait.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from console import get_clean_environment, run_words

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "rehearse_gpu.py"


@pytest.fixture(scope="module")
def results(prepared_data: Any, overrides: list[str], outputs: Path) -> dict[str, Any]:
    """The results for AdamW and for Muon."""
    result = outputs / "rehearsal.json"
    data = [override for override in overrides if override.startswith(("data", "tokenizer"))]
    words: list[str] = [
        sys.executable,
        str(SCRIPT),
        "--models",
        "llama_pico",
        "--tiny",
        "--eager",
        f"--outputs={outputs}",
    ]
    more = [f"--result={result}", *data, "model.num_hidden_layers=1"]
    done = run_words(outputs, [*words, *more], get_clean_environment())
    assert result.exists(), done.stderr
    return json.loads(result.read_text())["models"]["llama_pico"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon_moonlight"])
def test_step_on_cuda_is_exact_and_does_not_wait(optimizer: str, results: dict[str, Any]) -> None:
    assert results[optimizer]["problems"] == []
    waits = {"adamw": [], "muon_moonlight": ["event"]}[optimizer]
    assert [wait.partition(":")[0] for wait in results[optimizer]["waits"]] == waits
    assert {"set_device", "is_bf16_supported", "max_memory_allocated"} <= results[optimizer][
        "cuda_calls"
    ].keys()
    work = results[optimizer]["work"]
    assert work["pass"]["attention_flops"] > 0
    assert (work["optimizer"].get("matmul_flops", 0) > 0) == (optimizer != "adamw")
