"""A training step on a fake CUDA device, as `benchmarks/rehearse_gpu.py` runs it, for a tiny model.

It runs what krill does only on CUDA: bf16 autocast, torch's varlen_attn, events, copies that do not wait.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from console import get_clean_environment, run_words

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "rehearse_gpu.py"


Rehearse = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def rehearse(prepared_data: Any, overrides: list[str], outputs: Path) -> Rehearse:
    """rehearse(["adamw"], "lr=1"): returns the results by optimizer."""
    data = [override for override in overrides if override.startswith(("data", "tokenizer"))]

    def run(optimizers: list[str], *more: str) -> dict[str, Any]:
        result = outputs / "rehearsal.json"
        result.unlink(missing_ok=True)
        words: list[str] = [
            sys.executable, str(SCRIPT), "--models", "llama_pico", "--optimizers", *optimizers, "--tiny", "--eager",
            f"--outputs={outputs}", f"--result={result}",
        ]  # fmt: skip
        done = run_words(
            outputs, [*words, *more, *data, "model.num_hidden_layers=1"], get_clean_environment()
        )
        assert result.exists(), done.stderr
        return json.loads(result.read_text())["models"]["llama_pico"]

    return run


@pytest.fixture(scope="module")
def results(rehearse: Rehearse) -> dict[str, Any]:
    """The results for AdamW, and for Muon with NorMuon."""
    return rehearse(["adamw", "muon_krill"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon_krill"])
def test_step_on_cuda_is_exact_and_does_not_wait(optimizer: str, results: dict[str, Any]) -> None:
    assert results[optimizer]["problems"] == []
    waits = {"adamw": [], "muon_krill": ["event"]}[optimizer]
    assert [wait.partition(":")[0] for wait in results[optimizer]["waits"]] == waits
    assert {"set_device", "is_bf16_supported", "max_memory_allocated"} <= results[optimizer][
        "cuda_calls"
    ].keys()
    work = results[optimizer]["work"]
    assert work["pass"]["attention_flops"] > 0
    bytes_by_kind = {key: count for key, count in work["pass"].items() if key.endswith("_bytes")}
    assert sum(bytes_by_kind.values()) == work["pass"]["bytes"]
    assert bytes_by_kind.keys() == {
        f"{kind}_bytes" for kind in ("loss", "cast", "copy", "reduction", "elementwise")
    }
    assert (work["optimizer"].get("matmul_flops", 0) > 0) == (optimizer != "adamw")


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_linear_layers_multiply_in_fp8(rehearse: Rehearse) -> None:
    """Those of torchao without emulation: forward, gradients of the input and of the weight, in 7 layers."""
    result = rehearse(["adamw"], "hardware.precision=fp8")["adamw"]
    assert (result["problems"], result["waits"]) == ([], {})
    assert result["fp8_products"] == 3 * 7
