"""Calls handed to other processes: a file each, in the folder of their submission.

<sweep>/.jobs/<n>/           0.json 1.json …, what they print, and on SLURM jobs.json and code/
outputs/jobs/<time>-<name>/  the same for a command that is no sweep
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from krill import atomic
from krill.atomic import create_first_free, create_timestamped_folder
from krill.config.schema import InferConfig, TrainConfig
from krill.launch.invocation import Invocation, InvocationPayload

log = logging.getLogger("krill")

JOB_MODULE = "krill.cli.job"
"""What runs one, given its folder and its index."""


@dataclass(frozen=True)
class ValidatedInvocation:
    """A call that is to be made, its configuration validated."""

    invocation: Invocation
    config: TrainConfig | InferConfig
    folder: Path | None
    """Where its result belongs; None: the command finds the place."""
    identity: str | None


def label_points(points: Sequence[ValidatedInvocation]) -> list[str]:
    """What a person knows each by: what was typed for it and not for all."""
    from krill.runs.table import find_differing_overrides

    return [
        words or "as typed"
        for words in find_differing_overrides([point.invocation.overrides for point in points])
    ]


def skip_finished(points: Sequence[ValidatedInvocation]) -> list[ValidatedInvocation]:
    """Those points that are still to be made; says of the others that they are there."""
    from krill.runs.record import is_done, relative_path

    left = []
    for point in points:
        assert point.folder is not None
        if is_done(point.folder):
            log.info("finished already, nothing to do: %s", relative_path(point.folder))
        else:
            left.append(point)
    return left


def build_slots(points: Sequence[ValidatedInvocation]) -> list[dict[str, str]]:
    """Where points run on this machine, one at a time in each: the environment of each slot."""
    from krill.launch import pool
    from krill.training.batch_shape import resolve_world_size

    first = points[0].config
    configs = [point.config for point in points]
    ranks = max(resolve_world_size(config) if isinstance(config, TrainConfig) else 1 for config in configs)
    return pool.build_slot_environments(first.sweep.max_parallel, first.device, ranks)


def create_submission_folder(parent: Path, name: str = "") -> Path:
    """A folder for a submission: numbered below a sweep, else named for time and `name`."""
    return create_timestamped_folder(parent, name) if name else create_first_free(parent, map(str, count(1)))


def write_job_files(folder: Path, points: Sequence[ValidatedInvocation]) -> None:
    """A file for each call."""
    for index, point in enumerate(points):
        call = point.invocation
        hydra = {
            "job": {"config_name": call.command},
            "overrides": {"task": call.overrides},
            "runtime": {"choices": call.choices},
        }
        value = {
            "config": point.config.model_dump(mode="json", by_alias=True),
            "composed": OmegaConf.to_yaml(call.composed_config),
            "hydra": hydra,
            "sweep": call.sweep_folder and str(call.sweep_folder),
            "folder": point.folder and str(point.folder),
            "identity": point.identity,
        }
        atomic.write_json(folder / f"{index}.json", value)


def read_job_file(folder: Path, index: int, on_slurm: bool) -> Invocation:
    """The call of one of these files."""
    value = json.loads((folder / f"{index}.json").read_text(encoding="utf-8"))
    composed = OmegaConf.create(value["composed"])
    assert isinstance(composed, DictConfig)
    place = value["folder"] and Path(value["folder"])
    job = InvocationPayload(value["config"], place, value["identity"], on_slurm)
    return Invocation(
        composed, OmegaConf.create(value["hydra"]), value["sweep"] and Path(value["sweep"]), job
    )
