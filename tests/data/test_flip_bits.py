"""A changed bit or a lost end of what krill saves is reported, or changes nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from krill.sources import hash_cache

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "flip_bits.py"


@pytest.fixture(scope="module")
def flip_bits() -> Any:
    spec = importlib.util.spec_from_file_location("flip_bits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flip_bits"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_no_change_is_taken_for_what_was_saved(
    flip_bits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchmarks/results/flip_bits.json has the result of many more changes."""
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path / "outputs"))  # which the script sets
    for name in ("MIN_CACHED_BYTES", "MIN_FILE_AGE_NS"):
        monkeypatch.setattr(hash_cache, name, getattr(hash_cache, name))
    saved = flip_bits.Saved(tmp_path)
    slow = {"run", "checkpoint", "model"}
    results = {
        kind: flip_bits.run_kind(kind, saved, flips=1 if kind in slow else 4, cuts=1)
        for kind in flip_bits.KINDS
    }
    wrong = [line for files in results.values() for result in files.values() for line in result["wrong"]]
    assert wrong == []
    for kind in ("manifest", "shards", "tokenizer", "checkpoint", "sweep", "submission"):
        assert {name: result["reported"] for name, result in results[kind].items()} == dict.fromkeys(
            results[kind], 2 if kind in slow else 5
        )
    read = {"config.yaml", "status.json", "metrics.jsonl", "samples.jsonl", ".hydra/overrides.yaml"}
    assert read <= {name for name, result in results["run"].items() if result["reported"]}
