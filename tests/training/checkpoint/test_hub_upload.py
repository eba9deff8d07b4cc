"""What a run puts on the Hub when it is asked to, and how it goes on from there on another machine."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import train_and_signal
from hub_server import HubServer, Repository, hub_server
from trainings import assert_same_result

from krill.inference.load import locate_model
from krill.runs import checkpoints
from krill.runs.record import read_status
from krill.training.callbacks.signals import StopOnSignal

ID = "hub.id=me/mine"
RUN = (ID, "hub.checkpoints=true", "steps=5", "save_every=2", "eval_every=2", "sample_every=2")
DOWN = "GET /api/models/me/mine$"
"""What is asked first by a run that may go on from the Hub, and by nothing else."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_server(monkeypatch) as server:
        yield server


def there(hub: HubServer) -> Repository:
    return hub.repositories["me/mine"]


def step_there(hub: HubServer) -> int:
    step: int = json.loads(there(hub).files["last-checkpoint/manifest.json"])["step"]
    return step


def move_away(krill_train: Any, name: str = "elsewhere") -> Path:
    """All runs so far lie elsewhere, as for a machine that has none of them."""
    moved: Path = krill_train.outputs / name
    (krill_train.outputs / "runs").rename(moved)
    return moved / "llama_pico"


@pytest.fixture
def whole(krill_train: Any, hub: HubServer) -> Path:
    """A run that nothing stopped, which knows of no Hub; on another machine."""
    assert krill_train(*(word for word in RUN if word != "hub.checkpoints=true")) == 0
    return next(move_away(krill_train, "undisturbed").iterdir())


@pytest.fixture
def stopped(krill_train: Any, hub: HubServer) -> None:
    """One was stopped after step 2, on another machine; the Hub has that step."""
    assert train_and_signal(krill_train, signal.SIGTERM, 2, *RUN) == 75
    assert step_there(hub) == 2
    move_away(krill_train)


# --- uploading ---------------------------------------------------------------------------------------------


def test_nothing_is_connected_to_unless_asked(krill_train: Any, hub: HubServer) -> None:
    assert krill_train(ID, "steps=1") == 0
    assert hub.requests == []


@pytest.mark.parametrize("private", [True, False])
def test_the_model_goes_to_a_private_repository_unless_asked_otherwise(
    private: bool, krill_train: Any, hub: HubServer
) -> None:
    assert krill_train(ID, "steps=1", "hub.push=true", *([] if private else ["hub.private=false"])) == 0
    (run,) = krill_train.runs()
    assert there(hub).private is private
    names = {".gitattributes", *(path.name for path in (run / "model").iterdir())}
    assert (
        set(there(hub).files) == names >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    )
    assert there(hub).files["model.safetensors"] == (run / "model/model.safetensors").read_bytes()


def test_the_last_checkpoint_then_the_model_come_last(krill_train: Any, hub: HubServer) -> None:
    assert krill_train(*RUN, "hub.push=true") == 0
    (run,) = krill_train.runs()
    *_, before, last = there(hub).messages
    assert (before, last) == ("krill: checkpoint of step 5", f"krill: {run.name}")
    files = there(hub).files
    checkpoint = run / "checkpoints/checkpoint-5"
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    record = {"run/config.yaml", "run/status.json", "run/metrics.jsonl", "run/samples.jsonl"}
    assert {f"last-checkpoint/{name}" for name in names | record} == {
        name for name in files if name.startswith("last-checkpoint/")
    }
    assert files["last-checkpoint/optimizer.pt"] == (checkpoint / "optimizer.pt").read_bytes()
    assert json.loads(files["last-checkpoint/run/status.json"])["state"] == "finished"
    assert not any((run / ".upload").glob("*"))


def test_a_file_that_the_new_checkpoint_does_not_have_goes(krill_train: Any, hub: HubServer) -> None:
    assert krill_train(*RUN, "steps=1") == 0
    there(hub).files["last-checkpoint/scaler.pt"] = b"of an older one"
    there(hub).files["notes.md"] = b"mine"
    assert krill_train(*RUN, "steps=1", "resume=false") == 0
    assert "last-checkpoint/scaler.pt" not in there(hub).files
    assert "notes.md" in there(hub).files


def test_what_a_slow_upload_leaves_out_is_never_the_last(
    krill_train: Any, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopOnSignal, "on_train_end", lambda *_, **__: hub.held.set())
    hub.held.clear()
    assert krill_train(*RUN, "save_every=1", "keep_checkpoints=1", "keep_best=false", "resume=false") == 0
    steps = [message for message in there(hub).messages if "checkpoint" in message]
    assert len(steps) <= 2, "the one that was held, and the last"
    assert steps[-1] == "krill: checkpoint of step 5"


@pytest.mark.parametrize("how", [500, "drop"])
def test_a_failed_upload_is_told_and_the_next_one_is_tried(
    how: int | str, krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.fails("POST /api/repos/create", how, times=1):
        assert krill_train(*RUN, "hub.push=true", "resume=false") == 0
    assert "checkpoint of step 2 not uploaded: " in capsys.readouterr().err
    assert step_there(hub) == 5
    assert "model.safetensors" in there(hub).files


def test_where_it_fails_to_the_end_nothing_is_lost_and_the_same_command_tries_again(
    krill_train: Any, whole: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with hub.fails("commit", 401):
        assert krill_train(*RUN, "hub.push=true") == 1
    told = capsys.readouterr().err
    assert "hub: the upload to me/mine failed (" in told
    assert "give the same command again to try once more" in told
    assert krill_train.states() == ["failed"]
    monkeypatch.setattr("krill.training.trainer.KrillTrainer.training_step", None)
    assert krill_train(*RUN, "hub.push=true") == 0
    assert krill_train.states() == ["finished"]
    assert step_there(hub) == 5
    (run,) = krill_train.runs()
    assert_same_result(run, whole)


def test_a_signal_is_obeyed_when_the_hub_is_away(krill_train: Any, hub: HubServer) -> None:
    with hub.fails(".", "drop"):
        assert train_and_signal(krill_train, signal.SIGTERM, 3, *RUN) == 75
    assert hub.repositories == {}


# --- going on ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("words", [("resume=remote",), ("resume=auto",), ("resume=remote", "output=mine")])
def test_it_goes_on_elsewhere_to_the_same_bytes(
    words: tuple[str, ...], krill_train: Any, whole: Path, hub: HubServer,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert krill_train(*RUN, *words) == 0
    run = krill_train.outputs / "mine" if "output=mine" in words else krill_train.runs()[0]
    told = (run / "log.txt").read_text()
    assert "resume: step 2 from me/mine" in told
    assert "resuming from step 2" in told
    assert_same_result(run, whole)
    assert (run / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert (read_status(run) or {})["remote"] == {"id": "me/mine", "step": 2}
    assert not list(run.glob(".remote*"))
    assert json.loads(there(hub).files["last-checkpoint/run/status.json"])["state"] == "finished"


@pytest.mark.usefixtures("stopped")
def test_auto_takes_the_newer_of_both(krill_train: Any, whole: Path, hub: HubServer) -> None:
    assert train_and_signal(krill_train, signal.SIGTERM, 4, *RUN) == 75  # here, from the Hub's step 2
    move_away(krill_train, "third")
    (krill_train.outputs / "elsewhere").rename(krill_train.outputs / "runs")  # where it had stopped at step 2
    assert krill_train(*RUN) == 0
    (run,) = krill_train.runs()
    assert "resume: step 4 from me/mine" in (run / "log.txt").read_text()
    assert_same_result(run, whole)


def test_auto_goes_on_here_where_the_hub_is_older_or_away(
    krill_train: Any, whole: Path, hub: HubServer
) -> None:
    assert train_and_signal(krill_train, signal.SIGTERM, 2, *RUN) == 75
    with hub.fails("commit", 401):
        assert train_and_signal(krill_train, signal.SIGTERM, 4, *RUN) == 75
    assert step_there(hub) == 2
    with hub.fails(DOWN, "drop"):
        assert krill_train(*RUN) == 0
    (run,) = krill_train.runs()
    assert_same_result(run, whole)
    assert not hub.asked("GET .*optimizer.pt")


def test_auto_tells_that_the_hub_is_away(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.fails(DOWN, "drop"):
        assert krill_train(*RUN, "steps=1") == 0
    assert "me/mine cannot be read" in capsys.readouterr().err


@pytest.mark.usefixtures("stopped")
def test_a_remote_run_that_is_stopped_goes_on_in_its_folder(
    krill_train: Any, whole: Path, hub: HubServer
) -> None:
    words = (*(word for word in RUN if word != "hub.checkpoints=true"), "resume=remote")
    assert train_and_signal(krill_train, signal.SIGTERM, 4, *words) == 75
    assert step_there(hub) == 2
    hub.requests.clear()
    assert krill_train(*words) == 0
    assert not hub.asked("GET .*optimizer.pt")
    (run,) = krill_train.runs()
    assert_same_result(run, whole)


@pytest.mark.usefixtures("stopped")
def test_remote_leaves_a_run_alone_that_is_only_here(krill_train: Any, hub: HubServer) -> None:
    assert train_and_signal(krill_train, signal.SIGTERM, 2, ID, *RUN[2:]) == 75
    assert krill_train(*RUN, "resume=remote") == 0
    assert sorted(krill_train.states()) == ["finished", "stopped"]


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((ID,), "resume=remote: no checkpoint in me/mine"),
        ((), "resume=remote needs a repository; set hub.id=user/name"),
    ],
)
def test_remote_fails_where_there_is_none(
    words: tuple[str, ...], told: str, krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("resume=remote", *words) == 2
    assert told in capsys.readouterr().err
    assert krill_train.runs() == []


def test_remote_fails_where_only_a_model_is(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(ID, "hub.push=true", "steps=1") == 0
    assert krill_train(ID, "resume=remote", "steps=1") == 2
    assert "no checkpoint in me/mine" in capsys.readouterr().err


def test_remote_fails_where_the_hub_is_away(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.fails(DOWN, "drop"):
        assert krill_train(ID, "resume=remote") == 1
    assert "resume=remote: me/mine cannot be read" in capsys.readouterr().err
    assert krill_train.runs() == []


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("resume", ["remote", "auto"])
def test_the_checkpoint_of_another_configuration_is_neither_taken_nor_replaced(
    resume: str, krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    before = there(hub).head
    assert krill_train(*RUN, "seed=1", f"resume={resume}") == 2
    assert "holds the checkpoint of another configuration (step 2 of llama_pico)" in capsys.readouterr().err
    assert there(hub).head == before
    assert not (krill_train.outputs / "runs").exists()
    assert krill_train(*RUN, "seed=1", "resume=false") == 0
    assert step_there(hub) == 5


def test_a_finished_run_is_left_alone(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(*RUN) == 0
    move_away(krill_train)
    assert krill_train(*RUN, "resume=remote") == 2
    assert "the run in me/mine is finished" in capsys.readouterr().err
    assert krill_train(*RUN) == 0
    assert "resume: step" not in capsys.readouterr().err


@pytest.mark.usefixtures("stopped")
def test_what_does_not_arrive_as_it_was_saved_is_not_taken(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    good = there(hub).files["last-checkpoint/optimizer.pt"]
    there(hub).files["last-checkpoint/optimizer.pt"] = good[:-1] + b"x"
    assert krill_train(*RUN, "resume=remote") == 1
    told = capsys.readouterr().err
    assert "checkpoint-2/optimizer.pt was changed since it was saved" in told
    assert "its checkpoint is not what was saved" in told
    (run,) = krill_train.runs()
    assert checkpoints.list_checkpoints(run / "checkpoints") == []
    there(hub).files["last-checkpoint/optimizer.pt"] = good
    assert krill_train(*RUN, "resume=remote") == 0
    assert krill_train.states() == ["finished"]


@pytest.mark.usefixtures("stopped")
def test_a_connection_that_breaks_off_is_told_and_the_same_command_goes_on(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.fails("GET .*model.safetensors", "drop"):
        assert krill_train(*RUN, "resume=remote") == 1
    assert "its checkpoint did not come to runs/llama_pico/" in capsys.readouterr().err
    assert krill_train(*RUN, "resume=remote") == 0
    assert krill_train.states() == ["finished"]


def test_a_reader_of_the_model_does_not_fetch_the_checkpoint(krill_train: Any, hub: HubServer) -> None:
    assert krill_train(*RUN, "hub.push=true") == 0
    shutil.rmtree(krill_train.outputs / "runs")
    hub.requests.clear()
    folder, _ = locate_model("me/mine")
    assert (folder / "model.safetensors").exists()
    assert not hub.asked("last-checkpoint")
