"""Configures experiment trackers (TensorBoard, trackio, wandb) through the callbacks of transformers.

TensorBoard and trackio write to this machine; wandb follows its own settings (WANDB_MODE=offline: this machine).
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from krill.config.schema import TrainConfig
from krill.errors import UsageError
from krill.extras import format_install_command

TRACKER_PROJECT = "krill"


def check_trackers(config: TrainConfig) -> None:
    """Raises UsageError when a tracker is not installed, or would upload checkpoints that are still being written."""
    for name in config.trackers:
        if find_spec(name) is None:
            raise UsageError(f"trackers: {name} is not installed: {format_install_command(name)}")
    uploads_checkpoints = "wandb" in config.trackers and os.environ.get("WANDB_LOG_MODEL") == "checkpoint"
    if uploads_checkpoints and config.save_in_background:
        raise UsageError(
            "trackers: with WANDB_LOG_MODEL=checkpoint wandb uploads each checkpoint when its save returns, and does "
            "not wait for a save in the background; use save_in_background=false, or WANDB_LOG_MODEL=end"
        )


def build_tracker_arguments(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Returns the TrainingArguments that enable `config.trackers` and nothing else, so that nothing else is uploaded.

    TensorBoard's events are in `folder`/tensorboard; resumed runs append to them.
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
