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
from krill.atomic import make_first, new_named_for_time
from krill.cli.call import Call, Job
from krill.config.schema import InferConfig, TrainConfig

log = logging.getLogger("krill")

MODULE = "krill.cli.job"
"""What runs one, given its folder and its index."""


@dataclass(frozen=True)
class Point:
    """A call that is to be made, its configuration validated."""

    call: Call
    config: TrainConfig | InferConfig
    folder: Path | None
    """Where its result belongs; None: the command finds the place."""
    identity: str | None


def names(points: Sequence[Point]) -> list[str]:
    """What a person knows each by: what was typed for it and not for all."""
    from krill.runs.table import differing

    return [words or "as typed" for words in differing([point.call.overrides for point in points])]


def unfinished(points: Sequence[Point]) -> list[Point]:
    """Those points that are still to be made; says of the others that they are there."""
    from krill.runs.record import is_done, shown

    left = []
    for point in points:
        assert point.folder is not None
        if is_done(point.folder):
            log.info("finished already, nothing to do: %s", shown(point.folder))
        else:
            left.append(point)
    return left


def slots(points: Sequence[Point]) -> list[dict[str, str]]:
    """Where points run on this machine, one at a time in each: the environment of each slot."""
    from krill.launch import pool
    from krill.training.plan import ranks_of

    first = points[0].config
    configs = [point.config for point in points]
    ranks = max(ranks_of(config) if isinstance(config, TrainConfig) else 1 for config in configs)
    return pool.slots_of(first.sweep.slots, first.device, ranks)


def new_folder(parent: Path, name: str = "") -> Path:
    """A folder for a submission: numbered below a sweep, else named for time and `name`."""
    return new_named_for_time(parent, name) if name else make_first(parent, map(str, count(1)))


def write(folder: Path, points: Sequence[Point]) -> None:
    """A file for each call."""
    for index, point in enumerate(points):
        call = point.call
        hydra = {
            "job": {"config_name": call.command},
            "overrides": {"task": call.overrides},
            "runtime": {"choices": call.choices},
        }
        value = {
            "config": point.config.model_dump(mode="json", by_alias=True),
            "composed": OmegaConf.to_yaml(call.composed),
            "hydra": hydra,
            "sweep": call.sweep and str(call.sweep),
            "folder": point.folder and str(point.folder),
            "identity": point.identity,
        }
        atomic.write_json(folder / f"{index}.json", value)


def read(folder: Path, index: int, on_slurm: bool) -> Call:
    """The call of one of these files."""
    value = json.loads((folder / f"{index}.json").read_text(encoding="utf-8"))
    composed = OmegaConf.create(value["composed"])
    assert isinstance(composed, DictConfig)
    place = value["folder"] and Path(value["folder"])
    job = Job(value["config"], place, value["identity"], on_slurm)
    return Call(composed, OmegaConf.create(value["hydra"]), value["sweep"] and Path(value["sweep"]), job)
