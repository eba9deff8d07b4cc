"""Handing calls to SLURM: one array for the points of a sweep, one job for a command that is none."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from krill.config.paths import get_outputs_root
from krill.config.schema import InferConfig, TrainConfig
from krill.errors import FAILED, KrillError, SignalInterrupt, UsageError
from krill.launch import job_files, snapshot
from krill.launch.job_files import ValidatedInvocation
from krill.launch.sbatch import Submission, build_job_command, build_sbatch_parameters
from krill.launch.slurm_monitor import JobMonitor, monitor_runs
from krill.runs.slurm import JOBS_FILE
from krill.training.batch_shape import world_size_from_env

if TYPE_CHECKING:
    from krill.launch.invocation import Invocation
    from krill.sweep.sweeper import Sweep

log = logging.getLogger("krill")

CUSTOM_CODE_KEYS = ("build", "keep", "read")
"""Keys of the configuration that name functions of the person's own."""


def submit_sweep(sweep: Sweep) -> None:
    """Submit the points of a sweep that are neither finished nor in the queue; wait for all, unless detach=true."""
    from krill.runs.run_state import ACTIVE_STATES, get_run_states

    if sweep.dry_run:
        for points in _group_by_request(sweep.batch):
            print("\n".join(_build_submission(Path("FOLDER"), points).render_scripts()))
        return
    left = job_files.skip_finished(sweep.batch)
    stands = get_run_states([point.folder for point in left if point.folder])
    new = [point for point in left if point.folder and stands[point.folder].state not in ACTIVE_STATES]
    names = dict(zip((point.folder for point in left), job_files.label_points(left), strict=True))
    for point in left:
        if point not in new and point.folder:
            log.info("%s: in the queue already, job %s", names[point.folder], stands[point.folder].job)
    for points in _group_by_request(new):
        _submit_points(
            _build_submission(job_files.create_submission_folder(sweep.folder / ".jobs"), points), points
        )
    if sweep.points[0].config.detach:
        _log_next_commands(sweep.folder)
    elif left:
        with _report_interrupted_wait(sweep.folder):
            monitor_runs({folder: name for folder, name in names.items() if folder})


def _group_by_request(points: Sequence[ValidatedInvocation]) -> list[list[ValidatedInvocation]]:
    """Points by what they ask of SLURM: jobs of one array are alike."""
    groups: dict[str, list[ValidatedInvocation]] = {}
    for point in points:
        groups.setdefault(json.dumps(_build_request(point), sort_keys=True), []).append(point)
    return list(groups.values())


def submit_invocation(config: TrainConfig | InferConfig, call: Invocation) -> None:
    """Submit a call that is no sweep; wait for its job and print what it prints, unless detach=true.

    A training gets its folder now: a job that is started again, by whomever, finds it.
    """
    if world_size_from_env() > 1:
        raise UsageError("ranks were started already (WORLD_SIZE): leave hardware=slurm_… out")
    if config.dry_run:
        print(
            "\n".join(
                _build_submission(
                    Path("FOLDER"), [ValidatedInvocation(call, config, None, None)]
                ).render_scripts()
            )
        )
        return
    if call.command == "train":
        assert isinstance(config, TrainConfig)
        point = _claim_folder(config, call)
        if point is None:
            return
    else:
        point = ValidatedInvocation(call, config, None, None)
    folder = job_files.create_submission_folder(get_outputs_root() / "jobs", config.name)
    numbers = _submit_points(_build_submission(folder, [point]), [point])
    if config.detach:
        _log_next_commands(point.folder or folder)
        return
    with _report_interrupted_wait(point.folder or folder):
        followed = JobMonitor(folder, numbers["0"])
        followed.follow()
    _report_job_end(followed, point)


def _claim_folder(config: TrainConfig, call: Invocation) -> ValidatedInvocation | None:
    """The training with the folder that it has or gets; None: it is finished there."""
    from krill.launch.identity import compute_identity
    from krill.runs.claim import claim
    from krill.runs.record import relative_path

    identity = compute_identity("train", config)
    claimed = claim(
        identity, get_outputs_root() / "runs" / config.name, call.resolve_folder(config.output, identity), config.resume,
        config.resume_changed,
    )  # fmt: skip
    if claimed.state == "finished":
        log.info("finished already, nothing to do: %s", relative_path(claimed.folder))
        print(relative_path(claimed.folder))
        return None
    with claimed:  # until here: the job will hold it
        pass
    return ValidatedInvocation(call, config, claimed.folder, identity)


def _build_submission(folder: Path, points: Sequence[ValidatedInvocation]) -> Submission:
    slots = points[0].config.sweep.max_parallel
    at_once = None if slots == "auto" else slots
    return Submission(
        folder,
        build_job_command(job_files.JOB_MODULE, folder),
        _build_request(points[0]),
        len(points),
        at_once,
    )


def _build_request(point: ValidatedInvocation) -> dict[str, Any]:
    """What a point asks of SLURM."""
    asked = OmegaConf.to_container(point.invocation.hydra.launcher, resolve=True)
    assert isinstance(asked, dict)
    asks = {str(key): value for key, value in asked.items() if key != "_target_"}
    return build_sbatch_parameters(
        point.config.hardware, asks, point.config.name, trains=point.invocation.command == "train"
    )


def _submit_points(submission: Submission, points: Sequence[ValidatedInvocation]) -> dict[str, str]:
    """Write what the jobs need, say in each folder that it is queued, submit."""
    from krill.runs.record import Record

    snapshot.snapshot_code(
        submission.folder / "code", {name for point in points for name in _list_custom_code(point.config)}
    )
    job_files.write_job_files(submission.folder, points)
    before: dict[Path, dict[str, Any]] = {}
    for index, point in enumerate(points):
        if point.folder is None:
            continue
        point.folder.mkdir(parents=True, exist_ok=True)
        record = Record(point.folder)
        before[point.folder] = record.status
        # Before it is submitted: what the job says of itself afterwards must stay.
        record.update(
            signature=point.identity, state="queued", exit=None, error=None, end=None, slurm_job_id=None,
            overrides=point.invocation.overrides, name=point.config.name, command=point.invocation.command,
            submission=str(submission.folder), submitted_as=str(index),
        )  # fmt: skip
    try:
        numbers = submission.submit()
    except BaseException:
        if not (submission.folder / JOBS_FILE).exists():  # nothing was: all is as it was before
            for place, status in before.items():
                _restore_status(place, status)
        raise
    arrays = dict.fromkeys(number.partition("_")[0] for number in numbers.values())
    what = f"{len(points)} jobs:" if len(points) > 1 else "job"
    log.info("submitted   %s %s", what, ", ".join(arrays))
    return numbers


def _restore_status(folder: Path, status: dict[str, Any]) -> None:
    from krill import atomic

    if status:
        atomic.write_json(folder / "status.json", status)
    else:
        (folder / "status.json").unlink()
        with suppress(OSError):  # what else is there stays
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()


def _list_custom_code(config: TrainConfig | InferConfig) -> list[str]:
    """Code of the person's own that a configuration names."""
    found: list[str] = []
    pending: list[Any] = [config.model_dump()]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            found += [
                item for key, item in value.items() if key in CUSTOM_CODE_KEYS and isinstance(item, str)
            ]
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


@contextmanager
def _report_interrupted_wait(place: Path) -> Iterator[None]:
    """While waiting for jobs: whoever stops that is told that they go on."""
    try:
        yield
    except (SignalInterrupt, KeyboardInterrupt):
        log.info("the jobs go on without this command")
        _log_next_commands(place)
        raise


def _log_next_commands(place: Path) -> None:
    from krill.runs.record import relative_path

    log.info("next        krill-runs watch %s", relative_path(place))
    log.info("            krill-runs cancel %s", relative_path(place))


def _report_job_end(followed: JobMonitor, point: ValidatedInvocation) -> None:
    """Print what the job printed; raise KrillError where it did not end well."""
    from krill.runs.run_state import get_run_state

    with suppress(FileNotFoundError):
        sys.stdout.write(followed.stdout_file.read_text(encoding="utf-8", errors="replace"))
    state = followed.wait_for_final_state()
    if state != "COMPLETED":
        why = get_run_state(point.folder).detail if point.folder else ""
        failure = KrillError(
            f"job {followed.job}: {state}{f', {why}' if why else ''}; {followed.stderr_file}"
        )
        failure.exit_code = FAILED
        raise failure
