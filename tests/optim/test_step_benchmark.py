"""The benchmark of optimizer steps, written for GPUs, runs on a CPU."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "muon_step.py"


@pytest.fixture
def run_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """run_benchmark(): returns the content of the result file, with tiny rows and vocabulary."""
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as for a script
    script = importlib.import_module("muon_step")
    monkeypatch.setattr(script, "ROW", 64)
    monkeypatch.setattr(script, "VOCAB_SIZE", 512)
    result = tmp_path / "result.json"

    def run() -> dict[str, Any]:
        arguments = ["--models", "llama_pico", "--device", "cpu", "--rounds", "1", "--tokens", "2048"]
        monkeypatch.setattr(sys, "argv", ["muon_step.py", *arguments, "--result", str(result)])
        script.main()
        content: dict[str, Any] = json.loads(result.read_text())
        return content

    return run


@pytest.mark.slow
def test_the_benchmark_times_every_optimizer(run_benchmark: Callable[[], dict[str, Any]]) -> None:
    pytest.importorskip("pytorch_optimizer")
    import muon_step

    result = run_benchmark()["models"]["llama_pico"]
    assert result["step_ms"].keys() == {*muon_step.VARIANTS, "upstream", "torch"}
    assert all(0 < share < 1 for share in result["share"].values())


def test_the_benchmark_runs_where_krill_and_pytorch_optimizer_are_not_installed(
    run_benchmark: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import muon_step

    def find_no_version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", find_no_version)
    monkeypatch.setattr(muon_step, "find_spec", lambda name: None)
    kept = ("adamw", "muon_pto", "muon_moonlight")
    monkeypatch.setattr(muon_step, "VARIANTS", {name: muon_step.VARIANTS[name] for name in kept})
    result = run_benchmark()
    assert result["models"]["llama_pico"]["step_ms"].keys() == {*kept, "torch"}
    assert result["versions"] == {"krill": "0+unknown"}


def test_an_optimizer_that_fails_is_recorded_and_the_next_one_starts(
    run_benchmark: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import muon_step

    build = muon_step.build_optimizer

    def run_out_of_memory(model: Any, config: Any) -> Any:
        if config.name == "muon_krill":
            raise torch.OutOfMemoryError("3 GB\nof 2 GB")
        return build(model, config)

    monkeypatch.setattr(muon_step, "build_optimizer", run_out_of_memory)
    monkeypatch.setattr(muon_step, "find_spec", lambda name: None)
    kept = ("muon_krill", "adamw", "muon_moonlight")
    monkeypatch.setattr(muon_step, "VARIANTS", {name: muon_step.VARIANTS[name] for name in kept})
    figures = run_benchmark()["models"]["llama_pico"]
    assert figures["failed"] == {"muon_krill": "OutOfMemoryError: 3 GB"}
    assert figures["step_ms"].keys() == {"adamw", "muon_moonlight", "torch"}
