"""Where the metrics go beside metrics.jsonl: TensorBoard, trackio, wandb, by transformers' own callbacks.

TensorBoard and trackio stay on this machine; wandb goes where its own settings say (WANDB_MODE=offline: here).
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from krill.config.schema import TrainConfig
from krill.errors import UsageError

TRACKER_PROJECT = "krill"


def check_trackers(config: TrainConfig) -> None:
    """Raise UsageError when a tracker is not installed, or would look for a checkpoint that is not there yet."""
    for name in config.trackers:
        if find_spec(name) is None:
            raise UsageError(f"trackers: {name} is not installed: pip install 'krill[{name}]'")
    takes_checkpoints = "wandb" in config.trackers and os.environ.get("WANDB_LOG_MODEL") == "checkpoint"
    if takes_checkpoints and config.save_in_background:
        raise UsageError(
            "trackers: with WANDB_LOG_MODEL=checkpoint wandb takes each checkpoint when its save returns, and does "
            "not wait for one in the background; write save_in_background=false, or WANDB_LOG_MODEL=end"
        )


def build_tracker_arguments(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """What TrainingArguments must hold for `config.trackers`, and no more: nothing is uploaded unasked.

    TensorBoard's events go to `folder`/tensorboard; runs that go on append to them.
    """
    if "tensorboard" in config.trackers:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    if "wandb" in config.trackers:
        os.environ.setdefault("WANDB_PROJECT", TRACKER_PROJECT)
        os.environ.setdefault("WANDB_DIR", str(folder))
    return {
        "report_to": list(config.trackers) or "none",
        "run_name": f"{config.name}/{folder.name}",
        "project": TRACKER_PROJECT,
        "trackio_space_id": None,
        "trackio_static_space_id": False,  # None would publish a copy after a push to the Hub
    }
