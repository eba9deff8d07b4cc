"""A branch ends as a run that had its schedule from the beginning, and what cannot end so is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from faults import train_and_signal
from trainings import assert_same_result

from krill.runs import checkpoints
from krill.runs.record import read_metrics, read_status

TRUNK = ("scheduler=wsd", "steps=10", "save_every=100", "keep_checkpoints=1", "eval_every=5")
"""Falls in the last fifth, from step 8 on."""
LONGER = ("scheduler=wsd", "steps=12", "scheduler.decay=0.33333", "save_every=100", "eval_every=5")


def steps_saved(run: Path) -> list[int]:
    return [checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(run / "checkpoints")]


@pytest.fixture
def trunk(krill_train: Any) -> Path:
    assert krill_train(*TRUNK) == 0
    return krill_train.runs()[0]


@pytest.mark.parametrize("optimizer", ["muon_moonlight", "adamw"])
def test_it_ends_with_the_bytes_of_a_run_that_had_its_schedule_from_the_beginning(
    optimizer: str, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(*TRUNK, f"optimizer={optimizer}") == 0
    (trunk,) = krill_train.runs()
    assert steps_saved(trunk) == [8, 10], "the one before the decay is kept"
    assert krill_train(*LONGER, f"optimizer={optimizer}") == 0
    straight = krill_train.runs()[-1]
    capsys.readouterr()
    assert krill_train(*LONGER, f"optimizer={optimizer}", f"branch={trunk}") == 0
    branch = krill_train.runs()[-1]
    assert f"going on from step 8 of runs/llama_pico/{trunk.name}" in capsys.readouterr().err
    assert_same_result(branch, straight)
    assert (read_status(branch) or {})["branch"] == {"run": str(trunk), "step": 8}
    assert steps_saved(trunk) == [8, 10]


def test_the_first_step_of_the_branch_has_the_rate_of_its_own_schedule(krill_train: Any, trunk: Path) -> None:
    words = (
        "scheduler=wsd",
        "steps=10",
        "scheduler.decay=0.2",
        "scheduler.decay_shape=sqrt",
        f"branch={trunk}",
    )
    assert krill_train(*words) == 0
    rates = [
        [line["lr/matrices"] for line in read_metrics(run) if "loss" in line] for run in krill_train.runs()
    ]
    assert rates[0][:8] == rates[1][:8]
    assert rates[0][8] > rates[1][8]
    assert all(
        line["lr"] == line["lr/embeddings"] for line in read_metrics(krill_train.runs()[1]) if "lr" in line
    )


def test_stopped_and_started_again_it_goes_on_in_its_own_folder(krill_train: Any, trunk: Path) -> None:
    words = (*LONGER, f"branch={trunk}")
    assert krill_train(*words) == 0
    whole = krill_train.runs()[-1]
    assert train_and_signal(krill_train, signal.SIGTERM, 10, *words) == 75
    stopped = krill_train.runs()[-1]
    assert steps_saved(stopped) == [10]
    assert krill_train(*words) == 0
    assert krill_train.states() == ["finished"] * 3
    assert_same_result(stopped, whole)


def test_a_checkpoint_of_a_constant_rate_and_several_decays_in_a_sweep(krill_train: Any) -> None:
    assert krill_train("scheduler=constant", "steps=6", "save_every=2") == 0
    place = krill_train.runs()[0] / "checkpoints" / "checkpoint-4"
    words = ("-m", "scheduler=wsd", "scheduler.decay=0.2,0.3", "steps=8", f"branch={place}", "name=decays")
    assert krill_train(*words) == 0
    statuses = [read_status(path.parent) for path in (krill_train.outputs / "sweeps").rglob("status.json")]
    assert [status and status["branch"]["step"] for status in statuses] == [4, 4]


def test_the_decay_may_be_on_other_text(krill_train: Any, trunk: Path, tmp_path: Path) -> None:
    text = tmp_path / "other.jsonl"
    text.write_text("".join(json.dumps({"text": f"another fox {n} jumps again"}) + "\n" for n in range(40)))
    words = [*LONGER, f"branch={trunk}", f"data.paths=[{text}]"]
    assert krill_train(*words) == 2
    tokenizer = (read_status(trunk) or {})["tokenizer"]["folder"]
    assert krill_train(*words, "tokenizer=pretrained", f"tokenizer.path={tokenizer}") == 0
    status = read_status(krill_train.runs()[-1]) or {}
    assert status["data"]["signature"] != (read_status(trunk) or {})["data"]["signature"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("lr=1 sequence_len=32", "lr, sequence_len, model, optimizer differ from that run's; write from="),
        ("branch={run}/model", "neither a run of krill nor one of its checkpoints"),
        ("branch={run}/checkpoints/checkpoint-3", "neither a run of krill nor one of its checkpoints"),
        ("branch=nowhere", "neither a run of krill nor one of its checkpoints"),
        ("branch={run}/checkpoints/checkpoint-10", "in the decay (from step 8); branch off in between"),
        ("steps=8", "it has 8 steps already, steps=8 goes no further"),
        ("scheduler.decay=0.5", "write scheduler=wsd scheduler.decay=0.33333333 or less, or more steps"),
        ("scheduler=cosine scheduler.decay=null", "the decay of this schedule would have begun at step 1"),
        ("scheduler.warmup=0.9 scheduler.decay=0.1", "the warm-up of this schedule would last until step 11"),
        ("steps=null epochs=2", "branch= needs steps="),
        ("tokenizer.vocab_size=330", "read its text with another tokenizer; write tokenizer=pretrained"),
    ],
)
def test_what_cannot_go_on_as_if_it_had_always_been_so_is_refused(
    words: str, told: str, krill_train: Any, trunk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = {word.partition("=")[0]: word for word in [*LONGER, f"branch={trunk}"]}
    typed |= {word.partition("=")[0]: word for word in words.format(run=trunk).split()}
    typed = {key: word for key, word in typed.items() if word != "scheduler.decay=null"}
    for arguments in (list(typed.values()), [*typed.values(), "dry_run=true"]):
        capsys.readouterr()
        assert krill_train(*arguments) == 2
        assert told in capsys.readouterr().err
    assert krill_train.runs() == [trunk]


def test_of_a_cosine_there_is_nothing_to_branch_off(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("scheduler=cosine", "steps=4") == 0
    assert krill_train(*LONGER, f"branch={krill_train.runs()[0]}") == 2
    assert "no checkpoint of that run lies between its warm-up and its decay" in capsys.readouterr().err


def test_the_plan_says_where_it_goes_on(
    krill_train: Any, trunk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert krill_train(*LONGER, f"branch={trunk}", "dry_run=true") == 0
    assert f"branch      goes on from step 8 of {trunk}" in capsys.readouterr().out
