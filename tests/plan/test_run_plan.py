"""The figures of a plan follow from each other, and from what is known about its tokens and its device."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compositions import load_config
from planned_models import CPU

from krill.config.schema import PlanOptionsConfig
from krill.data.packing import pack
from krill.device_table import get_device
from krill.errors import UsageError
from krill.models.build import build_meta_model
from krill.models.cost import compute_mean_attention_span, compute_training_flops
from krill.plan.calibration import estimate_utilization
from krill.plan.report import format_bytes, format_duration, format_plan
from krill.plan.run_plan import NO_OPTIONS, RunPlan, build_run_plan
from krill.plan.setting import describe_cpu
from krill.plan.text import TrainingText, compute_mean_attended_tokens, estimate_best_fit_padding
from krill.resources import count_cpu_cores

VOCAB_SIZE = 320
H100 = get_device("h100")
TEXT = TrainingText(100_000, None, "of a test", is_exact=True)


def plan(*overrides: str, device: Any = CPU, text: TrainingText | None = None, **options: Any) -> RunPlan:
    chosen = PlanOptionsConfig.model_validate(NO_OPTIONS.model_dump() | options)
    return build_run_plan(load_config(*overrides), VOCAB_SIZE, device, text, chosen)


def parse_lines(lines: list[str]) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in lines)


# --- tokens and FLOPs --------------------------------------------------------------------------------------


def test_flops_are_those_of_all_tokens() -> None:
    each = compute_training_flops(build_meta_model(load_config().model, VOCAB_SIZE), 256)
    planned = plan("steps=50", "batch.micro_batch_size=2", "batch.gradient_accumulation_steps=3")
    assert planned.tokens == 50 * 2 * 3 * 256
    assert planned.flops == pytest.approx(planned.tokens * each)
    shorter = plan("steps=50", text=TrainingText(10**6, 3.0, "", is_exact=True))
    assert shorter.token_flops.total == compute_training_flops(
        build_meta_model(load_config().model, VOCAB_SIZE), 256, 3.0
    )


def test_epochs_and_steps_follow_from_each_other() -> None:
    by_epochs = plan("epochs=2", "batch.micro_batch_size=4", text=TEXT)
    assert by_epochs.steps == math.ceil(2 * math.ceil(100_000 / 256) / 4)
    by_steps = plan("steps=100", "batch.micro_batch_size=4", text=TEXT)
    assert by_steps.epochs == 100 * 4 * 256 / 100_000
    unknown = plan("epochs=2")
    assert (unknown.steps, unknown.flops, unknown.time, unknown.price) == (None, None, None, None)
    lines = parse_lines(format_plan(unknown))
    assert lines["tokens"] == "2 epochs; the number is known once the tokens are prepared"
    assert not {"flops", "time"} & set(lines)


def test_repeated_tokens_are_worth_less_than_new_ones() -> None:
    """Muennighoff et al. 2023: four epochs are nearly as good as new tokens, 40 are not."""
    worth = {epochs: plan(f"epochs={epochs}", text=TEXT) for epochs in (1, 4, 40)}
    shares = {epochs: each.useful_tokens / each.tokens for epochs, each in worth.items()}  # type: ignore[operator]
    assert shares[1] == 1
    assert 0.9 < shares[4] < 1
    assert shares[40] < 0.5
    assert "epochs are worth" not in parse_lines(format_plan(worth[4]))["data"]
    assert "40 epochs are worth" in parse_lines(format_plan(worth[40]))["data"]


def test_mean_attended_tokens_of_documents_cut_into_rows() -> None:
    lengths = [3, 64, 65, 200, 1]
    pieces = [3, 64, 64, 1, 64, 64, 64, 8, 1]
    ends = np.cumsum(lengths).astype(np.uint64)
    assert compute_mean_attended_tokens(ends, 64) == pytest.approx(compute_mean_attention_span(pieces))


# --- time, money, energy -----------------------------------------------------------------------------------


def test_time_is_that_of_the_flops_at_the_mfu() -> None:
    given = plan("steps=1000", "optimizer=adamw", device=H100, mfu=0.5)
    assert given.time is not None
    assert given.time.parts["steps"] == pytest.approx(given.flops / 0.5 / 989e12)
    assert given.time.total == sum(given.time.parts.values())
    assert given.time.shortest == given.time.longest == given.time.total
    assumed = plan("steps=1000", device=H100)
    assert assumed.time is not None
    assert assumed.time.shortest < assumed.time.total < assumed.time.longest
    assert "(assumed)" in parse_lines(format_plan(assumed))["time"]
    checkpointed = plan("steps=1000", "hardware.gradient_checkpointing=true", device=H100, mfu=0.5)
    assert checkpointed.time is not None
    each = given.token_flops  # the head is not computed again
    recomputed = (4 / 3 * (each.dense + each.attention) + each.head) / each.total
    assert checkpointed.time.parts["steps"] == pytest.approx(recomputed * given.time.parts["steps"])


def test_ranks_share_the_time_of_a_step() -> None:
    one, eight = (
        plan("steps=1000", "batch.tokens=65536", f"hardware.processes={count}", device=H100, mfu=0.5)
        for count in (1, 8)
    )
    assert one.tokens == eight.tokens
    assert one.time is not None
    assert eight.time is not None
    assert one.time.parts["steps"] == pytest.approx(8 * eight.time.parts["steps"])
    assert one.time.parts["optimizer"] > eight.time.parts["optimizer"] > one.time.parts["optimizer"] / 8


def test_price_and_energy_are_those_of_all_devices() -> None:
    planned = plan("steps=1000", "hardware.processes=4", device=H100, price_per_hour=3.0)
    assert planned.time is not None
    hours = planned.time.total / 3600 * 4
    assert planned.price == pytest.approx(3 * hours)
    assert planned.energy == pytest.approx(0.7 * hours)
    assert plan("steps=1000", "hardware.processes=4").energy is None  # a CPU has no power in the table


def test_validation_and_saving_take_time() -> None:
    often = ("steps=1000", "eval_every=10", "save_every=10")
    rare, frequent = plan("steps=1000", text=TEXT), plan(*often, text=TEXT)
    assert rare.time is not None
    assert frequent.time is not None
    for part in ("validation", "saving"):
        assert frequent.time.parts[part] == pytest.approx(10 * rare.time.parts[part])
    assert plan("steps=1000", "save_in_background=true").time.parts["saving"] == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("parameters", "status"), [(2_361_024, "measured"), (6_000_000, "interpolated"), (10**9, "assumed")]
)
def test_the_plan_says_how_sure_the_mfu_is(parameters: int, status: str) -> None:
    used = estimate_utilization("cpu", False, parameters)
    assert used.status == status
    assert 0.4 <= used.mfu <= 0.6
    assert estimate_utilization("cuda", True, parameters).status == "assumed"
    assert estimate_utilization("cuda", True, parameters, 0.3).status == "given"


def test_larger_models_use_a_gpu_better() -> None:
    used = [estimate_utilization("cuda", True, size).mfu for size in (10**6, 10**8, 3 * 10**8, 10**9, 10**11)]
    assert used == sorted(used)


# --- disk --------------------------------------------------------------------------------------------------


def test_checkpoints_are_those_kept_and_the_one_that_is_written() -> None:
    assert plan("keep_checkpoints=2", "keep_best=false").checkpoints == 3
    more = ("keep_checkpoints=2", "scheduler=wsd", "save_every=2")
    assert plan(*more).checkpoints == 5
    assert plan(*more, "steps=3").checkpoints == 2  # at steps 2 and 3
    assert plan(*more, "epochs=1").checkpoints == 5
    sharded = plan("hardware.processes=2", "hardware.sharding=fsdp2", device=H100)
    assert sharded.disk == plan("hardware.processes=2", device=H100).disk


# --- devices -----------------------------------------------------------------------------------------------


def test_a_device_without_the_precision_is_refused() -> None:
    v100 = get_device("v100")
    assert plan(device=v100).setting.precision == "fp32"
    assert plan(device=v100).setting.attention == "sdpa"
    with pytest.raises(UsageError, match=r"v100 does not compute in it; use hardware\.precision=auto"):
        plan("hardware.precision=bf16", device=v100)
    with pytest.raises(UsageError, match="fp8 needs a CUDA device"):
        plan("hardware.precision=fp8")
    assert plan("hardware.precision=fp8", device=H100).setting.peak_flops == H100.peak_flops["bf16"]


def test_a_long_run_on_a_gpu_is_compiled() -> None:
    assert plan("steps=2000", device=H100).setting.is_compiled(2000)
    assert not plan(device=H100).setting.is_compiled(1999)
    assert plan("batch.gradient_accumulation_steps=2", device=H100).setting.is_compiled(1000)
    assert not plan("hardware.compile=false", device=H100).setting.is_compiled(10**6)
    assert not plan().setting.is_compiled(10**6)


@pytest.mark.parametrize(
    ("variable", "threads"),
    [("3", 3), ("4,2", 4), ("abc", None), ("0", None), ("-1", None), ("", None), ("9" * 30, None)],
)
def test_threads_that_openmp_does_not_take_are_ignored(
    monkeypatch: pytest.MonkeyPatch, variable: str, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    expected = threads or max(1, count_cpu_cores())
    assert plan("hardware.threads=null").setting.threads == expected
    assert describe_cpu(expected).peak_flops["fp32"] > 0


def test_ranks_on_one_cpu_share_its_memory_and_its_speed() -> None:
    one, four = plan(), plan("hardware.processes=4")
    assert four.setting.memory_per_rank == one.setting.memory_per_rank // 4
    assert four.setting.peak_flops == one.setting.peak_flops / 4
    assert (one.num_devices, four.num_devices) == (1, 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "3.0 s"), (3661, "1:01:01"), (90_000, "1 day, 1:00:00"), (1e12, "more than 1,000 years")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_bytes() -> None:
    assert (format_bytes(12.34e9), format_bytes(5e5)) == ("12.3 GB", "0.5 MB")


def test_the_padding_of_a_prepared_text_is_that_of_its_rows() -> None:
    random = np.random.default_rng(0)
    ends = np.cumsum(random.integers(1, 300, size=2000)).astype(np.uint64)
    stream = SimpleNamespace(ends=ends, pad_id=0)
    for sequence_len in (64, 160, 512):
        rows = pack(stream, sequence_len, "best_fit")  # type: ignore[arg-type]
        assert estimate_best_fit_padding(ends, sequence_len) == pytest.approx(rows.padding_fraction)


def test_an_mfu_above_one_is_not_printed() -> None:
    run = plan("steps=20")
    assert run.time is not None
    impossible = replace(run.time, utilization=replace(run.time.utilization, mfu=6.6))
    vars(run)["time"] = impossible
    (line,) = [line for line in format_plan(run) if line.startswith("time ")]
    assert "MFU unknown, as the device was measured while it was busy (" in line
