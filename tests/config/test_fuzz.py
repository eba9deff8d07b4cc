"""A few cases of benchmarks/fuzz_config.py: whatever the configuration is, a command ends with 0 or 2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import krill

BENCHMARK = Path(krill.__file__).parents[1] / "benchmarks" / "fuzz_config.py"


@pytest.mark.parametrize("seed", [11, 12])
def test_random_configurations_end_with_0_or_2(seed: int):
    spec = importlib.util.spec_from_file_location("fuzz_config", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    codes, failures = benchmark.fuzz(cases=3, seed=seed)
    assert failures == []
    assert sum(codes.values()) == 3
