"""A branch ends like a run that had its schedule from the beginning; a branch that could not is rejected."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import train_and_signal
from trainings import assert_same_result, list_checkpoint_steps

from krill.errors import UsageError
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training.checkpoint.branch import resolve_branch

BASE = ("scheduler=wsd", "steps=10", "save_every=100", "keep_checkpoints=1", "eval_every=5")
"""Overrides of the base run, which decays in the last fifth of its steps, from step 8."""
LONGER = ("scheduler=wsd", "steps=12", "scheduler.decay=0.33333", "save_every=100", "eval_every=5")


@pytest.fixture(scope="session")
def base_run(reference_run: Callable[..., Path]) -> Path:
    return reference_run(*BASE)


@pytest.mark.parametrize("optimizer", ["muon_moonlight", "adamw"])
def test_branch_is_bitwise_identical_to_a_run_with_its_schedule_from_the_beginning(
    optimizer: str, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(*BASE, f"optimizer={optimizer}") == 0
    (base_run,) = krill_train.runs()
    assert list_checkpoint_steps(base_run) == [8, 10], "the checkpoint before the decay is kept"
    assert krill_train(*LONGER, f"optimizer={optimizer}") == 0
    straight = krill_train.runs()[-1]
    capsys.readouterr()
    assert krill_train(*LONGER, f"optimizer={optimizer}", f"branch={base_run}") == 0
    branch = krill_train.runs()[-1]
    assert f"resuming from step 8 of runs/llama_pico/{base_run.name}" in capsys.readouterr().err
    assert_same_result(branch, straight)
    assert (read_status(branch) or {})["branch"] == {"run": str(base_run), "step": 8, "restart": None}
    assert list_checkpoint_steps(base_run) == [8, 10]


def test_branch_follows_its_own_schedule_from_its_first_step(krill_train: Any, base_run: Path) -> None:
    overrides = (
        "scheduler=wsd",
        "steps=10",
        "scheduler.decay=0.2",
        "scheduler.decay_shape=sqrt",
        f"branch={base_run}",
    )
    assert krill_train(*overrides) == 0
    (branch,) = krill_train.runs()
    base_rates, rates = (
        [line["lr/matrices"] for line in read_metrics(run) if "loss" in line] for run in (base_run, branch)
    )
    assert base_rates[:8] == rates[:8]
    assert base_rates[8] > rates[8]
    assert all(
        line["lr"] == pytest.approx(line["lr/matrices"]) for line in read_metrics(branch) if "lr" in line
    )


def test_interrupted_branch_resumes_in_its_own_folder(
    krill_train: Any, base_run: Path, reference_run: Callable[..., Path]
) -> None:
    overrides = (*LONGER, f"branch={base_run}")
    undisturbed = reference_run(*overrides)
    assert train_and_signal(krill_train, signal.SIGTERM, 10, *overrides) == 75
    (interrupted,) = krill_train.runs()
    assert list_checkpoint_steps(interrupted) == [10]
    assert krill_train(*overrides) == 0
    assert krill_train.states() == ["finished"]
    assert_same_result(interrupted, undisturbed)


def test_sweep_of_decays_branches_off_one_checkpoint_of_a_constant_schedule(krill_train: Any) -> None:
    assert krill_train("scheduler=constant", "steps=6", "save_every=2") == 0
    checkpoint = krill_train.runs()[0] / "checkpoints" / "checkpoint-4"
    overrides = (
        "-m", "scheduler=wsd", "scheduler.decay=0.2,0.3", "steps=8", f"branch={checkpoint}", "name=decays",
    )  # fmt: skip
    assert krill_train(*overrides) == 0
    statuses = [read_status(path.parent) for path in (krill_train.outputs / "sweeps").rglob("status.json")]
    assert [status and status["branch"]["step"] for status in statuses] == [4, 4]


def test_decay_on_other_text_keeps_the_tokenizer_of_the_base_run(
    krill_train: Any, base_run: Path, tmp_path: Path
) -> None:
    text = tmp_path / "other.jsonl"
    text.write_text("".join(json.dumps({"text": f"another fox {n} jumps again"}) + "\n" for n in range(40)))
    overrides = [*LONGER, f"branch={base_run}", f"data.paths=[{text}]"]
    assert krill_train(*overrides) == 2
    tokenizer = (read_status(base_run) or {})["tokenizer"]["folder"]
    assert krill_train(*overrides, "tokenizer=pretrained", f"tokenizer.path={tokenizer}") == 0
    status = read_status(krill_train.runs()[-1]) or {}
    assert status["data"]["signature"] != (read_status(base_run) or {})["data"]["signature"]
    assert status["data"]["validation_set"] != (read_status(base_run) or {})["data"]["validation_set"]
    epochs = read_metrics(krill_train.runs()[-1])[-1]["epoch"]
    assert status["verdict"]["epochs"] == pytest.approx(epochs * 4 / 12, rel=1e-3), "of the new text"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("lr=1 sequence_len=32", "lr, sequence_len, model, optimizer differ from that run's; use from="),
        ("branch={run}/model", "no run, and no checkpoint in it"),
        ("branch={run}/checkpoints/checkpoint-3", "not the name of a run or sweep, nor a folder"),
        ("branch=nowhere", "not the name of a run or sweep, nor a folder"),
        ("branch={run}/checkpoints/checkpoint-10", "in the decay (from step 8); use a checkpoint in between"),
        ("steps=8", "the checkpoint is at step 8 already; use steps= with more than 8 (it is 8)"),
        ("scheduler.decay=0.5", "use scheduler=wsd scheduler.decay=0.33333333 or less, or more steps"),
        ("scheduler=cosine scheduler.decay=null", "the decay of this schedule would have started at step 1"),
        ("scheduler.warmup=0.9 scheduler.decay=0.1", "the warm-up of this schedule would last until step 11"),
        ("steps=null epochs=2", "branch= needs the steps of the whole run"),
        ("tokenizer.vocab_size=330", "that run used another tokenizer; use tokenizer=pretrained"),
    ],
)
def test_branch_that_cannot_match_a_straight_run_is_rejected(
    changes: str, message: str, krill_train: Any, base_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {text.partition("=")[0]: text for text in [*LONGER, f"branch={base_run}"]}
    overrides |= {text.partition("=")[0]: text for text in changes.format(run=base_run).split()}
    overrides = {key: text for key, text in overrides.items() if text != "scheduler.decay=null"}
    for arguments in (list(overrides.values()), [*overrides.values(), "dry_run=true"]):
        capsys.readouterr()
        assert krill_train(*arguments) == 2
        assert message in capsys.readouterr().err
    assert krill_train.runs() == []


def test_cosine_run_has_no_checkpoint_to_branch_off(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("scheduler=cosine", "steps=4") == 0
    assert krill_train(*LONGER, f"branch={krill_train.runs()[0]}") == 2
    assert "no checkpoint of that run is between its warm-up and its decay" in capsys.readouterr().err


def test_dry_run_shows_the_step_of_the_branch(
    krill_train: Any, base_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert krill_train(*LONGER, f"branch={base_run}", "dry_run=true") == 0
    assert f"branch      from step 8 of {base_run}" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["steps", "rows_per_step", "tokenizer"])
def test_a_status_without_a_key_is_reported(tmp_path: Path, key: str) -> None:
    status = {"signature": "5" * 8, "state": "finished", "steps": 4, "rows_per_step": 2, "tokenizer": {}}
    (tmp_path / "status.json").write_text(json.dumps(status | {key: None}))
    with pytest.raises(UsageError, match=rf"status\.json of that run has no {key}; restore it"):
        resolve_branch(str(tmp_path))
