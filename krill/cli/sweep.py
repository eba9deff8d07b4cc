"""A sweep: all points are validated before the first starts; a table, best first, ends it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from krill import errors
from krill.cli.compose import SCHEMA
from krill.config.schema import Section
from krill.config.validation import validated
from krill.errors import UsageError

log = logging.getLogger("krill")


@dataclass
class _Sweep:
    folder: Path
    points: list[Path]


_current: list[_Sweep] = []


def started() -> bool:
    """Whether this process began a sweep."""
    return bool(_current)


class Invalid(BaseException):
    """What is wrong with a sweep's points. Not an Exception: Hydra makes those of a callback mere warnings."""


class Points(Callback):
    """Hydra calls this before a sweep."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Compose and validate every point; Invalid tells all that is wrong in any of them."""
        from krill.cli import places

        command = config.hydra.job.config_name
        folder = Path(config.hydra.sweep.dir)
        wrong: dict[str, list[str]] = {}
        points = []
        for overrides in (every := _points(config)):
            try:
                points.append(places.point(command, folder, _validated(command, config, overrides)))
            except UsageError as error:
                wrong.setdefault(str(error), []).append(" ".join(overrides))
        if wrong:
            raise Invalid("\n".join(_where(fault, found, len(every)) for fault, found in wrong.items()))
        log.info("sweep: %d points in %s", len(points), folder)
        _current.append(_Sweep(folder, points))


def _where(fault: str, points: list[str], every: int) -> str:
    return fault if len(points) == every else f"{fault}  (in: {'; '.join(points)})"


def _points(config: DictConfig) -> list[list[str]]:
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    return [list(point) for batch in BasicSweeper.split_arguments(overrides, None) for point in batch]


def _validated(command: str, config: DictConfig, overrides: list[str]) -> Section:
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        del composed["hydra"]
    return validated(SCHEMA[command], OmegaConf.create(composed))


def finish() -> int:
    """Print the table, write it, print the sweep's folder; 3 when a point failed."""
    from krill.runs import table

    sweep = _current.pop()
    rows = table.rows(sweep.points)
    table.write(rows, sweep.folder)
    table.show(rows)
    print(sweep.folder)
    return errors.SWEEP_FAILED if any(row.state != "finished" for row in rows) else errors.DONE
