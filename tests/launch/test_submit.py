"""A command that is submitted to SLURM prints its folder, by which krill-runs knows it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from krill.cli.diagnosis import compose_train_config
from krill.launch import submit


def test_a_detached_run_prints_its_folder_and_suggests_quoted_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    caplog.set_level("INFO", "krill")
    config = compose_train_config(["hardware=slurm_gpu", "detach=true"], [])
    run: Any = SimpleNamespace(command="train")
    monkeypatch.setattr(submit, "_submit_jobs", lambda folder, jobs: {"0": "17"})
    job = SimpleNamespace(folder=tmp_path / "outputs" / "my run")
    monkeypatch.setattr(submit, "_claim_folder", lambda config, run: job)
    submit.submit_run(config, run)
    assert capsys.readouterr().out == "outputs/my run\n"
    assert caplog.messages == [
        "next        krill-runs watch 'outputs/my run'",
        "            krill-runs cancel 'outputs/my run'",
    ]
