"""An invocation of a command: its composed configuration, and the folder of its result.

SingleRun       runs once, in this process, or submits itself to SLURM
SweepPoint      one point of a sweep
SubmittedJob    one of these in a process of its own: a SLURM job, or a point that runs in the pool
"""

from __future__ import annotations

import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from krill.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from krill.config.rule_keys import InheritedValues, RuleValue
    from krill.config.schema import ModelCommandConfig, TrainConfig
    from krill.config.yaml_files import ConfigOrigins
    from krill.data.inputs import RunInputs
    from krill.runs.claim import Claim

ConfigT = TypeVar("ConfigT", bound="BaseModel")
log = logging.getLogger("krill")


def build_invocation(composed: Any) -> SingleRun | SweepPoint:
    """Returns the invocation of the configuration that Hydra has just composed in this process."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    composition = Composition(composed, hydra)
    if hydra.mode == RunMode.MULTIRUN:
        return SweepPoint(composition, Path(hydra.sweep.dir))
    return SingleRun(composition)


class Composition:
    """What Hydra composed for one invocation."""

    def __init__(self, config: Any, hydra: Any):
        """`config`: without the node hydra; `hydra`: that node."""
        self._config, self._hydra = config, hydra

    @property
    def config(self) -> Any:
        """The configuration without the node hydra."""
        return self._config

    @property
    def hydra(self) -> Any:
        """The node hydra."""
        return self._hydra

    @cached_property
    def command(self) -> str:
        """The name of the command."""
        return str(self.hydra.job.config_name)

    @cached_property
    def overrides(self) -> list[str]:
        """The overrides from the command line."""
        from krill.config.overrides import to_unresolved_list

        return to_unresolved_list(self.hydra.overrides.task)

    @cached_property
    def choices(self) -> dict[str, str]:
        """Config group → chosen option."""
        return dict(self.hydra.runtime.choices)

    @property
    def user_folders(self) -> list[Path]:
        """The user's configuration folders, the one with precedence first; none for a submitted job."""
        sources = self.hydra.runtime.get("config_sources") or ()
        return [Path(source.path) for source in sources if source.provider == "user"]

    @cached_property
    def launcher(self) -> str:
        """The class of Hydra's launcher, package.module.Class."""
        return str(self.hydra.launcher._target_)


class Invocation(ABC):
    """One invocation of a command."""

    def __init__(self, composition: Composition):
        self.composition = composition
        self.sweep_folder: Path | None = None
        """The folder of the sweep, for one of its points."""
        self.identity: str | None = None
        """Signature of the result, if it was computed before the command starts."""
        self.config: Any = None
        """The configuration as its schema, once it is validated."""
        self.inherited: InheritedValues | None = None
        """What it has from the run that it continues."""

    @property
    def command(self) -> str:
        """The name of the command."""
        return self.composition.command

    @property
    def overrides(self) -> list[str]:
        """The overrides from the command line, for this point."""
        return self.composition.overrides

    @property
    def recorded_overrides(self) -> list[str]:
        """The overrides in the status of a run: without the null of a key that another one excludes."""
        from krill.config.overrides import exclude_cleared_keys

        return exclude_cleared_keys(self.overrides)

    @property
    def choices(self) -> dict[str, str]:
        """Config group → chosen option."""
        return self.composition.choices

    @property
    def is_for_slurm(self) -> bool:
        """Whether the composed configuration runs as SLURM jobs."""
        return self.composition.launcher.endswith(".SlurmLauncher")

    @property
    def is_interactive(self) -> bool:
        """Whether the command may ask the user for input."""
        return False

    @property
    def is_sweep_point(self) -> bool:
        """Whether the result is recorded in the folder of a sweep's point."""
        return False

    @property
    def has_assigned_folder(self) -> bool:
        """Whether the folder of the result was assigned before the command started."""
        return self.is_sweep_point

    def validate(self, schema: type[ConfigT]) -> ConfigT:
        """Returns the typed configuration. Raises UsageError that lists everything wrong in it."""
        from krill.config.overrides import MODEL_COMMANDS
        from krill.config.validation import validate_config
        from krill.launch.auto_processes import resolve_auto_processes
        from krill.launch.inherited_rates import inherit_rates
        from krill.launch.run_names import resolve_run_names

        if self.config is None:
            composed = self.composition.config
            config: Any = resolve_auto_processes(validate_config(schema, composed, self._find_origins))  # type: ignore[type-var]
            if self.command in {"train", "plan", *MODEL_COMMANDS}:
                config = resolve_run_names(config, self.sweep_folder)
            if self.command in {"train", "plan"}:
                config, self.inherited = inherit_rates(config, composed)
            if config.detach and not self.is_for_slurm:
                raise UsageError(
                    "detach=true is for SLURM jobs: add hardware=slurm_gpu or another slurm_ option"
                )
            self.config = config
        assert isinstance(self.config, schema)
        return self.config

    def explain_rule(self) -> list[RuleValue]:
        """Returns the values that follow the size of the run, of a command that trains or plans."""
        from omegaconf import OmegaConf

        from krill.config.rule_keys import explain_rule

        unresolved: Any = OmegaConf.to_container(self.composition.config, resolve=False)
        return explain_rule(unresolved, self.config, self.inherited)

    def _find_origins(self) -> ConfigOrigins:
        """Returns where the user's files set the keys of the configuration."""
        from krill.config.overrides import get_override_key
        from krill.config.yaml_files import ConfigOrigins

        keys = {get_override_key(override) for override in self.overrides}
        return ConfigOrigins.find(self.command, self.choices, self.composition.user_folders, keys)

    def open_inputs(self, config: TrainConfig) -> RunInputs:
        """Returns the inputs of `config`, the validated configuration. Raises UsageError for unusable files."""
        from krill.data.inputs import RunInputs

        return RunInputs.open(config)

    @abstractmethod
    def resolve_folder(self, output: str | None, identity: str) -> Path | None:
        """Returns the assigned folder of a result with this signature, else `output`; None: the command chooses."""

    def resolve_resume(self, resume: bool | str) -> bool | str:
        """Returns the value of resume= that applies to this invocation."""
        return resume

    def claim_run_folder(
        self, config: TrainConfig, inputs: RunInputs, identity: str, dry_run: bool = False
    ) -> Claim:
        """Claims the folder of a training run with this signature. Raises UsageError as `krill.runs.claim` does."""
        from krill.runs.claim import claim

        return claim(
            identity,
            inputs.outputs / "runs" / config.name,
            self.resolve_folder(config.output, identity),
            self.resolve_resume(config.resume),
            config.resume_changed and not self.has_assigned_folder,
            dry_run,
        )

    def run_stage(self, config: Any, inputs: RunInputs | None, work: Callable[[Path | None], Path]) -> None:
        """Calls `work`(folder), which returns the folder of the result, and prints it.

        A sweep's point records its state and its result in its own folder instead, which `work` then gets. `inputs`:
        those of `config`, if the command has any.
        """
        from krill.config.paths import relative_path
        from krill.launch.identity import compute_identity, should_repeat
        from krill.runs.claim import claim
        from krill.runs.record import Record, is_done

        if not self.is_sweep_point:
            self.print_result_folder(work(self.resolve_folder(config.output, "")))
            return
        identity = compute_identity(self.command, config, inputs)
        folder = self.resolve_folder(None, identity)
        assert folder is not None
        if should_repeat(config) and is_done(folder):
            shutil.rmtree(folder)
        claimed = claim(identity, folder.parent, folder)
        record = Record(claimed.folder)
        if claimed.state == "finished" and is_done(claimed.folder):
            log.info("already finished, skipping: %s", relative_path(claimed.folder))
            return
        with claimed, record.record_lifecycle(config, identity, self.recorded_overrides):
            self.save_hydra_config(claimed.folder)
            record.update(result=str(work(claimed.folder)))

    def save_hydra_config(self, folder: Path) -> None:
        """Writes the composed configuration to `folder`/.hydra, from which from= repeats the run."""
        from omegaconf import OmegaConf

        from krill.checksum import write_checksummed_text
        from krill.config.secrets import mask_config

        (folder / ".hydra").mkdir(exist_ok=True)
        for name, content in (
            ("config", self.composition.config),
            ("hydra", {"hydra": self.composition.hydra}),
            ("overrides", self.overrides),
        ):
            text = OmegaConf.to_yaml(mask_config(OmegaConf.create(content)))
            write_checksummed_text(folder / ".hydra" / f"{name}.yaml", text)

    def print_result_folder(self, folder: Path) -> None:
        """Prints the last line of standard output, the folder of the result; a sweep prints its own instead.

        Of the ranks that another launcher started, the first one prints it.
        """
        if not self.is_sweep_point and os.environ.get("RANK", "0") == "0":
            from krill.config.paths import relative_path

            print(relative_path(folder))


class SingleRun(Invocation):
    """A command that runs once."""

    @property
    def is_interactive(self) -> bool:
        return True

    def resolve_folder(self, output: str | None, identity: str) -> Path | None:
        return Path(output).absolute() if output else None


class SweepPoint(Invocation):
    """One point of a sweep, with a folder that is named after its signature."""

    def __init__(self, composition: Composition, sweep_folder: Path):
        super().__init__(composition)
        self.sweep_folder: Path = sweep_folder
        self.inputs: RunInputs | None = None
        """Opened by the sweep, for all points that share them."""

    @property
    def is_sweep_point(self) -> bool:
        return True

    def open_inputs(self, config: TrainConfig) -> RunInputs:
        return self.inputs or super().open_inputs(config)

    def resolve_folder(self, output: str | None, identity: str) -> Path:
        return self.sweep_folder / identity[:8]


class SubmittedJob(Invocation):
    """An invocation in a process of its own, validated and read from a job file (krill.launch.job_files)."""

    def __init__(
        self, origin: SingleRun | SweepPoint, config: TrainConfig | ModelCommandConfig,
        folder: Path | None = None, identity: str | None = None, is_on_slurm: bool = True,
    ):  # fmt: skip
        """`folder`, `identity`: of the result at the time of submission; None: the command chooses the folder."""
        super().__init__(origin.composition)
        self.origin, self.config = origin, config
        self.folder, self.identity, self.is_on_slurm = folder, identity, is_on_slurm

    @property
    def is_sweep_point(self) -> bool:
        return self.origin.is_sweep_point

    @property
    def has_assigned_folder(self) -> bool:
        return self.folder is not None

    def resolve_folder(self, output: str | None, identity: str) -> Path | None:
        """Returns the folder that was assigned at submission, else what `origin` resolves.

        Raises UsageError when `identity` differs from the signature at submission.
        """
        if self.identity and identity and self.identity != identity:
            raise UsageError("text or weights changed after the submission; run the command again")
        return self.folder or self.origin.resolve_folder(output, identity)

    def resolve_resume(self, resume: bool | str) -> bool | str:
        """Returns auto for a SLURM job with an assigned folder, in which it resumes, also after it was requeued."""
        return "auto" if self.is_on_slurm and self.folder is not None else resume
