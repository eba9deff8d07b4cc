"""Each piece of advice, typed on the command line, does what it says: the run fits, or is planned to be faster."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compositions import load_config

from krill.cli import app, plan
from krill.device_table import get_device
from krill.plan.advice import format_share, list_advice
from krill.plan.run_plan import RunPlan, build_run_plan
from krill.plan.text import TrainingText

BIG = ["model=llama_1b", "tokenizer=bpe_32k", "plan.device=h100", "steps=1000"]


@pytest.fixture
def make_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """make_plan("steps=5", …): the figures of krill-plan, its advice among them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)

    def run(*overrides: str) -> dict[str, Any]:
        assert app.main("plan", plan.run_task, [*overrides, "format=json"]) == 0
        values: dict[str, Any] = json.loads(capsys.readouterr().out)
        return values

    return run


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([*BIG, "batch.micro_batch_size=64"],
         ["batch.micro_batch_size", "hardware.gradient_checkpointing"]),
        ([*BIG, "batch.tokens=524288", "batch.micro_batch_size=64"],
         ["batch.micro_batch_size", "hardware.gradient_checkpointing"]),
        ([*BIG, "hardware.loss=full", "batch.micro_batch_size=15"], ["hardware.loss"]),
        ([*BIG, "hardware.precision=fp32", "batch.micro_batch_size=12"], ["hardware.precision"]),
        ([*BIG, "model=llama_3b", "plan.device=rtx4090", "batch.micro_batch_size=1"],
         ["hardware.sharding", "plan.count"]),
        ([*BIG, "model=llama_3b", "plan.device=rtx4090", "plan.count=8", "batch.micro_batch_size=1"],
         ["hardware.sharding"]),
    ],
)  # fmt: skip
def test_what_is_said_to_fit_fits(make_plan: Any, overrides: list[str], expected: list[str]) -> None:
    before = make_plan(*overrides)
    assert not before["memory"]["fits"]
    fitting = [advice for advice in before["advice"] if advice["kind"] == "fit"]
    keys = {override.partition("=")[0] for advice in fitting for override in advice["overrides"]}
    assert set(expected) <= keys
    same = (
        one for one in fitting if "plan.count" not in str(one) and "changes the result" not in one["reason"]
    )
    ratios = [advice["time_ratio"] for advice in same]
    assert ratios == sorted(ratios)
    for advice in fitting:
        after = make_plan(*overrides, *advice["overrides"])
        assert after["memory"]["fits"], advice
        if advice["reason"].startswith("the same rows"):
            assert (after["tokens_per_step"], after["tokens"]) == (
                before["tokens_per_step"],
                before["tokens"],
            )
        ratio = after["seconds"]["total"] / before["seconds"]["total"]
        assert ratio == pytest.approx(advice["time_ratio"], rel=0.01), advice


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([*BIG, "hardware.precision=fp32", "batch.micro_batch_size=2"], "hardware.precision=bf16"),
        ([*BIG, "hardware.compile=false", "steps=5000", "batch.micro_batch_size=2"], "hardware.compile=true"),
        ([*BIG, "hardware.gradient_checkpointing=true", "batch.micro_batch_size=2"],
         "hardware.gradient_checkpointing=false"),
        ([*BIG, "eval_every=1", "steps=5000", "batch.micro_batch_size=2"], "eval_every="),
        ([*BIG, "save_every=2", "batch.micro_batch_size=2"], "save_every="),
        ([*BIG, "evaluation.every=10", "evaluation.limit=25", "batch.micro_batch_size=8", "batch.tokens=null",
          "steps=10000"],
         "evaluation.every="),
    ],
)  # fmt: skip
def test_what_is_said_to_be_faster_is_faster(make_plan: Any, overrides: list[str], expected: str) -> None:
    before = make_plan(*overrides)
    (advice,) = (one for one in before["advice"] if one["overrides"][0].startswith(expected))
    after = make_plan(*overrides, *advice["overrides"])
    ratio = after["seconds"]["total"] / before["seconds"]["total"]
    assert ratio < 1
    assert ratio == pytest.approx(advice["time_ratio"], rel=0.01)
    assert not [one for one in after["advice"] if one["overrides"][0].startswith(expected)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["steps=100000"], "steps="),  # more than four epochs of the built-in text
        (["epochs=9"], "epochs=4"),
        (["plan.device=h100", "hardware.loss=full", "tokenizer.vocab_size=5001"], "tokenizer.multiple_of=64"),
        (["plan.device=h100", "model.intermediate_size=1000"], "model.intermediate_size=1024"),
        (["plan.device=h100", "model.head_dim=12"], "model.head_dim=16"),
        (["plan.device=h100", "steps=1000", "batch.tokens=8388608"], "batch.tokens="),
        (["steps=10", "model=llama_pico", "sequence_len=64"], "steps="),  # few tokens for its parameters
        (["scheduler.warmup=0.5"], "scheduler.warmup=0.01"),
    ],
)  # fmt: skip
def test_what_is_advised_is_not_advised_again(make_plan: Any, overrides: list[str], expected: str) -> None:
    before = (
        make_plan(*overrides, "device=cpu") if "plan.device=h100" not in overrides else make_plan(*overrides)
    )
    advice = next(one for one in before["advice"] if one["overrides"][0].startswith(expected))
    device = [] if "plan.device=h100" in overrides else ["device=cpu"]
    after = make_plan(*overrides, *device, *advice["overrides"])
    assert advice["reason"] not in [one["reason"] for one in after["advice"]]
    assert not [one for one in after["advice"] if one["overrides"] == advice["overrides"]]


def plan_padded(*overrides: str) -> RunPlan:
    """Returns the plan of a run whose documents leave 40 % of rows that are packed best-fit empty."""
    text = TrainingText(10**6, 100.0, "a test", is_exact=True, best_fit_padding=0.4)
    return build_run_plan(
        load_config(*overrides, "data.validation_fraction=0.0"), 4096, get_device("h100"), text
    )


def test_padding_is_advised_against() -> None:
    by_epochs = plan_padded("epochs=1", "steps=null")
    (advice,) = (one for one in list_advice(by_epochs) if one.overrides == ("packing=wrapped",))
    changed = plan_padded("epochs=1", "steps=null", "packing=wrapped")
    assert changed.steps == pytest.approx(0.6 * by_epochs.steps, rel=0.01)
    assert changed.time.total / by_epochs.time.total == pytest.approx(advice.time_ratio, rel=0.01)
    assert "40 % of the positions are padding" in advice.reason
    by_steps = plan_padded("steps=300")
    assert ("packing=wrapped",) in [one.overrides for one in list_advice(by_steps)]
    for plan_after in (changed, plan_padded("steps=300", "packing=wrapped")):
        assert not [one for one in list_advice(plan_after) if one.overrides == ("packing=wrapped",)]


def test_half_of_the_vocabulary_is_advised_where_nothing_else_fits(make_plan: Any) -> None:
    big = ["tokenizer=bpe_32k", "tokenizer.vocab_size=524288", "plan.device=t4", "batch.micro_batch_size=1",
           "model.hidden_size=2048", "model.head_dim=64"]  # fmt: skip
    before = make_plan(*big)
    assert not before["memory"]["fits"]
    (advice,) = (one for one in before["advice"] if one["overrides"][0].startswith("tokenizer.vocab_size="))
    after = make_plan(*big, *advice["overrides"])
    assert after["memory"]["fits"]
    assert after["vocabulary"] == pytest.approx(before["vocabulary"] / 2, rel=0.01)


def test_a_sensible_run_gets_no_advice() -> None:
    config = load_config(
        "steps=4000", "batch.tokens=65536", "sequence_len=512", "eval_every=1000", "save_every=1000"
    )
    text = TrainingText(200_000_000, 200.0, "a test", is_exact=True)
    sensible = build_run_plan(config, 4096, get_device("h100"), text)
    assert sensible.fits
    assert list_advice(sensible) == []


def test_a_time_is_on_other_devices_only_where_their_number_changes(make_plan: Any) -> None:
    plan = make_plan("model=llama_1b", "tokenizer=bpe_32k", "plan.device=l4")
    (reason,) = (
        one["reason"] for one in plan["advice"] if one["overrides"][0].startswith("batch.micro_batch_size")
    )
    assert reason.endswith(" × the time, as a run of this many passes is compiled")
    plan = make_plan("model=llama_3b", "tokenizer=bpe_32k", "plan.device=rtx4090", "steps=10000")
    (reason,) = (one["reason"] for one in plan["advice"] if "plan.count=8" in one["overrides"])
    assert reason.endswith(" × the time on 8 devices")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5, "50 % of the memory"), (0.97, "97 % of the memory, narrowly"), (1.5, "150 % of the memory")],
)
def test_a_plan_says_when_it_fits_narrowly(share: float, text: str) -> None:
    config, h100 = load_config("model=llama_nano"), get_device("h100")
    total = build_run_plan(config, 4096, h100).memory.total
    assert format_share(build_run_plan(config, 4096, replace(h100, memory=round(total / share)))) == text


def test_nothing_fits_is_said_in_one_line(make_plan: Any, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model=llama_3b", "plan.device=t4", "hardware=slurm_gpu", "tokenizer=bpe_32k"]
    assert app.main("plan", plan.run_task, overrides) == 0
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning"))
    assert warning.startswith(
        "warning     not enough memory, and no change that krill knows makes it fit; use"
    )


@pytest.mark.parametrize("steps", [10, 10_000])
def test_advised_steps_count_with_a_batch_that_follows_them(steps: int) -> None:
    """More steps make batch.tokens=auto larger, up to a bound."""
    plan_before = build_run_plan(load_config(f"steps={steps}"), 4096, get_device("h100"), TEXT)
    (advice,) = (one for one in list_advice(plan_before) if one.overrides[0].startswith("steps="))
    changed = build_run_plan(load_config(*advice.overrides), 4096, get_device("h100"), TEXT)
    target = 20 * plan_before.architecture.parameters if steps == 10 else 4 * TEXT.tokens
    is_bounded = steps != 10  # by the batch of compute-optimal tokens
    assert (plan_before.tokens_per_step == changed.tokens_per_step) == is_bounded
    assert changed.tokens == pytest.approx(target, rel=0.15)


TEXT = TrainingText(13_000_000, 200.0, "a test", is_exact=True)
