"""The three kinds of invocations: where their results go, and what a job file keeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from krill.cli.compose import compose_config
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.launch.invocation import Composition, Invocation, SingleRun, SubmittedJob, SweepPoint
from krill.launch.job_files import Point, read_job_file, write_job_files

IDENTITY = "0123456789abcdef"
OVERRIDES = ["lr=0.01", "name=${oc.env:HOME}"]


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return validate_config(TrainConfig, compose_config("train", ["lr=0.01"]))


def make_hydra(launcher: str = "PoolLauncher") -> Any:
    return OmegaConf.create(
        {
            "job": {"config_name": "train"},
            "overrides": {"task": OVERRIDES},
            "runtime": {"choices": {"model": "llama_pico"}},
            "launcher": {"_target_": f"hydra_plugins.krill.{launcher}"},
        }
    )


def make_single_run(**hydra: str) -> SingleRun:
    return SingleRun(Composition(OmegaConf.create({"lr": 0.01}), make_hydra(**hydra)))


def make_sweep_point(sweep: Path) -> SweepPoint:
    return SweepPoint(Composition(OmegaConf.create({"lr": 0.01}), make_hydra()), sweep)


def test_an_invocation_has_the_overrides_as_written() -> None:
    run = make_single_run()
    assert (run.command, run.overrides, run.choices) == ("train", OVERRIDES, {"model": "llama_pico"})
    assert not run.is_for_slurm
    assert make_single_run(launcher="SlurmLauncher").is_for_slurm


def test_a_single_run_goes_to_output_and_prints_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_single_run()
    assert run.resolve_folder("here", IDENTITY) == tmp_path / "here"
    assert run.resolve_folder(None, IDENTITY) is None
    assert run.resolve_resume("local") == "local"
    assert (run.is_sweep_point, run.has_assigned_folder, run.is_interactive) == (False, False, True)
    run.print_result_folder(tmp_path / "here")
    assert capsys.readouterr().out == "here\n"


def test_a_sweep_point_goes_to_a_folder_named_after_its_signature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point = make_sweep_point(tmp_path)
    assert point.resolve_folder("ignored", IDENTITY) == tmp_path / IDENTITY[:8]
    assert (point.is_sweep_point, point.has_assigned_folder, point.is_interactive) == (True, True, False)
    point.print_result_folder(tmp_path / "folder")
    assert capsys.readouterr().out == ""


def test_a_job_with_an_assigned_folder_resumes_there(config: TrainConfig, tmp_path: Path) -> None:
    job = SubmittedJob(make_single_run(), config, tmp_path / "run", IDENTITY, is_on_slurm=True)
    assert job.resolve_folder("ignored", IDENTITY) == tmp_path / "run"
    assert job.resolve_resume(False) == "auto"
    assert job.validate(TrainConfig) is config
    assert (job.is_sweep_point, job.has_assigned_folder, job.is_interactive) == (False, True, False)
    in_pool = SubmittedJob(make_sweep_point(tmp_path), config, tmp_path / "run", IDENTITY, is_on_slurm=False)
    assert in_pool.resolve_resume(False) is False
    assert in_pool.is_sweep_point


def test_a_job_without_an_assigned_folder_chooses_it_itself(config: TrainConfig, tmp_path: Path) -> None:
    job = SubmittedJob(make_single_run(), config)
    assert job.resolve_folder(str(tmp_path / "output"), "") == tmp_path / "output"
    assert job.resolve_folder(None, IDENTITY) is None
    assert job.resolve_resume(False) is False
    assert not job.has_assigned_folder


def test_a_job_whose_text_changed_after_submission_is_an_error(config: TrainConfig, tmp_path: Path) -> None:
    job = SubmittedJob(make_single_run(), config, tmp_path, IDENTITY)
    with pytest.raises(UsageError, match="changed after the submission"):
        job.resolve_folder(None, "another")


def make_jobs(config: TrainConfig, sweep: Path) -> list[SubmittedJob]:
    point = Point(make_sweep_point(sweep), config, sweep / IDENTITY[:8], IDENTITY)
    return [point.to_job(is_on_slurm=False), SubmittedJob(make_single_run(), config)]


def describe(job: Invocation) -> dict[str, Any]:
    assert isinstance(job, SubmittedJob)
    return {
        "kind": type(job.origin), "command": job.command, "overrides": job.overrides, "choices": job.choices,
        "composed": job.composition.config, "config": job.config, "folder": job.folder, "identity": job.identity,
        "sweep": job.origin.sweep_folder if isinstance(job.origin, SweepPoint) else None,
    }  # fmt: skip


def test_a_job_file_keeps_the_invocation(config: TrainConfig, tmp_path: Path) -> None:
    jobs = make_jobs(config, tmp_path / "sweep")
    write_job_files(tmp_path, jobs)
    for index, job in enumerate(jobs):
        read = read_job_file(tmp_path, index, is_on_slurm=True)
        assert describe(read) == describe(job)
        assert read.is_on_slurm
