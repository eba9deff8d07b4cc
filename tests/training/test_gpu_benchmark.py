"""The benchmark of GPUs runs in miniature on the CPU: its contestants, its smoke checks and its profile."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from krill.config.schema import TrainConfig
from krill.training import run as run_module

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """load("train_gpu"): imports a file of benchmarks/ as a script of this folder would."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("KRILL_OUTPUTS", "")  # the benchmark sets it; restored afterwards
    return import_module


@pytest.fixture
def run_benchmark(
    load: Callable[[str], Any], texts: Path, tmp_path: Path
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """run_benchmark("--smoke"): returns the exit code and the content of the result file."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        result = tmp_path / "result.json"
        overrides = [
            "data=files", f"data.paths=[{texts}]", "data.min_chars=0", "data.validation_fraction=0.2",
            "tokenizer.vocab_size=320", "hardware.threads=1",
        ]  # fmt: skip
        command = ["--device", "cpu", "--tiny", "--result", str(result), *arguments, *overrides]
        return load("train_gpu").main(command), json.loads(result.read_text())

    return run


def test_gpu_benchmark_measures_contestants_and_skips_a_failing_one(
    run_benchmark: Callable[..., tuple[int, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_once = run_module._train_once

    def run_out_of_memory(config: TrainConfig, *arguments: Any) -> Any:
        if config.batch.micro_batch_size == 4:
            raise torch.OutOfMemoryError
        return train_once(config, *arguments)

    monkeypatch.setattr(run_module, "_train_once", run_out_of_memory)
    _, result = run_benchmark("--profile")
    run = result["runs"]["llama_pico, rows of 64"]
    figures = run["contestants"]
    for name, micro_batch in (("krill_eager", 2), ("trainer", 4), ("plain", 4)):
        # all rows of a step, as the estimate of the memory allows, until krill runs out of memory
        assert figures[name]["micro_batch"] == micro_batch
        assert figures[name]["tokens_per_second"] > 0
        assert 0 < figures[name]["mfu"] < 1
        kinds = figures[name]["profile"]["kinds"]
        assert sum(kinds.values()) == pytest.approx(1, abs=1e-3)
        assert all(kinds[kind] > 0 for kind in ("matmul", "attention", "optimizer", "elementwise"))
    assert "needs a CUDA device" in figures["krill_compiled"]["failed"]
    assert any("UsageError" in line for line in figures["krill_compiled"]["log"])
    assert run["hardware"]["processor"] == "cpu"
    assert "needs a CUDA device of compute capability 8.9" in figures["krill_fp8"]["skipped"]
    output = capsys.readouterr().out
    assert "FAILED" in output
    assert "skipped hardware.precision=fp8 needs a CUDA device" in output


def test_smoke_compares_the_ways_and_names_what_is_missing(
    run_benchmark: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    code, result = run_benchmark("--smoke")
    checks = result["checks"]
    assert code == 0
    assert all(checks[name]["passed"] for name in ("varlen", "cpu", "eager_chunked", "sdpa", "waits"))
    attention = {name: checks[name]["attention"] for name in ("cpu", "eager_chunked", "sdpa")}
    assert attention == {"cpu": "eager", "eager_chunked": "varlen", "sdpa": "sdpa"}
    assert checks["sdpa"]["difference_to_cpu"]["largest"] < 1e-4
    assert checks["sdpa"]["difference_to_eager_chunked"]["largest"] < 1e-4
    assert checks["liger_loss"]["skipped"].startswith("cuda")
    assert checks["compiled_default"]["skipped"].startswith("cuda")


def test_smoke_fails_for_other_losses(load: Callable[[str], Any], tmp_path: Path) -> None:
    gpu_smoke = load("gpu_smoke")
    smoke = gpu_smoke.Smoke.__new__(gpu_smoke.Smoke)
    smoke.result, smoke.arguments = {"checks": {}}, SimpleNamespace(result=tmp_path / "result.json")
    others = {"cpu": {"losses": [8.3, 8.2]}}
    for name, losses in (("same", [8.3, 8.205]), ("first", [8.303, 8.2]), ("later", [8.3, 8.25])):
        gpu_smoke.compare_losses(smoke, name, {"losses": losses}, others)
    gpu_smoke.compare_losses(smoke, "failing", {"failed": "no kernel"}, others)
    passed = {name: values["passed"] for name, values in smoke.result["checks"].items()}
    assert passed == {"same": True, "first": False, "later": False, "failing": False}


def test_waits_are_counted_by_the_line_that_waits(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_smoke = load("gpu_smoke")
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    counter = gpu_smoke.WaitCounter("cuda")
    for step in range(1, 20):
        counter.on_step_end(None, SimpleNamespace(global_step=step), None)
        if modes == ["warn"]:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", "default"]
    assert list(counter.lines.values()) == [gpu_smoke.WAIT_STEPS]
    assert next(iter(counter.lines)).startswith("training/test_gpu_benchmark.py:")


def test_every_line_that_is_mutated_exists(load: Callable[[str], Any]) -> None:
    assert len(load("mutate_gpu").list_mutations()) > 40


def test_what_a_child_reports_before_it_fails_or_hangs_is_kept(load: Callable[[str], Any]) -> None:
    run_in_child = load("gpu_child").run_in_child
    reported: list[dict[str, Any]] = []

    def fail(report: Callable[[dict[str, Any]], None]) -> None:
        report({"a": 1})
        print("about to fail")
        raise torch.OutOfMemoryError("3 GB\nof 2 GB")

    outcome = run_in_child(fail, seconds=60, on_report=reported.append)
    assert (outcome.values, reported) == ({"a": 1}, [{"a": 1}])
    assert (outcome.error, outcome.is_out_of_memory) == ("OutOfMemoryError: 3 GB", True)
    assert outcome.log[0] == "about to fail"

    def hang(report: Callable[[dict[str, Any]], None]) -> None:
        report({"a": 2})
        time.sleep(600)

    outcome = run_in_child(hang, seconds=0.5)
    assert (outcome.values, outcome.error) == ({"a": 2}, "stopped after 0 seconds")
    outcome = run_in_child(lambda report: sys.exit(3), seconds=60)
    assert outcome.error == "ended with 3"


def test_figures_are_written_before_their_contestant_ends(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_gpu = load("train_gpu")
    written: list[dict[str, Any]] = []

    def run_until_it_fits(
        arguments: Any, name: str, seconds: float, on_report: Callable[[dict[str, Any]], None], method: str
    ) -> Any:
        figures = {"micro_batch": 8, "tokens_per_second": 100.0 if name == "plain" else 200.0, "mfu": 0.3}
        on_report({"micro_batch": 8})
        on_report(figures)
        if name == "plain":
            raise KeyboardInterrupt
        return train_gpu.Outcome(figures)

    monkeypatch.setattr(train_gpu, "run_until_it_fits", run_until_it_fits)
    arguments = train_gpu.parse_arguments(["--contestants", "krill_compiled", "plain"])
    with pytest.raises(KeyboardInterrupt):
        train_gpu.measure(arguments, "fork", written.append)
    assert written[-1]["contestants"]["plain"]["tokens_per_second"] == 100
    assert written[-1]["bars"] == {
        "krill_compiled / plain": {"bar": 0.95, "measured": 2.0},
        "mfu": {"bar": 0.27, "measured": 0.3},
    }


def test_memory_is_the_peak_of_the_timed_steps(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of an attempt that ran out of memory before."""
    train_gpu = load("train_gpu")
    calls: list[str] = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(train_gpu.Clock, "collect_figures", lambda *_: calls.append("figures"))
    setup = SimpleNamespace(device=torch.device("cuda"))
    arguments = SimpleNamespace(steps=2, profile=False, save=False)
    clock = train_gpu.Clock(setup, arguments, lambda values: None)
    for step in range(1, train_gpu.WARMUP_STEPS + 2):
        clock.on_step_end(step)
    with pytest.raises(train_gpu.Finished):
        clock.on_step_end(train_gpu.WARMUP_STEPS + 2)
    assert calls == ["synchronize", "reset_peak_memory_stats", "synchronize", "figures"]


def test_half_of_the_micro_batch_is_tried_when_memory_runs_out(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_gpu = load("train_gpu")
    sizes: list[int | None] = []

    def run_in_child(*arguments: Any, **_: Any) -> Any:
        size = arguments[-1]
        sizes.append(size)
        return train_gpu.Outcome({"micro_batch": size or 16}, "OutOfMemoryError", size != 4)

    monkeypatch.setattr(train_gpu, "run_in_child", run_in_child)
    arguments = train_gpu.parse_arguments([])
    outcome = train_gpu.run_until_it_fits(arguments, "plain", 60, lambda values: None, "fork")
    assert (sizes, outcome.values) == ([None, 8, 4], {"micro_batch": 4})


def test_a_trace_of_a_gpu_is_summarized_by_kind(load: Callable[[str], Any]) -> None:
    def event(cat: str, name: str, ts: float, dur: float, correlation: int | None = None) -> dict[str, Any]:
        tid = 7 if cat in ("kernel", "gpu_memcpy") else 1
        args = {} if correlation is None else {"correlation": correlation}
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}

    events = [
        {"ph": "M", "name": "process_name"},
        event("cpu_op", "aten::mm", 0, 5),
        event("cuda_runtime", "cudaLaunchKernel", 1, 1, 11),
        event("user_annotation", "Optimizer.step#Muon.step", 10, 10),
        event("cuda_runtime", "cudaLaunchKernel", 12, 1, 12),
        event("cuda_driver", "cuLaunchKernelEx", 13, 1, 13),
        event("kernel", "nvjet_tst_128x256_64x4_1x2_h_bz_NNT", 100, 40, 11),
        event("kernel", "sm90_xmma_gemm_bf16bf16", 150, 10, 12),
        event("kernel", "void at::native::multi_tensor_apply_kernel", 160, 10, 13),
        event("kernel", "void flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass>>", 170, 20, 14),
        event("kernel", "triton_poi_fused_silu", 190, 9, 15),
        event("gpu_memcpy", "Memcpy HtoD", 199, 1, 16),
    ]
    summary = load("gpu_profile").summarize_trace(events)
    kinds = {"matmul": 40, "attention": 20, "elementwise": 9, "optimizer": 20, "copy": 1}
    assert summary["kinds"] == {kind: round(time / 90, 4) for kind, time in kinds.items()}
    assert (summary["milliseconds"], summary["busy"]) == (0.1, 0.9)
    assert summary["top"][0]["kernel"].startswith("nvjet")
