"""One call of a command, made here or handed to another process: what was composed, and where its result belongs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from krill.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = TypeVar("Config", bound="BaseModel")
log = logging.getLogger("krill")


@dataclass(frozen=True)
class Job:
    """What a call that was handed to another process knows beforehand."""

    config: dict[str, Any]
    """The validated configuration, as JSON holds it."""
    folder: Path | None
    """Where its result belongs; None: the command finds the place."""
    identity: str | None
    """Signature of the result, when it was handed over."""
    on_slurm: bool


@dataclass(frozen=True)
class Call:
    """One call of a command: once, or for one point of a sweep."""

    composed: Any
    hydra: Any
    sweep: Path | None
    """The sweep's folder; None outside a sweep."""
    job: Job | None = None

    @classmethod
    def of_hydra(cls, composed: Any) -> Call:
        """The one that Hydra makes in this process."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        return cls(composed, hydra, Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None)

    @property
    def command(self) -> str:
        return str(self.hydra.job.config_name)

    @property
    def overrides(self) -> list[str]:
        """What was typed, for this point."""
        from krill.cli.argv import as_typed

        return as_typed(self.hydra.overrides.task)

    @property
    def choices(self) -> dict[str, str]:
        """Group → chosen option."""
        return dict(self.hydra.runtime.choices)

    @property
    def for_slurm(self) -> bool:
        """Whether what Hydra composed is for jobs of SLURM."""
        return str(self.hydra.launcher._target_).endswith(".SlurmLauncher")

    @property
    def submits(self) -> bool:
        """Whether this process only hands the work in."""
        return self.job is None and self.sweep is None and self.for_slurm

    def validated(self, schema: type[Config]) -> Config:
        """The typed configuration."""
        from krill.config.validation import validated
        from krill.launch.size import sized

        if self.job is not None:
            return schema.model_validate(self.job.config)
        config: Any = sized(validated(schema, self.composed))  # type: ignore[type-var]
        if config.detach and not self.for_slurm:
            raise UsageError(
                "detach=true is for jobs of SLURM: add hardware=slurm_gpu or another slurm_ option"
            )
        return cast("Config", config)

    def place(self, output: str | None, identity: str) -> Path | None:
        """The folder that was asked for: the sweep's point, else output=; None: krill chooses."""
        if self.job is not None and self.job.identity and identity and self.job.identity != identity:
            raise UsageError("text or weights are no longer those of the submission; give the command again")
        if self.job is not None and self.job.folder is not None:
            return self.job.folder
        if self.sweep is not None:
            return self.sweep / identity[:8]
        return Path(output).absolute() if output else None

    def resume(self, asked: bool | str) -> bool | str:
        """resume=, but for a job that goes on in the folder that it was given."""
        given = self.job is not None and self.job.on_slurm and self.job.folder is not None
        return "auto" if given else asked

    def make(self, command: str, config: Any, work: Callable[[Any, Path | None], Path]) -> None:
        """Call `work`(config, place) for the folder of its result; a sweep's point records it in its own."""
        from krill.cli import places
        from krill.runs.claim import claim
        from krill.runs.record import Record, is_done, shown

        if self.sweep is None:
            self.end(work(config, self.place(config.output, "")))
            return
        identity = places.identity(command, config)
        claimed = claim(identity, self.sweep, self.place(None, identity))
        record = Record(claimed.folder)
        if claimed.state == "finished" and is_done(claimed.folder):
            log.info("finished already, nothing to do: %s", shown(claimed.folder))
            return
        with claimed, record.running(config, identity, self.overrides):
            self.keep(claimed.folder)
            record.update(result=str(work(config, claimed.folder)))

    def keep(self, folder: Path) -> None:
        """Write what Hydra composed to `folder`/.hydra: from= repeats the run from there."""
        from omegaconf import OmegaConf

        from krill import atomic

        (folder / ".hydra").mkdir(exist_ok=True)
        for name, content in (
            ("config", self.composed),
            ("hydra", {"hydra": self.hydra}),
            ("overrides", self.overrides),
        ):
            text = OmegaConf.to_yaml(OmegaConf.create(content))
            atomic.write_text(folder / ".hydra" / f"{name}.yaml", text)

    def end(self, folder: Path) -> None:
        """The last line of standard output: where the result is. A sweep prints its own folder instead."""
        if self.sweep is None:
            from krill.runs.record import shown

            print(shown(folder))
