"""What krill-plan budget= proposes costs the budget, fits, and is a command line that composes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from compositions import load_config
from planned_models import CPU

from krill.cli import app, plan
from krill.config.schema.plan import parse_budget
from krill.config.size_rule import compute_batch_of_tokens
from krill.device_table import get_device
from krill.errors import UsageError
from krill.plan.budget import Preset, Proposal, format_proposals, propose_runs
from krill.plan.run_plan import build_run_plan

H100 = get_device("h100")
NAMES = ("llama_nano", "llama_micro", "llama_125m", "llama_350m", "llama_3b")


def list_presets(*overrides: str, device: Any = H100) -> list[Preset]:
    return [
        Preset(
            name,
            build_run_plan(load_config(f"model={name}", "tokenizer=bpe_32k", *overrides), 32_000, device),
            partial(find_lr, name),
        )
        for name in NAMES
    ]


def find_lr(name: str, steps: int) -> float:
    return load_config(f"model={name}", f"steps={steps}").lr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e19", (1e19, "flops")), ("3.5e20", (3.5e20, "flops")), ("8h", (28_800, "seconds")),
        ("90m", (5400, "seconds")), ("2d", (172_800, "seconds")), ("1.5h", (5400, "seconds")),
    ],
)  # fmt: skip
def test_budgets(text: str, expected: tuple[float, str]) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["much", "0", "-1h", "8x", "", "nan", "inf"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="use budget=1e19, 90m, 8h or 2d"):
        parse_budget(text)


def test_flops_are_spent_on_the_model_nearest_to_compute_optimal() -> None:
    proposals = propose_runs(list_presets(), "1e19")
    assert {proposal.model for proposal in proposals} == set(NAMES)
    for proposal in proposals:
        assert proposal.plan.flops == pytest.approx(1e19, rel=0.01)
        assert proposal.plan.tokens_per_step == pytest.approx(
            compute_batch_of_tokens(proposal.plan.tokens or 0), rel=0.02
        )
        trained = load_config(*proposal.command.split()[1:], "tokenizer=bpe_32k")
        assert proposal.plan.config.lr == trained.lr == trained.optimizer.lr
    assert proposals[0].model == "llama_350m"
    assert proposals[0].plan.config.lr == pytest.approx(0.27 * 1e19**-0.125, rel=0.1)
    assert [one.distance for one in proposals] == sorted(one.distance for one in proposals)


def test_a_time_is_kept_on_the_devices_of_the_plan() -> None:
    one, eight = (
        propose_runs(list_presets(f"hardware.processes={count}", "batch.tokens=null"), "8h")
        for count in (1, 8)
    )
    for proposal in (*one, *eight):
        assert proposal.plan.time is not None
        assert 0.95 * 8 < proposal.plan.time.total / 3600 < 1.01 * 8
    assert eight[0].plan.flops > 6 * one[0].plan.flops


def test_a_model_that_needs_it_is_checkpointed_or_sharded() -> None:
    l4 = get_device("l4")
    by_name = {one.model: one for one in propose_runs(list_presets(device=l4), "1e20")}
    assert by_name["llama_350m"].plan.fits
    assert not by_name["llama_3b"].plan.fits
    ranks = {one.model: one for one in propose_runs(list_presets("hardware.processes=8", device=l4), "1e20")}
    assert ranks["llama_3b"].plan.fits
    assert "hardware.sharding=fsdp2" in ranks["llama_3b"].overrides
    assert [one.plan.fits for one in propose_runs(list_presets(device=l4), "1e20")] == [True] * 4 + [False]


def test_a_budget_that_is_too_small_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"budget=1e9: less than 10 steps of the smallest preset; use a larger budget"
    ):
        propose_runs(list_presets(device=CPU), "1e9")
    with pytest.raises(UsageError, match="less than 10 steps"):
        propose_runs(list_presets(device=CPU), "0.2m")


def test_a_budget_that_no_run_can_spend_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"budget=1e30: more than any preset can be trained for; use a smaller"
    ):
        propose_runs(list_presets(), "1e30")


def test_the_command_keeps_the_other_arguments() -> None:
    best = propose_runs(list_presets(), "1e19", ["tokenizer=bpe_32k", "batch.micro_batch_size=3", "seed=4"])[
        0
    ]
    words = best.command.split()
    assert words[:4] == ["krill-train", f"model={best.model}", "tokenizer=bpe_32k", "seed=4"]
    assert sum(word.startswith("batch.micro_batch_size=") for word in words) == 1
    planned = load_config(*words[1:])
    assert planned.steps == best.plan.steps
    accumulated = Proposal(
        "llama_3b", ("batch.tokens=256",), best.plan, ("batch.gradient_accumulation_steps=2",)
    )
    assert accumulated.command == "krill-train model=llama_3b batch.tokens=256", (
        "keys that exclude each other"
    )
    ranks = Proposal("llama_3b", (), list_presets("hardware.processes=8")[-1][1])
    assert ranks.command == "krill-train model=llama_3b hardware.processes=8"


def test_a_batch_that_is_set_is_kept() -> None:
    preset = list_presets("batch.tokens=65536")[2]
    arguments = ["batch.tokens=65536", "batch.gradient_accumulation_steps=null"]
    (proposal,) = propose_runs([preset._replace(batch_tokens=65_536)], "1e19", arguments)
    assert proposal.plan.tokens_per_step == 65_536
    assert proposal.plan.flops == pytest.approx(1e19, rel=0.01)
    assert "batch.tokens=65536" in proposal.command
    assert "gradient_accumulation_steps" not in proposal.command
    with pytest.raises(UsageError, match="less than 10 steps"):
        propose_runs([preset._replace(batch_tokens=2**22)], "1e15")


def test_the_lines_say_what_is_set_and_what_fits_narrowly() -> None:
    (proposal,) = propose_runs(list_presets()[:1], "1e19")
    setting = proposal.plan.setting
    device = replace(setting.device, memory=int(proposal.plan.memory.total / 0.95))
    narrow = replace(proposal, plan=replace(proposal.plan, setting=replace(setting, device=device)))
    lines = format_proposals([narrow], "1e19", None, has_own_lr=True, has_own_batch=True)
    assert "  narrowly  " in lines[2]
    assert lines[-2].endswith("batch as set, lr as set")


def test_the_proposal_of_the_command_is_planned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    arguments = ["tokenizer=bpe_32k", "plan.device=a100", "optimizer=adamw"]
    assert app.main("plan", plan.run_task, [*arguments, "budget=1e18"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "budget      1e+18 FLOP on 1 × a100"
    assert "lr by rule=" in lines[-2]
    command = lines[-1].removeprefix("propose     ").split()
    assert command[0] == "krill-train"
    assert "optimizer=adamw" in command
    assert not [word for word in command if word.startswith("plan.")]
    assert app.main("plan", plan.run_task, [*command[1:], "plan.device=a100", "format=json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["flops"] == pytest.approx(1e18, rel=0.02)
    assert planned["memory"]["fits"]
    assert app.main("plan", plan.run_task, ["-m", "seed=1,2", "budget=1e18", "plan.device=a100"]) != 0
    assert "leave -m out" in capsys.readouterr().err
