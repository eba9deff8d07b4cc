"""Submission to SLURM: one array for the points of a sweep, one job for a single command."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from krill.config.paths import get_outputs_root, quote_path, relative_path
from krill.config.schema import InferConfig, ModelCommandConfig, TrainConfig
from krill.errors import KrillError, SignalInterrupt, UsageError
from krill.evaluation.custom_tasks import get_task_function, list_custom_tasks
from krill.launch import job_files, snapshot
from krill.launch.invocation import SingleRun, SubmittedJob
from krill.launch.job_files import Point
from krill.launch.planned_limits import NO_LIMITS, PlannedLimits, plan_limits
from krill.launch.sbatch import (
    Submission,
    build_job_command,
    build_sbatch_parameters,
    rename_launcher_options,
)
from krill.launch.slurm_monitor import JobMonitor, monitor_runs
from krill.runs.slurm import JOBS_FILE
from krill.training.compute.device import world_size_from_env

log = logging.getLogger("krill")

CUSTOM_CODE_KEYS = ("build", "keep", "read")
"""Keys of the configuration that name a function of custom code."""


def submit_points(folder: Path, points: Sequence[Point], dry_run: bool) -> None:
    """Submits the points of the sweep in `folder` that are neither finished nor queued; waits unless detach=true.

    `dry_run`: prints the scripts instead.
    """
    from krill.runs.run_state import ACTIVE_STATES, get_run_states

    if dry_run:
        for jobs in _group_by_request(points):
            _print_scripts(jobs)
        return
    unfinished = job_files.skip_finished(points)
    labels = job_files.label_points(unfinished)
    states = get_run_states([point.folder for point in unfinished])
    new = []
    for point, label in zip(unfinished, labels, strict=True):
        if states[point.folder].state in ACTIVE_STATES:
            log.info("%s: already in the queue, job %s", label, states[point.folder].job)
        else:
            new.append(point)
    for jobs in _group_by_request(new):
        _submit_jobs(job_files.create_submission_folder(folder / ".jobs"), jobs)
    if points[0].config.detach:
        _log_next_commands(folder)
    elif unfinished:
        with _report_interrupted_wait(folder):
            monitor_runs({point.folder: label for point, label in zip(unfinished, labels, strict=True)})


def _group_by_request(points: Sequence[Point]) -> list[list[SubmittedJob]]:
    """Returns the jobs of the points, grouped by their sbatch parameters, which one array shares.

    What is planned (time=auto, memory=auto) does not separate them: an array takes the most of its points.
    """
    groups: dict[str, list[SubmittedJob]] = {}
    for point in points:
        job = point.to_job(is_on_slurm=True)
        slurm = job.config.hardware.slurm
        autos = slurm and [slurm.time == "auto", slurm.memory == "auto"]
        groups.setdefault(json.dumps([_build_request(job), autos], sort_keys=True), []).append(job)
    return list(groups.values())


def submit_run(config: TrainConfig | ModelCommandConfig, run: SingleRun) -> None:
    """Submits a single command; waits for its job and prints its output.

    With detach=true, prints the folder that krill-runs knows it by instead. A training run gets its folder now, in
    which the job resumes whenever it is started again.
    """
    if world_size_from_env() > 1:
        raise UsageError("ranks were started already (WORLD_SIZE): leave hardware=slurm_… out")
    if config.dry_run:
        _print_scripts([SubmittedJob(run, config)])
        return
    if run.command == "train":
        assert isinstance(config, TrainConfig)
        job = _claim_folder(config, run)
        if job is None:
            return
    else:
        job = SubmittedJob(run, config)
    folder = job_files.create_submission_folder(get_outputs_root() / "jobs", config.name)
    numbers = _submit_jobs(folder, [job])
    watched = job.folder or folder
    if config.detach:
        _log_next_commands(watched)
        print(relative_path(watched))
        return
    with _report_interrupted_wait(watched):
        monitor = JobMonitor(folder, numbers["0"])
        monitor.follow()
    _report_job_end(monitor, job)


def _claim_folder(config: TrainConfig, run: SingleRun) -> SubmittedJob | None:
    """Returns the job of a training run with its new or unfinished folder; None: it is finished already."""
    from krill.launch.identity import compute_identity, raise_if_task

    raise_if_task(config)
    inputs = run.open_inputs(config)
    identity = compute_identity("train", config, inputs)
    claimed = run.claim_run_folder(config, inputs, identity)
    if claimed.state == "finished":
        log.info("already finished, skipping: %s", relative_path(claimed.folder))
        print(relative_path(claimed.folder))
        return None
    with claimed:  # release the lock: the job will hold it
        pass
    return SubmittedJob(run, config, claimed.folder, identity)


def _print_scripts(jobs: Sequence[SubmittedJob]) -> None:
    print("\n".join(_build_submission(Path("FOLDER"), jobs).render_scripts()))


def _build_submission(folder: Path, jobs: Sequence[SubmittedJob]) -> Submission:
    requested = jobs[0].config.sweep.max_parallel
    max_parallel = None if requested == "auto" else requested
    command = build_job_command(job_files.JOB_MODULE, folder)
    return Submission(folder, command, _build_planned_request(jobs), len(jobs), max_parallel)


def _build_planned_request(jobs: Sequence[SubmittedJob]) -> dict[str, Any]:
    """Returns the sbatch parameters of an array, with what is planned, and logs that."""
    request = _build_request(jobs[0])
    cpus = request.get("cpus_per_task", 1) * request.get("ntasks_per_node", 1)
    planned = plan_limits(jobs, cpus, has_time="time" in _read_launcher_options(jobs[0]))
    if planned == NO_LIMITS:
        return request
    request = _build_request(jobs[0], planned)
    if planned.time is not None:
        is_cut = request["time"] < planned.time.minutes
        cut = "; the partition allows no more, so the run is requeued" if is_cut else ""
        log.info("time limit  %s: %s%s", timedelta(minutes=request["time"]), planned.time.reason, cut)
    if planned.memory is not None:
        log.info("memory      %s: %s", planned.memory.option, planned.memory.reason)
    return request


def _read_launcher_options(job: SubmittedJob) -> dict[str, Any]:
    """Returns the options of hydra.launcher that are set, by their names in submitit."""
    launcher = OmegaConf.to_container(job.composition.hydra.launcher, resolve=True)
    assert isinstance(launcher, dict)
    return rename_launcher_options({str(key): value for key, value in launcher.items() if key != "_target_"})


def _build_request(job: SubmittedJob, planned: PlannedLimits = NO_LIMITS) -> dict[str, Any]:
    """Returns the sbatch parameters of a job."""
    is_batch = isinstance(job.config, InferConfig) and job.config.prompts is not None
    return build_sbatch_parameters(
        job.config.hardware,
        _read_launcher_options(job),
        job.config.name,
        is_training=job.command == "train",
        starts_ranks=is_batch,
        planned=planned,
    )


def _submit_jobs(folder: Path, jobs: Sequence[SubmittedJob]) -> dict[str, str]:
    """Writes the files that the jobs need, records in each result folder that it is queued, and submits.

    Returns index → number of the job.
    """
    from krill.runs.record import read_status

    before = {job.folder: read_status(job.folder) for job in jobs if job.folder}
    try:
        submission = _build_submission(folder, jobs)
        snapshot.snapshot_code(
            folder / "code", {name for job in jobs for name in _list_custom_code(job.config)}
        )
        job_files.write_job_files(folder, jobs)
        # Before the submission: what the job records afterwards must stay.
        _record_as_queued(folder, jobs)
        numbers = submission.submit()
    except BaseException:
        if not (folder / JOBS_FILE).exists():  # no job was submitted
            for result_folder, status in before.items():
                _restore_status(result_folder, status)
            shutil.rmtree(folder, ignore_errors=True)
            _remove_empty_folder(folder.parent)
        raise
    arrays = dict.fromkeys(number.partition("_")[0] for number in numbers.values())
    what = f"{len(jobs)} jobs:" if len(jobs) > 1 else "job"
    log.info("submitted   %s %s", what, ", ".join(arrays))
    return numbers


def _record_as_queued(folder: Path, jobs: Sequence[SubmittedJob]) -> None:
    from krill.runs.record import Record

    for index, job in enumerate(jobs):
        if job.folder is None:
            continue
        job.folder.mkdir(parents=True, exist_ok=True)
        Record(job.folder).update(
            signature=job.identity, state="queued", exit=None, error=None, end=None, slurm_job_id=None,
            overrides=job.overrides, name=job.config.name, command=job.command,
            submission=str(folder), submitted_as=str(index),
        )  # fmt: skip


def _restore_status(folder: Path, status: dict[str, Any] | None) -> None:
    """Restores the status of a result before the submission; a folder that was created for it is removed."""
    from krill.runs.record import write_status

    if status:
        write_status(folder, status)
        return
    for name in ("status.json", ".lock"):
        (folder / name).unlink(missing_ok=True)
    _remove_empty_folder(folder)
    _remove_empty_folder(folder.parent)


def _remove_empty_folder(folder: Path) -> None:
    with suppress(OSError):  # it has other files, or was never created
        folder.rmdir()


def _list_custom_code(config: TrainConfig | ModelCommandConfig) -> list[str]:
    """Returns the functions of custom code that a configuration names."""
    section = getattr(config, "evaluation", None)
    functions = map(get_task_function, list_custom_tasks(section.tasks if section else ()))
    names = [name for name in functions if name is not None]
    pending: list[Any] = [config.model_dump()]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            names += [
                item for key, item in value.items() if key in CUSTOM_CODE_KEYS and isinstance(item, str)
            ]
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return names


@contextmanager
def _report_interrupted_wait(folder: Path) -> Iterator[None]:
    """Logs that the jobs continue when the user interrupts the wait for them, the context."""
    try:
        yield
    except (SignalInterrupt, KeyboardInterrupt):
        log.info("the jobs continue without this command")
        _log_next_commands(folder)
        raise


def _log_next_commands(folder: Path) -> None:
    log.info("next        krill-runs watch %s", quote_path(folder))
    log.info("            krill-runs cancel %s", quote_path(folder))


def _report_job_end(monitor: JobMonitor, job: SubmittedJob) -> None:
    """Prints the output of the job. Raises KrillError when it did not complete."""
    from krill.runs.run_state import get_run_state

    with suppress(FileNotFoundError):
        sys.stdout.write(monitor.stdout_file.read_text(encoding="utf-8", errors="replace"))
    state = monitor.wait_for_final_state()
    if state != "COMPLETED":
        detail = get_run_state(job.folder).detail if job.folder else ""
        raise KrillError(
            f"job {monitor.job} ended as {state}{f', {detail}' if detail else ''}; see {monitor.stderr_file}, then "
            "run the same command again"
        )
