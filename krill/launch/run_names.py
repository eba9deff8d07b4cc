"""Replaces names of runs in a configuration by their folders, once: a name may mean another run later."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from krill.config.paths import expand_home, get_outputs_root
from krill.config.schema import InferConfig, ModelCommandConfig, PretrainedModelConfig, TrainConfig
from krill.errors import UsageError
from krill.runs.claim import RESUME_MODES
from krill.runs.resolve import BRANCHING_POINT, FINAL_MODEL, MODEL, RESUMABLE, Need, resolve_run_folder

TrainOrModelConfig = TypeVar("TrainOrModelConfig", TrainConfig, ModelCommandConfig)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
log = logging.getLogger("krill")


def resolve_run_names(config: TrainOrModelConfig, sweep: Path | None = None) -> TrainOrModelConfig:
    """Returns `config` with the folders of the runs that branch=, resume=, model.from= and model= name.

    `sweep`: the folder of the sweep that this is a point of; no name means one of its other points. Raises UsageError
    for a name without a run that has what is needed.
    """
    if isinstance(config, ModelCommandConfig):
        try:
            path = resolve_model_name("model", config.model.path, MODEL, sweep)
        except UsageError as error:
            if not isinstance(config, InferConfig) or Path(config.model.path).exists():
                raise
            raise UsageError(f"{error}. A text to continue is set with prompt=…") from error
        return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
    resolved: dict[str, object] = {}
    if config.branch is not None:
        resolved["branch"] = resolve_named_run("branch", config.branch, BRANCHING_POINT, sweep)
    if isinstance(config.resume, str) and config.resume not in RESUME_MODES:
        resolved["resume"] = resolve_named_run("resume", config.resume, RESUMABLE, sweep)
    if isinstance(config.model, PretrainedModelConfig):
        path = resolve_model_name("model.from", config.model.from_, FINAL_MODEL, sweep)
        resolved["model"] = config.model.model_copy(update={"from_": path})
    return config.model_copy(update=resolved)


def resolve_named_run(key: str, text: str, need: Need, sweep: Path | None = None) -> str:
    """Returns the folder that `key`=`text` names, and logs it if it is not written there."""
    folder = str(resolve_run_folder(key, text, get_outputs_root(), need, sweep))
    if folder != str(expand_home(text)):
        log_choice(key, folder)
    return folder


@lru_cache
def log_choice(key: str, folder: str) -> None:
    """Logs the run that a key means, once for all points of a sweep."""
    log.info("%-11s %s", key, folder)


def resolve_model_name(key: str, text: str, need: Need, sweep: Path | None = None) -> str:
    """Returns the folder of a model, or the id of one on the Hub unchanged."""
    try:
        return resolve_named_run(key, text, need, sweep)
    except UsageError:
        if Path(text).exists() or not _HUB_ID.fullmatch(text):
            raise
        return text
