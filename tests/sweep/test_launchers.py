"""The plugins that Hydra gets from krill, and how errors of points and single runs come back from it."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from krill.cli import app, train
from krill.errors import SignalInterrupt, UsageError
from krill.launch.invocation import Composition, SweepPoint
from krill.sweep.launchers import PoolLauncher, SlurmLauncher
from krill.sweep.session import Session, run_composed_point, run_point


def make_point() -> SweepPoint:
    hydra = OmegaConf.create({"overrides": {"task": ["lr=1"]}})
    return SweepPoint(Composition(None, hydra), Path("sweep"))


@pytest.mark.parametrize("launcher", [PoolLauncher(), SlurmLauncher()])
def test_krills_launchers_need_krills_sweeper(launcher: Launcher) -> None:
    with pytest.raises(UsageError, match=r"leave hydra\.sweeper out"):
        launcher.launch([["lr=1"]], 0)


def test_another_sweeper_with_krills_launcher_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweeper = "hydra.sweeper._target_=hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    assert app.main("train", train.run_task, ["-m", "lr=1e-3,1e-2", sweeper, "dry_run=true"]) == 2
    assert "leave hydra.sweeper out" in capsys.readouterr().err


def test_an_error_of_a_point_is_logged_with_its_overrides(caplog: pytest.LogCaptureFixture) -> None:
    def fail(invocation: Any) -> None:
        raise ValueError("bad")

    caplog.set_level("ERROR", "krill")
    with pytest.raises(ValueError, match="bad"):
        run_point(fail, make_point())
    assert caplog.messages == ["failed: lr=1: bad"]


def test_a_signal_ends_the_process_of_a_point_with_its_exit_code(caplog: pytest.LogCaptureFixture) -> None:
    def interrupt(invocation: Any) -> None:
        raise SignalInterrupt("interrupted", 75)

    with pytest.raises(SystemExit) as raised:
        run_point(interrupt, make_point())
    assert raised.value.code == 75


def test_hydra_names_the_job_after_the_command_of_a_session() -> None:
    assert Session(train.run_task).__module__ == "krill.cli.train"


def test_the_task_function_of_other_launchers_can_be_pickled() -> None:
    """submitit and joblib send it to their processes."""
    task_function = pickle.loads(pickle.dumps(partial(run_composed_point, train.run_task)))
    assert task_function.func is run_composed_point
    assert task_function.args == (train.run_task,)


def test_a_single_run_keeps_its_error_from_hydra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(invocation: Any) -> None:
        raise UsageError("bad input")

    fail.__module__ = "krill.cli.train"
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the error of one command does not reach the next
        assert app.main("train", fail, []) == 2
        assert capsys.readouterr().err.splitlines() == ["krill-train: error: bad input"]
    assert app.main("train", lambda invocation: None, []) == 0
