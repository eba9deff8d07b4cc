"""krill-evaluate: measure what a trained model has learned."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.cli.model_arguments import resolve_model_arguments
from krill.config import paths
from krill.launch.invocation import Invocation
from krill.resources import paused_garbage_collection
from krill.tables import get_terminal_width

if TYPE_CHECKING:
    from krill.cli.argv import ParsedArguments
    from krill.config.schema import EvaluateConfig

SHORT_KEYS = {"tasks": "evaluation.tasks", "limit": "evaluation.limit", "few_shot": "evaluation.few_shot"}
"""Short key → the whole key."""


def main() -> int:
    """Runs krill-evaluate; returns the exit code."""
    return app.main("evaluate", run_task, positional_key="model", prepare_arguments=_prepare_arguments)


def run_task(invocation: Invocation) -> None:
    """Evaluates with one configuration; Hydra calls it once, or for each point of a sweep."""
    from krill.config.schema import EvaluateConfig

    app.run_command(invocation, EvaluateConfig, _run_evaluation)


def _prepare_arguments(parsed: ParsedArguments, folders: Sequence[Path]) -> None:
    from krill.config.overrides import replace_key

    for key, full_key in SHORT_KEYS.items():
        parsed.overrides = [replace_key(text, key, full_key) for text in parsed.overrides]
    presets = paths.list_config_options("evaluation", [*folders, paths.CONF_DIR])
    parsed.overrides = [_choose_preset(text, presets) for text in parsed.overrides]
    resolve_model_arguments(parsed, folders)


def _choose_preset(override: str, presets: Container[str]) -> str:
    """Returns tasks=korean, or tasks=korean,english of a sweep, as the choice of options of the group evaluation."""
    from krill.config.overrides import get_override_key, get_override_value

    if get_override_key(override) != "evaluation.tasks":
        return override
    value = get_override_value(override)
    return f"evaluation={value}" if all(name in presets for name in value.split(",")) else override


def _run_evaluation(config: EvaluateConfig, invocation: Invocation) -> None:
    if config.dry_run:
        _evaluate(config, None)
    else:
        invocation.run_stage(
            config, None, lambda folder: _evaluate(config, folder if invocation.is_sweep_point else None)
        )


def _evaluate(config: EvaluateConfig, folder: Path | None) -> Path:
    """Evaluates the model and returns the folder of the results, which is `folder` for a point of a sweep."""
    with paused_garbage_collection():
        from krill.launch.model_evaluation import ModelEvaluation
        from krill.models.model_folder import silence_transformers

    silence_transformers()
    evaluation = ModelEvaluation.open(config, folder)
    if config.dry_run:
        print("\n".join(evaluation.describe()))
        return evaluation.folder
    app.log.info("\n".join(evaluation.describe()))
    results = evaluation.run()
    if config.format == "json":
        content: list[Any] = [result.model_dump(mode="json", exclude={"outcomes"}) for result in results]
        print(json.dumps(content, ensure_ascii=False, indent=2))
    else:
        from krill.evaluation.score_table import format_scores

        print("\n".join(format_scores(results, get_terminal_width(sys.stdout))))
    return evaluation.folder
