"""Sends the configuration and the metrics of a run to experiment trackers: TensorBoard, trackio, W&B.

All of them get krill's resolved configuration with what was derived from it (`collect_tracked_config`), and the
metrics under the names that transformers gives them: train/loss, eval/bits_per_byte. Scores of tasks have their own:
english_pairs/accuracy. A run that resumes remains one run: its ids are in status.json. The points of a sweep are a
group.

TensorBoard and trackio write to this machine, and so does W&B without an API key or without a network.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import rewrite_logs

from krill.config.paths import relative_path
from krill.config.schema import CustomOptimizerConfig, TrainConfig
from krill.config.secrets import mask_secrets, mask_text
from krill.errors import UsageError
from krill.extras import format_install_command
from krill.optim.groups import build_param_groups, summarize_groups
from krill.optim.schedules import Restart, stable_phase
from krill.runs.compare import flatten_config
from krill.runs.find import RunGroup, is_sweep, run_at
from krill.runs.json_lines import EVALUATION_SECONDS
from krill.runs.record import Record
from krill.runs.table import exclude_shared_overrides
from krill.training import ranks
from krill.training.setup import RunSetup

TRACKER_PROJECT = "krill"
MAX_WANDB_TAG = 64
"""Characters of a tag, at most."""

log = logging.getLogger("krill")


def check_trackers(config: TrainConfig) -> None:
    """Raises UsageError when a tracker is not installed."""
    for name in config.trackers:
        if find_spec(name) is None:
            raise UsageError(f"trackers: {name} is not installed: {format_install_command(name)}")


class TrackedRun:
    """The facts of a run that a tracker receives before its first step."""

    def __init__(self, record: Record, setup: RunSetup, config: dict[str, Any], first_step: int):
        """`config`: the result of `collect_tracked_config`. `first_step`: the step that the run resumes from."""
        self.record, self.folder, self.config, self.first_step = record, setup.folder, config, first_step
        self.name = f"{setup.config.name}/{setup.folder.name}"
        self.group, self.tags = _find_sweep(setup.folder)

    def get_or_record_id(self, tracker: str, new_id: str) -> str:
        """Returns the id of this run in a tracker: that of its first start, or `new_id`, which is then recorded."""
        ids = self.record.status.get("tracker_ids") or {}
        if tracker not in ids:
            self.record.update(tracker_ids=ids | {tracker: new_id})
        return str(ids.get(tracker, new_id))


class Tracker(Protocol):
    """A tracker that has received the configuration of a run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""

    def log_folder(self, kind: str, folder: Path) -> None:
        """Offers a checkpoint or the final model (`kind`: checkpoint, end) for upload."""

    def close(self, has_failed: bool) -> None:
        """Ends the tracking; a resumed run continues it."""


class Trackers(TrainerCallback):
    """Context manager that opens and closes the trackers of a run, and the callback that sends them the metrics."""

    def __init__(self, names: Iterable[str], run: TrackedRun):
        self.names, self.run = names, run
        self.open_trackers: list[Tracker] = []
        self._exits = ExitStack()

    def __enter__(self) -> Trackers:
        with ExitStack() as exits:  # if one cannot be opened, those before it are closed
            for name in self.names:
                tracker = TRACKERS[name](self.run)
                exits.push(partial(_close_tracker, tracker))
                self.open_trackers.append(tracker)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.__exit__(*error)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        # Not Trainer's summary of this process.
        if not logs or logs.keys().isdisjoint(("loss", "eval_loss", EVALUATION_SECONDS)):
            return
        metrics = logs if EVALUATION_SECONDS in logs else rewrite_logs(logs)
        for tracker in self.open_trackers:
            tracker.log(state.global_step, metrics)

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Sends the scores of the final model, of `step`."""
        for tracker in self.open_trackers:
            tracker.log(step, scores)

    def log_checkpoint(self, step: int) -> None:
        """Offers the complete checkpoint of `step` for upload."""
        self._log_folder("checkpoint", self.run.folder / "checkpoints" / f"checkpoint-{step}")

    def log_model(self) -> None:
        """Offers the final model for upload."""
        self._log_folder("end", self.run.folder / "model")

    def _log_folder(self, kind: str, folder: Path) -> None:
        for tracker in self.open_trackers:
            tracker.log_folder(kind, folder)


def _close_tracker(tracker: Tracker, error_type: type[BaseException] | None, *_: object) -> None:
    tracker.close(error_type is not None)


class TensorBoardTracker:
    """Writes events to `tensorboard/` of the run; a resumed run appends to them."""

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # Steps that a killed process logged after its last checkpoint are logged again.
        purge_step = run.first_step + 1 if run.first_step else None
        self.writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge_step)
        text = yaml.safe_dump(run.config, allow_unicode=True, sort_keys=False)
        self.writer.add_text("config", f"```yaml\n{text}```")
        values = {key: _to_scalar(value) for key, value in flatten_config(run.config).items()}
        assert self.writer.file_writer is not None
        for summary in hparams(values, {"eval/loss": None, "train/loss": None}):
            self.writer.file_writer.add_summary(summary)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def log_folder(self, kind: str, folder: Path) -> None:
        pass

    def close(self, has_failed: bool) -> None:
        self.writer.close()


class TrackioTracker:
    """Writes to trackio's database on this machine, or to the one that its environment variables name."""

    def __init__(self, run: TrackedRun):
        import trackio

        with redirect_stdout(sys.stderr):  # standard output is for the folder of the run
            self.run = trackio.init(
                project=TRACKER_PROJECT,
                name=run.get_or_record_id("trackio", run.name),
                group=run.group,
                config=flatten_config(run.config),
                resume="allow",
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def log_folder(self, kind: str, folder: Path) -> None:
        pass

    def close(self, has_failed: bool) -> None:
        import trackio

        with redirect_stdout(sys.stderr):
            trackio.finish()


class WandbTracker:
    """Sends to W&B, configured by its environment variables; without an API key or a network to the run folder."""

    def __init__(self, run: TrackedRun):
        import wandb

        arguments: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", TRACKER_PROJECT),
            "dir": os.environ.get("WANDB_DIR", str(run.folder)),
            "id": os.environ.get("WANDB_RUN_ID") or run.get_or_record_id("wandb", secrets.token_hex(4)),
            "resume": "allow",
            "name": os.environ.get("WANDB_NAME", run.name),
            "group": os.environ.get("WANDB_RUN_GROUP", run.group),
            "tags": [tag[:MAX_WANDB_TAG] for tag in run.tags] or None,
            "config": run.config,
            "allow_val_change": True,
            "reinit": "finish_previous",
        }
        mode = _choose_wandb_mode(wandb)
        with _mask_command_line():
            try:
                self.run = wandb.init(**arguments, mode=mode)
            except wandb.Error as error:
                if mode == "offline":
                    raise
                log.warning("wandb       cannot be reached (%s)", " ".join(str(error).split()))
                mode = "offline"
                self.run = wandb.init(**arguments, mode=mode)
        if mode == "offline":
            log.info(
                "wandb       offline; to upload this run: wandb sync %s",
                relative_path(Path(self.run.dir).parent),
            )
        self.run.define_metric("train/global_step")
        self.run.define_metric("*", step_metric="train/global_step", step_sync=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log({**metrics, "train/global_step": step})

    def log_folder(self, kind: str, folder: Path) -> None:
        """Uploads the folder as an artifact if WANDB_LOG_MODEL is its kind."""
        import wandb

        if os.environ.get("WANDB_LOG_MODEL") == kind:
            artifact = wandb.Artifact(f"model-{self.run.id}", type="model")
            artifact.add_dir(str(folder))
            self.run.log_artifact(artifact, aliases=[folder.name])

    def close(self, has_failed: bool) -> None:
        self.run.finish(exit_code=int(has_failed))


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
}


def collect_tracked_config(
    setup: RunSetup, model: Any, signature: str | None, restart: Restart | None = None
) -> dict[str, Any]:
    """Returns the resolved configuration as in config.yaml, and under `derived` what follows from it and the data.

    `signature`: of the run. `restart`: of its schedule.
    """
    config, shape = setup.config, setup.batch_shape
    warmup_steps, stable_until = stable_phase(config.scheduler, setup.length.steps, restart)
    groups = (
        []
        if isinstance(config.optimizer, CustomOptimizerConfig)
        else summarize_groups(build_param_groups(model, config.optimizer))
    )
    derived = {
        "signature": signature,
        "data_signature": setup.store.signature,
        "tokenizer_signature": setup.tokenizer.signature,
        "vocab_size": setup.tokenizer.vocab_size,
        "train_tokens": setup.store.train.tokens,
        "validation_tokens": setup.store.validation.tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": setup.length.steps,
        "epochs": setup.epochs_at(setup.length.steps),
        "warmup_steps": warmup_steps,
        "stable_until_step": stable_until,
        "rows_per_step": shape.rows_per_step,
        "tokens_per_step": setup.tokens_per_step,
        "ranks": ranks.get_world_size(),
        "micro_batch_size": shape.micro_batch_size,
        "gradient_accumulation_steps": shape.accumulation_steps,
        "device": setup.device.type,
        "precision": setup.precision,
        "attention": setup.attention_backend,
        "param_groups": {
            group.name: {"lr": group.lr, "weight_decay": group.weight_decay, "parameters": group.parameters}
            for group in groups
        },
    }
    return mask_secrets(config.model_dump(mode="json", by_alias=True)) | {"derived": derived}


def _find_sweep(folder: Path) -> tuple[str | None, list[str]]:
    """Returns the name of the sweep that a run is a point of, and the overrides that other points do not share."""
    sweep = run_at(folder.parent) if is_sweep(folder.parent) else None
    if not isinstance(sweep, RunGroup):
        return None, []
    differing = exclude_shared_overrides([run.sweep_entry.get("overrides") or [] for run in sweep.runs])
    by_folder = dict(zip((run.folder for run in sweep.runs), differing, strict=True))
    return sweep.folder.name, by_folder.get(folder, [])


@contextmanager
def _mask_command_line() -> Iterator[None]:
    """Hides the secrets of the command line, which W&B records with the run."""
    arguments = sys.argv
    sys.argv = [mask_text(argument) for argument in arguments]
    try:
        yield
    finally:
        sys.argv = arguments


def _choose_wandb_mode(wandb: Any) -> str | None:
    """Returns offline without an API key, which W&B would ask for; None: W&B's own settings."""
    settings = wandb.setup().settings
    if settings.mode != "online" or settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    try:
        keys = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return "offline"
    return None if keys.authenticators(urlsplit(settings.base_url).netloc) else "offline"


def _to_scalar(value: Any) -> Any:
    """Returns a value that TensorBoard takes as a hyperparameter."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value, ensure_ascii=False)
