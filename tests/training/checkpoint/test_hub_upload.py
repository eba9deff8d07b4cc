"""A run uploads its checkpoints and its model to the Hub if configured, and resumes from there on another machine."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import flip_bit, train_and_signal
from hub_server import HubServer, Repository, run_hub_server
from trainings import assert_same_result

from krill.inference.load import locate_model
from krill.runs import checkpoints
from krill.runs.record import read_status
from krill.training.callbacks.signals import StopOnSignal

ID = "hub.id=me/mine"
RUN = (ID, "hub.checkpoints=true", "steps=5", "save_every=2", "eval_every=2", "sample_every=2")
LOOKUP = "GET /api/models/me/mine$"
"""The first request of a run that may resume from the Hub; nothing else sends it."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with run_hub_server(monkeypatch) as server:
        yield server


def get_repository(hub: HubServer) -> Repository:
    return hub.repositories["me/mine"]


def get_uploaded_step(hub: HubServer) -> int:
    step: int = json.loads(get_repository(hub).files["last-checkpoint/manifest.json"])["step"]
    return step


def move_runs(krill_train: Any, name: str = "elsewhere") -> Path:
    """Moves all runs out of runs/, as if this machine had none of them."""
    moved: Path = krill_train.outputs / name
    (krill_train.outputs / "runs").rename(moved)
    return moved / "llama_pico"


@pytest.fixture(scope="session")
def undisturbed_run(reference_run: Callable[..., Path]) -> Path:
    """A run without the Hub."""
    return reference_run(*RUN[2:])


@pytest.fixture
def interrupted_elsewhere(krill_train: Any, hub: HubServer) -> None:
    """Interrupts a run after step 2 on another machine; the Hub has that step."""
    assert train_and_signal(krill_train, signal.SIGTERM, 2, *RUN) == 75
    assert get_uploaded_step(hub) == 2
    move_runs(krill_train)


# --- uploading ---------------------------------------------------------------------------------------------


def test_hub_is_not_contacted_unless_configured(krill_train: Any, hub: HubServer) -> None:
    assert krill_train(ID, "steps=1") == 0
    assert hub.requests == []


@pytest.mark.parametrize("private", [True, False])
def test_model_is_pushed_to_a_private_repository_by_default(
    private: bool, krill_train: Any, hub: HubServer
) -> None:
    assert krill_train(ID, "steps=1", "hub.push=true", *([] if private else ["hub.private=false"])) == 0
    (run,) = krill_train.runs()
    assert get_repository(hub).private is private
    names = {".gitattributes", *(path.name for path in (run / "model").iterdir())}
    assert (
        set(get_repository(hub).files)
        == names
        >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    )
    assert get_repository(hub).files["model.safetensors"] == (run / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("offline", "HF_HUB_OFFLINE is set"),
        ("no token", "not logged in to the Hugging Face Hub; run hf auth login"),
        ("bad token", "the Hub does not accept the token"),
        ("read-only token", "the token can only read"),
        ("unreachable", "the Hub cannot be reached"),
    ],
)
def test_login_is_checked_before_training(
    problem: str, message: str, krill_train: Any, hub: HubServer, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    if problem == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif problem == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif problem == "bad token":
        monkeypatch.setenv("HF_TOKEN", "hf_other")
    elif problem == "read-only token":
        hub.role = "read"
    with hub.fail_requests("whoami", "drop", 1000 if problem == "unreachable" else 0):
        assert krill_train(ID, "hub.push=true") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert f"hub.push=true hub.id=me/mine: {message}" in errors[0]
    assert krill_train.runs() == []


def test_finished_run_is_pushed_afterwards_and_once(
    krill_train: Any, undisturbed_run: Path, hub: HubServer, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("krill.training.run.run_training", None)
    shutil.copytree(undisturbed_run, tmp_path / "done")
    push = (*RUN[2:], "output=done", ID, "hub.push=true")
    content = (tmp_path / "done/model/model.safetensors").read_bytes()
    flip_bit(tmp_path / "done/model/model.safetensors")
    assert krill_train(*push) == 2
    assert "model/model.safetensors was changed since it was saved" in capsys.readouterr().err
    assert hub.repositories == {}
    (tmp_path / "done/model/model.safetensors").write_bytes(content)
    for _ in range(2):
        assert krill_train(*push) == 0
        assert get_repository(hub).files["model.safetensors"] == content
        assert len(get_repository(hub).messages) == 2
    assert (read_status(tmp_path / "done") or {})["pushed"] == "me/mine"
    assert not any(name.startswith("last-checkpoint") for name in get_repository(hub).files)


def test_last_checkpoint_is_uploaded_before_the_model(krill_train: Any, hub: HubServer) -> None:
    assert krill_train(*RUN, "hub.push=true") == 0
    (run,) = krill_train.runs()
    *_, before, last = get_repository(hub).messages
    assert (before, last) == ("krill: checkpoint of step 5", f"krill: {run.name}")
    files = get_repository(hub).files
    checkpoint = run / "checkpoints/checkpoint-5"
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    record = {
        "run/config.yaml", "run/status.json", "run/metrics.jsonl", "run/.metrics.jsonl.checksums",
        "run/samples.jsonl", "run/.samples.jsonl.checksums",
    }  # fmt: skip
    assert {f"last-checkpoint/{name}" for name in names | record} == {
        name for name in files if name.startswith("last-checkpoint/")
    }
    assert files["last-checkpoint/optimizer.pt"] == (checkpoint / "optimizer.pt").read_bytes()
    assert json.loads(files["last-checkpoint/run/status.json"])["state"] == "finished"
    assert not any((run / ".upload").glob("*"))


def test_file_missing_in_the_new_checkpoint_is_deleted(krill_train: Any, hub: HubServer) -> None:
    assert krill_train(*RUN, "steps=1") == 0
    get_repository(hub).files["last-checkpoint/scaler.pt"] = b"of an older one"
    get_repository(hub).files["notes.md"] = b"mine"
    assert krill_train(*RUN, "steps=1", "resume=false") == 0
    assert "last-checkpoint/scaler.pt" not in get_repository(hub).files
    assert "notes.md" in get_repository(hub).files


def test_slow_upload_never_skips_the_last_checkpoint(
    krill_train: Any, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopOnSignal, "on_train_begin", lambda *_, **__: hub.gate.clear())
    monkeypatch.setattr(StopOnSignal, "on_train_end", lambda *_, **__: hub.gate.set())
    assert krill_train(*RUN, "save_every=1", "keep_checkpoints=1", "keep_best=false", "resume=false") == 0
    steps = [message for message in get_repository(hub).messages if "checkpoint" in message]
    assert len(steps) <= 2, "the checkpoint whose upload was held, and the last one"
    assert steps[-1] == "krill: checkpoint of step 5"


@pytest.mark.parametrize("how", [500, "drop"])
def test_failed_upload_is_logged_and_retried_with_the_next_checkpoint(
    how: int | str, krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.fail_requests("POST /api/repos/create", how, times=1):
        assert krill_train(*RUN, "hub.push=true", "resume=false") == 0
    assert "checkpoint of step 2 not uploaded: " in capsys.readouterr().err
    assert get_uploaded_step(hub) == 5
    assert "model.safetensors" in get_repository(hub).files


def test_upload_that_keeps_failing_loses_nothing_and_the_same_command_retries(
    krill_train: Any, undisturbed_run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with hub.fail_requests("commit", 401):
        assert krill_train(*RUN, "hub.push=true") == 1
    errors = capsys.readouterr().err
    assert "hub: the upload to me/mine failed (" in errors
    assert "run the same command to retry" in errors
    assert krill_train.states() == ["failed"]
    monkeypatch.setattr("krill.training.trainer.KrillTrainer.training_step", None)
    assert krill_train(*RUN, "hub.push=true") == 0
    assert krill_train.states() == ["finished"]
    assert get_uploaded_step(hub) == 5
    (run,) = krill_train.runs()
    assert_same_result(run, undisturbed_run)


def test_signal_ends_the_run_while_the_hub_is_unreachable(krill_train: Any, hub: HubServer) -> None:
    with hub.fail_requests("^(?!GET /api/whoami)", "drop"):  # once the login has been checked
        assert train_and_signal(krill_train, signal.SIGTERM, 3, *RUN) == 75
    assert hub.repositories == {}


# --- resuming ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interrupted_elsewhere")
@pytest.mark.parametrize(
    "extra_overrides", [("resume=remote",), ("resume=auto",), ("resume=remote", "output=mine")]
)
def test_run_resumed_on_another_machine_has_the_same_bytes(
    extra_overrides: tuple[str, ...], krill_train: Any, undisturbed_run: Path, hub: HubServer,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert krill_train(*RUN, *extra_overrides) == 0
    run = krill_train.outputs / "mine" if "output=mine" in extra_overrides else krill_train.runs()[0]
    log = (run / "log.txt").read_text()
    assert "resume      step 2 from me/mine" in log
    assert "resuming from step 2" in log
    assert_same_result(run, undisturbed_run)
    assert (run / "samples.jsonl").read_bytes() == (undisturbed_run / "samples.jsonl").read_bytes()
    assert (read_status(run) or {})["remote"] == {"id": "me/mine", "step": 2}
    assert not list(run.glob(".remote*"))
    assert json.loads(get_repository(hub).files["last-checkpoint/run/status.json"])["state"] == "finished"


@pytest.mark.usefixtures("interrupted_elsewhere")
def test_resume_auto_uses_the_newer_checkpoint(
    krill_train: Any, undisturbed_run: Path, hub: HubServer
) -> None:
    assert train_and_signal(krill_train, signal.SIGTERM, 4, *RUN) == 75  # here, from the Hub's step 2
    move_runs(krill_train, "third")
    (krill_train.outputs / "elsewhere").rename(krill_train.outputs / "runs")  # interrupted at step 2 there
    assert krill_train(*RUN) == 0
    (run,) = krill_train.runs()
    assert "resume      step 4 from me/mine" in (run / "log.txt").read_text()
    assert_same_result(run, undisturbed_run)


def test_resume_auto_continues_locally_if_the_hub_is_older_or_unreachable(
    krill_train: Any, undisturbed_run: Path, hub: HubServer
) -> None:
    assert train_and_signal(krill_train, signal.SIGTERM, 2, *RUN) == 75
    with hub.fail_requests("commit", 401):
        assert train_and_signal(krill_train, signal.SIGTERM, 4, *RUN) == 75
    assert get_uploaded_step(hub) == 2
    with hub.fail_requests(LOOKUP, "drop"):
        assert krill_train(*RUN) == 0
    (run,) = krill_train.runs()
    assert_same_result(run, undisturbed_run)
    assert not hub.count_requests("GET .*optimizer.pt")


def test_resume_auto_warns_that_the_hub_is_unreachable(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.fail_requests(LOOKUP, "drop"):
        assert krill_train(*RUN, "steps=1") == 0
    assert "me/mine cannot be read" in capsys.readouterr().err


@pytest.mark.usefixtures("interrupted_elsewhere")
def test_interrupted_remote_run_resumes_in_its_own_folder(
    krill_train: Any, undisturbed_run: Path, hub: HubServer
) -> None:
    overrides = (*(override for override in RUN if override != "hub.checkpoints=true"), "resume=remote")
    assert train_and_signal(krill_train, signal.SIGTERM, 4, *overrides) == 75
    assert get_uploaded_step(hub) == 2
    hub.requests.clear()
    assert krill_train(*overrides) == 0
    assert not hub.count_requests("GET .*optimizer.pt")
    (run,) = krill_train.runs()
    assert_same_result(run, undisturbed_run)


@pytest.mark.usefixtures("interrupted_elsewhere")
def test_resume_remote_ignores_a_run_that_is_only_local(krill_train: Any, hub: HubServer) -> None:
    assert train_and_signal(krill_train, signal.SIGTERM, 2, ID, *RUN[2:]) == 75
    assert krill_train(*RUN, "resume=remote") == 0
    assert sorted(krill_train.states()) == ["finished", "stopped"]


@pytest.mark.parametrize(
    ("extra_overrides", "message"),
    [
        ((ID,), "resume=remote: no checkpoint in me/mine"),
        ((), "resume=remote needs a repository; set hub.id=user/name"),
    ],
)
def test_resume_remote_fails_without_a_checkpoint_on_the_hub(
    extra_overrides: tuple[str, ...],
    message: str,
    krill_train: Any,
    hub: HubServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert krill_train("resume=remote", *extra_overrides) == 2
    assert message in capsys.readouterr().err
    assert krill_train.runs() == []


def test_resume_remote_fails_if_the_hub_has_only_a_model(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(ID, "hub.push=true", "steps=1") == 0
    assert krill_train(ID, "resume=remote", "steps=1") == 2
    assert "no checkpoint in me/mine" in capsys.readouterr().err


def test_resume_remote_fails_if_the_hub_is_unreachable(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.fail_requests(LOOKUP, "drop"):
        assert krill_train(ID, "resume=remote") == 1
    assert "resume=remote: me/mine cannot be read" in capsys.readouterr().err
    assert krill_train.runs() == []


@pytest.mark.usefixtures("interrupted_elsewhere")
@pytest.mark.parametrize("resume", ["remote", "auto"])
def test_checkpoint_of_another_configuration_is_neither_used_nor_replaced(
    resume: str, krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    before = get_repository(hub).head
    assert krill_train(*RUN, "seed=1", f"resume={resume}") == 2
    assert "holds the checkpoint of another configuration (step 2 of llama_pico)" in capsys.readouterr().err
    assert get_repository(hub).head == before
    assert not (krill_train.outputs / "runs").exists()
    assert krill_train(*RUN, "seed=1", "resume=false") == 0
    assert get_uploaded_step(hub) == 5


def test_finished_run_on_the_hub_is_not_resumed(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(*RUN) == 0
    move_runs(krill_train)
    assert krill_train(*RUN, "resume=remote") == 2
    assert "the run in me/mine is finished" in capsys.readouterr().err
    assert krill_train(*RUN) == 0
    assert "resume      step" not in capsys.readouterr().err


@pytest.mark.usefixtures("interrupted_elsewhere")
def test_corrupt_download_is_not_used(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    good = get_repository(hub).files["last-checkpoint/optimizer.pt"]
    get_repository(hub).files["last-checkpoint/optimizer.pt"] = good[:-1] + b"x"
    assert krill_train(*RUN, "resume=remote") == 1
    errors = capsys.readouterr().err
    assert "checkpoint-2/optimizer.pt was changed since it was saved" in errors
    assert "the checkpoint is corrupt" in errors
    (run,) = krill_train.runs()
    assert checkpoints.list_checkpoints(run / "checkpoints") == []
    get_repository(hub).files["last-checkpoint/optimizer.pt"] = good
    assert krill_train(*RUN, "resume=remote") == 0
    assert krill_train.states() == ["finished"]


@pytest.mark.usefixtures("interrupted_elsewhere")
def test_broken_connection_is_reported_and_the_same_command_resumes(
    krill_train: Any, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.fail_requests("GET .*model.safetensors", "drop"):
        assert krill_train(*RUN, "resume=remote") == 1
    assert "the checkpoint could not be downloaded to runs/llama_pico/" in capsys.readouterr().err
    assert krill_train(*RUN, "resume=remote") == 0
    assert krill_train.states() == ["finished"]


def test_loading_the_model_does_not_download_the_checkpoint(krill_train: Any, hub: HubServer) -> None:
    assert krill_train(*RUN, "hub.push=true") == 0
    shutil.rmtree(krill_train.outputs / "runs")
    hub.requests.clear()
    folder, _ = locate_model("me/mine")
    assert (folder / "model.safetensors").exists()
    assert not hub.count_requests("last-checkpoint")
