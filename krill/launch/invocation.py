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

ConfigT = TypeVar("ConfigT", bound="BaseModel")
log = logging.getLogger("krill")


@dataclass(frozen=True)
class InvocationPayload:
    """What a call that was handed to another process knows beforehand."""

    config: dict[str, Any]
    """The validated configuration, as JSON holds it."""
    folder: Path | None
    """Where its result belongs; None: the command finds the place."""
    identity: str | None
    """Signature of the result, when it was handed over."""
    is_on_slurm: bool


@dataclass(frozen=True)
class Invocation:
    """One call of a command: once, or for one point of a sweep."""

    composed_config: Any
    hydra: Any
    sweep_folder: Path | None
    """The sweep's folder; None outside a sweep."""
    payload: InvocationPayload | None = None

    @classmethod
    def from_hydra(cls, composed: Any) -> Invocation:
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
        from krill.cli.argv import to_unresolved_list

        return to_unresolved_list(self.hydra.overrides.task)

    @property
    def choices(self) -> dict[str, str]:
        """Group → chosen option."""
        return dict(self.hydra.runtime.choices)

    @property
    def is_for_slurm(self) -> bool:
        """Whether what Hydra composed is for jobs of SLURM."""
        return str(self.hydra.launcher._target_).endswith(".SlurmLauncher")

    @property
    def should_submit(self) -> bool:
        """Whether this process only hands the work in."""
        return self.payload is None and self.sweep_folder is None and self.is_for_slurm

    def validate(self, schema: type[ConfigT]) -> ConfigT:
        """The typed configuration."""
        from krill.config.validation import validate_config
        from krill.launch.auto_processes import resolve_auto_processes

        if self.payload is not None:
            return schema.model_validate(self.payload.config)
        config: Any = resolve_auto_processes(validate_config(schema, self.composed_config))  # type: ignore[type-var]
        if config.detach and not self.is_for_slurm:
            raise UsageError(
                "detach=true is for jobs of SLURM: add hardware=slurm_gpu or another slurm_ option"
            )
        return cast("ConfigT", config)

    def resolve_folder(self, output: str | None, identity: str) -> Path | None:
        """The folder that was asked for: the sweep's point, else output=; None: krill chooses."""
        if (
            self.payload is not None
            and self.payload.identity
            and identity
            and self.payload.identity != identity
        ):
            raise UsageError("text or weights are no longer those of the submission; give the command again")
        if self.payload is not None and self.payload.folder is not None:
            return self.payload.folder
        if self.sweep_folder is not None:
            return self.sweep_folder / identity[:8]
        return Path(output).absolute() if output else None

    def resolve_resume(self, asked: bool | str) -> bool | str:
        """resume=, but for a job that goes on in the folder that it was given."""
        given = self.payload is not None and self.payload.is_on_slurm and self.payload.folder is not None
        return "auto" if given else asked

    def run_stage(self, command: str, config: Any, work: Callable[[Any, Path | None], Path]) -> None:
        """Call `work`(config, place) for the folder of its result; a sweep's point records it in its own."""
        from krill.launch.identity import compute_identity
        from krill.runs.claim import claim
        from krill.runs.record import Record, is_done, relative_path

        if self.sweep_folder is None:
            self.print_result_folder(work(config, self.resolve_folder(config.output, "")))
            return
        identity = compute_identity(command, config)
        claimed = claim(identity, self.sweep_folder, self.resolve_folder(None, identity))
        record = Record(claimed.folder)
        if claimed.state == "finished" and is_done(claimed.folder):
            log.info("finished already, nothing to do: %s", relative_path(claimed.folder))
            return
        with claimed, record.record_lifecycle(config, identity, self.overrides):
            self.save_hydra_config(claimed.folder)
            record.update(result=str(work(config, claimed.folder)))

    def save_hydra_config(self, folder: Path) -> None:
        """Write what Hydra composed to `folder`/.hydra: from= repeats the run from there."""
        from omegaconf import OmegaConf

        from krill import atomic

        (folder / ".hydra").mkdir(exist_ok=True)
        for name, content in (
            ("config", self.composed_config),
            ("hydra", {"hydra": self.hydra}),
            ("overrides", self.overrides),
        ):
            text = OmegaConf.to_yaml(OmegaConf.create(content))
            atomic.write_text(folder / ".hydra" / f"{name}.yaml", text)

    def print_result_folder(self, folder: Path) -> None:
        """The last line of standard output: where the result is. A sweep prints its own folder instead."""
        if self.sweep_folder is None:
            from krill.runs.record import relative_path

            print(relative_path(folder))
