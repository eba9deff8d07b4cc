"""A sweep: all points are validated before the first starts; a table, best first, ends it."""

from __future__ import annotations

import logging
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from krill import errors
from krill.cli.argv import quoted
from krill.cli.compose import SCHEMA, as_typed
from krill.config.schema import InferConfig, TrainConfig
from krill.config.validation import validated
from krill.errors import UsageError

log = logging.getLogger("krill")


@dataclass
class _Sweep:
    folder: Path
    points: list[Path]
    dry_run: bool


_current: list[_Sweep] = []


def started() -> bool:
    """Whether this process began a sweep."""
    return bool(_current)


class Refused(BaseException):
    """Carries why a sweep does not start. Not an Exception: Hydra makes those of a callback mere warnings."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


class Points(Callback):
    """Hydra calls this before a sweep."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Compose and validate every point; Refused tells all that is wrong in any of them."""
        try:
            _current.append(_begun(config))
        except Exception as error:
            raise Refused(error) from error


def _begun(config: DictConfig) -> _Sweep:
    from krill.cli import places
    from krill.sources.digests import none_kept

    command = config.hydra.job.config_name
    folder = Path(config.hydra.sweep.dir)
    with read_write(config), open_dict(config):  # or a swept name would move single points elsewhere
        config.hydra.overrides.hydra.append(quoted(f"hydra.sweep.dir={folder}"))
    wrong: dict[str, list[str]] = {}
    points = []
    dry_run = bool(config.dry_run)  # as where Hydra was told to put the sweep, whatever single points say
    for overrides in (every := _points(config)):
        try:
            point = _validated(command, config, overrides)
            with none_kept() if dry_run else nullcontext():
                points.append(places.point(command, folder, point))
        except UsageError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(" ".join(overrides))
    if wrong:
        raise UsageError("\n".join(_where(fault, found, len(every)) for fault, found in wrong.items()))
    log.info("sweep: %d points%s", len(points), "" if dry_run else f" in {folder}")
    return _Sweep(folder, points, dry_run)


def _where(fault: str, points: list[str], every: int) -> str:
    return fault if len(points) == every else f"{fault}  (in: {'; '.join(points)})"


def _points(config: DictConfig) -> list[list[str]]:
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides(as_typed(config.hydra.overrides.task))
    return [list(point) for batch in BasicSweeper.split_arguments(overrides, None) for point in batch]


def _validated(command: str, config: DictConfig, overrides: list[str]) -> TrainConfig | InferConfig:
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        del composed["hydra"]
    return validated(SCHEMA[command], OmegaConf.create(composed))


def finish(failed: bool) -> int:
    """Print the table, write it, print the sweep's folder; 3 when a point failed.

    `failed`: whether Hydra told of a failure; a dry run leaves no other trace of it.
    """
    from krill.runs import table

    sweep = _current.pop()
    if sweep.dry_run:
        shutil.rmtree(sweep.folder, ignore_errors=True)
        return errors.SWEEP_FAILED if failed else errors.DONE
    rows = table.rows(sweep.points)
    table.write(rows, sweep.folder)
    table.show(rows)
    print(sweep.folder)
    return errors.SWEEP_FAILED if any(row.state != "finished" for row in rows) else errors.DONE
