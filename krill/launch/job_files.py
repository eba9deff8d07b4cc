"""Job files: an invocation each, written by the process that submits it and read by the process that runs it.

<sweep>/.jobs/<n>/           0.json 1.json …, the output of the points, and on SLURM jobs.json and code/
outputs/jobs/<time>-<name>/  the same for a single command
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from omegaconf import OmegaConf

from krill.atomic import create_first_free, create_timestamped_folder
from krill.checksum import ChecksumError, has_no_checksum, read_checksummed_json, write_checksummed_json
from krill.config.commands import COMMAND_SCHEMAS
from krill.config.overrides import MODEL_COMMANDS
from krill.config.schema import ModelCommandConfig, TrainConfig
from krill.config.secrets import mask_secrets, mask_text
from krill.errors import UsageError
from krill.launch.invocation import Composition, SingleRun, SubmittedJob, SweepPoint

log = logging.getLogger("krill")

JOB_MODULE = "krill.cli.job"
"""The module that runs an invocation, given the folder of its job file and its index."""


@dataclass(frozen=True)
class Point:
    """A point of a sweep, validated."""

    invocation: SweepPoint
    config: TrainConfig | ModelCommandConfig
    folder: Path
    identity: str
    """Signature of the result."""

    def to_job(self, is_on_slurm: bool) -> SubmittedJob:
        """Returns the point as an invocation that runs in another process."""
        return SubmittedJob(self.invocation, self.config, self.folder, self.identity, is_on_slurm)


def label_points(points: Sequence[Point]) -> list[str]:
    """Returns a label for each point: the overrides in which it differs from the other points, without secrets."""
    from krill.runs.table import find_differing_overrides

    overrides = [point.invocation.overrides for point in points]
    return [mask_text(label) or "single point" for label in find_differing_overrides(overrides)]


def skip_finished(points: Sequence[Point]) -> list[Point]:
    """Returns the points that are not finished; logs the others."""
    from krill.config.paths import relative_path
    from krill.launch.identity import should_repeat
    from krill.runs.record import is_done

    unfinished = []
    for point in points:
        if is_done(point.folder) and not should_repeat(point.config):
            log.info("already finished, skipping: %s", relative_path(point.folder))
        else:
            unfinished.append(point)
    return unfinished


def build_slots(points: Sequence[Point]) -> list[dict[str, str]]:
    """Returns the environment of each slot in which a point runs on this machine, one at a time."""
    from krill.launch import pool
    from krill.training.compute.device import resolve_world_size

    first = points[0].config
    configs = [point.config for point in points]
    ranks = max(resolve_world_size(config) if isinstance(config, TrainConfig) else 1 for config in configs)
    threads = first.hardware.threads if isinstance(first, TrainConfig) else None
    # A preparation uses all cores itself.
    num_commands = len(points) if points[0].invocation.command in {"train", *MODEL_COMMANDS} else 1
    return pool.build_slot_environments(first.sweep.max_parallel, first.device, ranks, num_commands, threads)


def create_submission_folder(parent: Path, name: str = "") -> Path:
    """Creates the folder of a submission, named after the time and `name`; without a name it is numbered."""
    return create_timestamped_folder(parent, name) if name else create_first_free(parent, map(str, count(1)))


def write_job_files(folder: Path, jobs: Sequence[SubmittedJob]) -> None:
    """Writes a file for each job, named by its index."""
    for index, job in enumerate(jobs):
        hydra = {
            "job": {"config_name": job.command},
            "overrides": {"task": job.overrides},
            "runtime": {"choices": job.choices},
        }
        value = {
            "config": job.config.model_dump(mode="json", by_alias=True),
            "composed": OmegaConf.to_yaml(job.composition.config),
            "hydra": hydra,
            "sweep": str(job.origin.sweep_folder) if isinstance(job.origin, SweepPoint) else None,
            "folder": job.folder and str(job.folder),
            "identity": job.identity,
        }
        file = folder / f"{index}.json"
        has_secrets = mask_secrets(value) != value  # the job needs them
        write_checksummed_json(file, value, 0o600 if has_secrets else 0o666)


def read_job_file(folder: Path, index: int, is_on_slurm: bool) -> SubmittedJob:
    """Returns the job of one of these files. Raises UsageError if it is damaged."""
    try:
        value = read_checksummed_json(folder / f"{index}.json", has_no_checksum)
    except ChecksumError as error:
        raise UsageError(f"{error}; run the command that submitted this job again") from error
    composition = Composition(OmegaConf.create(value["composed"]), OmegaConf.create(value["hydra"]))
    origin = SweepPoint(composition, Path(value["sweep"])) if value["sweep"] else SingleRun(composition)
    config = COMMAND_SCHEMAS[origin.command].model_validate(value["config"])
    result_folder = Path(value["folder"]) if value["folder"] else None
    return SubmittedJob(origin, config, result_folder, value["identity"], is_on_slurm)
