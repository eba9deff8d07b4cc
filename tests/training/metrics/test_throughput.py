"""Tests throughput metrics against known answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from krill.data.store import Store
from krill.runs.json_lines import read_metrics
from krill.training.metrics import peak_flops
from krill.training.metrics import throughput as throughput_module
from krill.training.metrics.peak_flops import MATMUL_REPEATS, get_peak_flops
from krill.training.metrics.throughput import ThroughputMeter

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The fake time in seconds, which the test sets."""
    now = {"s": 0.0}
    monkeypatch.setattr(throughput_module, "time", SimpleNamespace(perf_counter=lambda: now["s"]))
    return now


def test_throughput_counts_the_steps_since_the_last_line(clock: dict[str, float]) -> None:
    meter = ThroughputMeter(CPU, flops_per_token=10.0, peak_flops=1000.0)
    meter.add_batch(0, 100, 7.0)  # workers took seven seconds to start
    clock["s"] = 2.0
    metrics = meter.collect_metrics(1, 11)
    assert (metrics["tokens_per_second"], metrics["mfu"], metrics["data_wait"]) == (50.0, 0.5, 0.0)
    assert metrics["seconds_left"] == 20.0
    for step in (1, 2):
        meter.add_batch(step, 30, 0.25)
    clock["s"] = 4.5
    metrics = meter.collect_metrics(3, 11)
    assert (metrics["tokens_per_second"], metrics["data_wait"]) == (24.0, 0.2)
    assert metrics["seconds_left"] == 8 * 1.25


def test_a_pause_is_not_counted(clock: dict[str, float]) -> None:
    meter = ThroughputMeter(CPU)
    meter.add_batch(0, 10, 0.0)
    clock["s"] = 1.0
    with meter.pause():
        clock["s"] = 61.0
    meter.add_batch(1, 10, 0.0)
    clock["s"] = 62.0
    assert meter.collect_metrics(2, 4)["tokens_per_second"] == 10.0


def test_steps_that_a_gpu_has_not_finished_when_a_pause_begins_are_counted(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: clock.update(s=2.0))
    meter = ThroughputMeter(torch.device("cuda"))
    meter.add_batch(0, 10, 0.0)
    clock["s"] = 1.0
    with meter.pause():
        clock["s"] = 62.0
    assert meter.elapsed_seconds == 2.0


def test_a_resumed_run_counts_its_own_steps(clock: dict[str, float]) -> None:
    meter = ThroughputMeter(CPU)
    meter.add_batch(500, 10, 0.0)
    clock["s"] = 1.0
    assert meter.collect_metrics(501, 601)["seconds_left"] == 100.0


def test_without_flops_there_is_no_mfu() -> None:
    assert "mfu" not in ThroughputMeter(CPU).collect_metrics(1, 2)


def test_peak_memory_grows_with_allocations() -> None:
    before = throughput_module.get_peak_memory(CPU)
    allocated = bytearray(throughput_module.get_peak_memory(CPU) + 200_000_000)
    assert throughput_module.get_peak_memory(CPU) >= before + 150_000_000
    del allocated


@pytest.mark.parametrize(("name", "tflops"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756)])
def test_a_known_device_has_the_peak_of_its_data_sheet(
    name: str, tflops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    get_peak_flops.cache_clear()
    assert get_peak_flops("cuda", "bf16", 1) == tflops * 1e12
    assert get_peak_flops("cuda", "tf32", 1) == tflops * 1e12 / 2
    get_peak_flops.cache_clear()


def test_an_unknown_device_is_measured() -> None:
    assert 1e8 < get_peak_flops("cpu", "fp32", 1) < 1e14


def test_a_card_that_is_not_in_the_table_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Unheard-of 1")
    monkeypatch.setattr(peak_flops, "_measure_flops", lambda device, precision: {"cuda": 7.0}[device])
    assert get_peak_flops.__wrapped__("cuda", "bf16", 1) == 7.0


def test_an_unknown_device_is_measured_in_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a dry run, in which nothing has applied the precision before."""
    precisions: list[str] = []

    def time_matmul(a: torch.Tensor) -> float:
        precisions.append(torch.get_float32_matmul_precision())
        return 1.0

    monkeypatch.setattr(peak_flops, "_time_matmul", time_matmul)
    for precision in ("tf32", "fp32"):
        get_peak_flops.__wrapped__("cpu", precision, 1)
    assert precisions == ["high"] * MATMUL_REPEATS + ["highest"] * MATMUL_REPEATS
    assert torch.get_float32_matmul_precision() == "highest"


def test_padding_is_not_counted(
    train_in: Callable[..., Path],
    make_config: Callable[..., Any],
    prepared_data: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[int] = []
    monkeypatch.setattr(
        ThroughputMeter, "add_batch", lambda self, step, tokens, waited: served.append(tokens)
    )
    config = make_config("epochs=1", "batch.micro_batch_size=1", "batch.gradient_accumulation_steps=2")
    monkeypatch.setattr(
        ThroughputMeter, "collect_metrics", lambda *_: {"tokens_per_second": 1.0, "seconds_left": 1.0}
    )
    train_in(config)
    assert sum(served) == Store.open(prepared_data.store).get_split("train").tokens


def test_a_run_records_throughput(train_in: Callable[..., Path], make_config: Callable[..., Any]) -> None:
    lines = [line for line in read_metrics(train_in(make_config("steps=4", "log_every=2"))) if "loss" in line]
    for line in lines:
        assert {"tokens_per_second", "data_wait", "memory_gb", "seconds_left"} <= line.keys()
        assert "mfu" not in line  # on a CPU
        assert 0 <= line["data_wait"] < 1
        assert line["memory_gb"] > 0.1
    assert lines[-1]["seconds_left"] == 0
