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

from krill.cli import jobs
from krill.cli.jobs import Point
from krill.config.location import outputs_root
from krill.config.schema import InferConfig, TrainConfig
from krill.errors import FAILED, KrillError, Stopped, UsageError
from krill.launch import snapshot
from krill.launch.submission import Submission, command, request
from krill.launch.waiting import Followed, watch
from krill.runs.slurm import JOBS
from krill.training.plan import announced

if TYPE_CHECKING:
    from krill.cli.call import Call
    from krill.cli.sweep import Sweep

log = logging.getLogger("krill")

OWN_CODE = ("build", "keep", "read")
"""Keys of the configuration that name functions of the person's own."""


def many(sweep: Sweep) -> None:
    """Submit the points of a sweep that are neither finished nor in the queue; wait for all, unless detach=true."""
    from krill.runs.standing import GOES_ON, standings

    if sweep.dry_run:
        for points in _alike(sweep.batch):
            print("\n".join(_submission(Path("FOLDER"), points).scripts()))
        return
    left = jobs.unfinished(sweep.batch)
    stands = standings([point.folder for point in left if point.folder])
    new = [point for point in left if point.folder and stands[point.folder].state not in GOES_ON]
    names = dict(zip((point.folder for point in left), jobs.names(left), strict=True))
    for point in left:
        if point not in new and point.folder:
            log.info("%s: in the queue already, job %s", names[point.folder], stands[point.folder].job)
    for points in _alike(new):
        _hand_in(_submission(jobs.new_folder(sweep.folder / ".jobs"), points), points)
    if sweep.points[0].config.detach:
        _say_next(sweep.folder)
    elif left:
        with _going_on(sweep.folder):
            watch({folder: name for folder, name in names.items() if folder})


def _alike(points: Sequence[Point]) -> list[list[Point]]:
    """Points by what they ask of SLURM: jobs of one array are alike."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(json.dumps(_request(point), sort_keys=True), []).append(point)
    return list(groups.values())


def one(config: TrainConfig | InferConfig, call: Call) -> None:
    """Submit a call that is no sweep; wait for its job and print what it prints, unless detach=true.

    A training gets its folder now: a job that is started again, by whomever, finds it.
    """
    if announced() > 1:
        raise UsageError("ranks were started already (WORLD_SIZE): leave hardware=slurm_… out")
    if config.dry_run:
        print("\n".join(_submission(Path("FOLDER"), [Point(call, config, None, None)]).scripts()))
        return
    if call.command == "train":
        assert isinstance(config, TrainConfig)
        point = _with_folder(config, call)
        if point is None:
            return
    else:
        point = Point(call, config, None, None)
    folder = jobs.new_folder(outputs_root() / "jobs", config.name)
    numbers = _hand_in(_submission(folder, [point]), [point])
    if config.detach:
        _say_next(point.folder or folder)
        return
    with _going_on(point.folder or folder):
        followed = Followed(folder, numbers["0"])
        followed.until_it_ends()
    _end(followed, point)


def _with_folder(config: TrainConfig, call: Call) -> Point | None:
    """The training with the folder that it has or gets; None: it is finished there."""
    from krill.cli import places
    from krill.runs.claim import claim
    from krill.runs.record import shown

    identity = places.identity("train", config)
    claimed = claim(
        identity, outputs_root() / "runs" / config.name, call.place(config.output, identity), config.resume,
        config.resume_changed,
    )  # fmt: skip
    if claimed.state == "finished":
        log.info("finished already, nothing to do: %s", shown(claimed.folder))
        print(shown(claimed.folder))
        return None
    with claimed:  # until here: the job will hold it
        pass
    return Point(call, config, claimed.folder, identity)


def _submission(folder: Path, points: Sequence[Point]) -> Submission:
    slots = points[0].config.sweep.slots
    at_once = None if slots == "auto" else slots
    return Submission(folder, command(jobs.MODULE, folder), _request(points[0]), len(points), at_once)


def _request(point: Point) -> dict[str, Any]:
    """What a point asks of SLURM."""
    asked = OmegaConf.to_container(point.call.hydra.launcher, resolve=True)
    assert isinstance(asked, dict)
    asks = {str(key): value for key, value in asked.items() if key != "_target_"}
    return request(point.config.hardware, asks, point.config.name, trains=point.call.command == "train")


def _hand_in(submission: Submission, points: Sequence[Point]) -> dict[str, str]:
    """Write what the jobs need, say in each folder that it is queued, submit."""
    from krill.runs.record import Record

    snapshot.take(submission.folder / "code", {name for point in points for name in _own_code(point.config)})
    jobs.write(submission.folder, points)
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
            overrides=point.call.overrides, name=point.config.name, command=point.call.command,
            submission=str(submission.folder), submitted_as=str(index),
        )  # fmt: skip
    try:
        numbers = submission.submit()
    except BaseException:
        if not (submission.folder / JOBS).exists():  # nothing was: all is as it was before
            for place, status in before.items():
                _restore(place, status)
        raise
    arrays = dict.fromkeys(number.partition("_")[0] for number in numbers.values())
    what = f"{len(points)} jobs:" if len(points) > 1 else "job"
    log.info("submitted   %s %s", what, ", ".join(arrays))
    return numbers


def _restore(folder: Path, status: dict[str, Any]) -> None:
    from krill import atomic

    if status:
        atomic.write_json(folder / "status.json", status)
    else:
        (folder / "status.json").unlink()
        with suppress(OSError):  # what else is there stays
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()


def _own_code(config: TrainConfig | InferConfig) -> list[str]:
    """Code of the person's own that a configuration names."""
    found: list[str] = []
    pending: list[Any] = [config.model_dump()]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            found += [item for key, item in value.items() if key in OWN_CODE and isinstance(item, str)]
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


@contextmanager
def _going_on(place: Path) -> Iterator[None]:
    """While waiting for jobs: whoever stops that is told that they go on."""
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        log.info("the jobs go on without this command")
        _say_next(place)
        raise


def _say_next(place: Path) -> None:
    from krill.runs.record import shown

    log.info("next        krill-runs watch %s", shown(place))
    log.info("            krill-runs cancel %s", shown(place))


def _end(followed: Followed, point: Point) -> None:
    """Print what the job printed; raise KrillError where it did not end well."""
    from krill.runs.standing import standing

    with suppress(FileNotFoundError):
        sys.stdout.write(followed.out.read_text(encoding="utf-8", errors="replace"))
    state = followed.final_state()
    if state != "COMPLETED":
        why = standing(point.folder).why if point.folder else ""
        failure = KrillError(f"job {followed.job}: {state}{f', {why}' if why else ''}; {followed.err}")
        failure.exit_code = FAILED
        raise failure
