"""A run that was stopped anywhere goes on by the same command and ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from faults import train_and_kill, train_and_signal
from filelock import FileLock
from trainings import assert_same_result

from krill.runs import checkpoints
from krill.runs.record import read_metrics, read_status


@pytest.fixture
def undisturbed(krill_train: Any) -> Any:
    """undisturbed("lr=1"): the folder of a run that nothing stopped; the same command then begins anew."""

    def work(*words: str) -> Path:
        assert krill_train(*words) == 0
        return krill_train.runs()[-1]

    return work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "when", "words"),
    [
        (7, "between", ("optimizer=adamw", "steps=8", "save_every=4", "eval_every=5")),
        (5, "saving", ("optimizer=muon_moonlight", "steps=8", "log_every=3", "save_every=4", "eval_every=4")),
        (21, "between", ("optimizer=muon_keller", "epochs=2", "steps=null", "save_every=5", "log_every=7")),
    ],
    ids=["adamw", "muon while saving", "in the second epoch"],
)
def test_killed_and_started_again_it_ends_with_the_same_bytes(
    step: int, when: str, words: tuple[str, ...], krill_train: Any, undisturbed: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole = undisturbed(*words)
    if "epochs=2" in words:
        assert step * 2 > len_of_rows(whole), "not yet in the second epoch"

    train_and_kill(krill_train, step, when, *words)
    assert sorted(krill_train.states()) == ["finished", "running"]
    (folder,) = set(krill_train.runs()) - {whole}
    assert (folder / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists() == (when == "saving")
    last = checkpoints.parse_step(checkpoints.list_checkpoints(folder / "checkpoints")[-1])
    assert 0 < last < step

    capsys.readouterr()
    assert krill_train(*words) == 0
    told = capsys.readouterr()
    assert f"resuming in runs/llama_pico/{folder.name}" in told.err
    assert f"resuming from step {last}" in told.err
    assert told.out.strip() == f"runs/llama_pico/{folder.name}"
    assert krill_train.states() == ["finished", "finished"]
    assert_same_result(folder, whole)
    assert (read_status(folder) or {})["starts"] == 2
    assert not (folder / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()


def len_of_rows(folder: Path) -> int:
    """Rows of an epoch, from the epochs that a line of metrics counts."""
    line = read_metrics(folder)[0]
    return round(line["tokens"] / 64 / line["epoch"])


def test_sigterm_saves_stops_with_75_and_the_same_command_goes_on(
    krill_train: Any, undisturbed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("steps=7", "log_every=5", "save_every=50")
    whole = undisturbed(*words)
    assert train_and_signal(krill_train, signal.SIGTERM, 3, *words) == 75
    assert "interrupted by SIGTERM at step 3 of 7" in capsys.readouterr().err
    (folder,) = set(krill_train.runs()) - {whole}
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["exit"]) == ("stopped", 75)
    assert [
        checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(folder / "checkpoints")
    ] == [3]
    assert not (folder / "model").exists()

    assert krill_train(*words) == 0
    assert_same_result(folder, whole)


def test_sigint_saves_and_stops_with_130(krill_train: Any) -> None:
    assert train_and_signal(krill_train, signal.SIGINT, 2, "save_every=50") == 130
    (folder,) = krill_train.runs()
    assert (read_status(folder) or {})["state"] == "stopped"
    assert (read_status(folder) or {})["exit"] == 130
    assert len(checkpoints.list_checkpoints(folder / "checkpoints")) == 1


def test_killed_after_the_last_step_only_the_rest_is_done(
    krill_train: Any, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("krill.training.run.save_final_model", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert krill_train() == 75  # outside of training: at once, and all is saved already
    (folder,) = set(krill_train.runs()) - {whole}
    assert krill_train.states().count("stopped") == 1
    assert krill_train() == 0
    assert_same_result(folder, whole)


def test_how_often_it_saves_may_change_in_between(krill_train: Any) -> None:
    train_and_signal(krill_train, signal.SIGTERM, 2, "save_every=50", "steps=6")
    assert krill_train("save_every=3", "eval_every=5", "log_every=2", "keep_checkpoints=9", "steps=6") == 0
    (folder,) = krill_train.runs()
    assert [
        checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(folder / "checkpoints")
    ] == [2, 3, 6]
    assert [line["step"] for line in read_metrics(folder) if "eval_loss" in line] == [5, 6]
    assert [line["step"] for line in read_metrics(folder) if "loss" in line] == [1, 2, 4, 6]


# --- which run goes on -------------------------------------------------------------------------------------


def test_a_finished_run_is_left_alone_and_a_new_one_made(krill_train: Any) -> None:
    assert krill_train() == krill_train() == 0
    assert krill_train.states() == ["finished", "finished"]


def test_another_configuration_begins_its_own(krill_train: Any) -> None:
    train_and_signal(krill_train, signal.SIGTERM, 2)
    assert krill_train("seed=1") == 0
    assert sorted(krill_train.states()) == ["finished", "stopped"]


def test_a_living_run_is_left_alone(krill_train: Any) -> None:
    train_and_signal(krill_train, signal.SIGTERM, 2)
    (folder,) = krill_train.runs()
    before = (folder / "status.json").read_bytes()
    with FileLock(folder / ".lock"):
        assert krill_train() == 0
    assert (folder / "status.json").read_bytes() == before
    assert len(krill_train.runs()) == 2


def test_resume_false_begins_anew(krill_train: Any) -> None:
    train_and_signal(krill_train, signal.SIGTERM, 2)
    assert krill_train("resume=false") == 0
    assert sorted(krill_train.states()) == ["finished", "stopped"]


def test_resume_local_goes_on_or_fails(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train("resume=local") == 2
    assert "no unfinished run of this configuration" in capsys.readouterr().err
    assert krill_train.runs() == []
    train_and_signal(krill_train, signal.SIGTERM, 2)
    assert krill_train("resume=true") == 0
    assert krill_train.states() == ["finished"]


def test_resume_by_folder(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        train_and_signal(krill_train, signal.SIGTERM, 2, "resume=false")
    older, newer = krill_train.runs()
    assert krill_train(f"resume={older}") == 0
    assert [(read_status(run) or {})["state"] for run in (older, newer)] == ["finished", "stopped"]
    assert krill_train(f"resume={newer}", "seed=3") == 2
    assert f"from={newer}" in capsys.readouterr().err
    assert krill_train(f"resume={newer}/none") == 2


def test_output_is_the_folder_and_the_same_command_has_nothing_to_do(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("output=mine") == 0
    assert krill_train.runs() == []
    status = (krill_train.outputs / "mine" / "status.json").read_bytes()
    capsys.readouterr()
    assert krill_train("output=mine") == 0
    told = capsys.readouterr()
    assert told.out == "mine\n"
    assert "already finished, skipping: mine" in told.err
    assert (krill_train.outputs / "mine" / "status.json").read_bytes() == status


def test_output_of_another_run_or_of_something_else_is_refused(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("output=mine") == 0
    before = sorted((krill_train.outputs / "mine").rglob("*"))
    assert krill_train("output=mine", "seed=1") == 2
    assert "holds a run of another configuration" in capsys.readouterr().err
    assert sorted((krill_train.outputs / "mine").rglob("*")) == before

    other = krill_train.outputs / "other"
    other.mkdir()
    (other / "status.json").write_text(json.dumps({"state": "somebody else's"}))
    assert krill_train("output=other") == 2
    assert "is not empty and holds no run of krill" in capsys.readouterr().err


def test_output_goes_on_where_it_was_stopped(krill_train: Any) -> None:
    assert train_and_signal(krill_train, signal.SIGTERM, 2, "output=mine") == 75
    assert krill_train("output=mine", "resume=false") == 2
    assert krill_train("output=mine") == 0
    assert (read_status(krill_train.outputs / "mine") or {})["starts"] == 2
