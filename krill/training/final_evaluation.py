"""Evaluates the final model of a run as krill-evaluate does, which then finds the results.

Unless evaluation.at_end says otherwise, what the user has not asked for takes less than 5 % of the time of the
training: fewer items are evaluated in a shorter run, and none in a very short one.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from krill.config.paths import relative_path
from krill.config.schema import EvaluationConfig
from krill.errors import get_first_line
from krill.evaluation.cost import (
    MIN_TOKENS,
    TIME_SHARE,
    TextSize,
    estimate_seconds,
    list_limits,
    measure_seconds_per_token,
)
from krill.evaluation.results import TaskResult
from krill.evaluation.score_metrics import describe_result
from krill.inference.load import ModelFiles
from krill.resources import release_memory
from krill.training.setup import RunSetup

if TYPE_CHECKING:
    from krill.evaluation.model_evaluation import ModelEvaluation

log = logging.getLogger("krill")


def evaluate_final_model(
    setup: RunSetup, step: int, seconds: float, known_results: Sequence[TaskResult]
) -> list[TaskResult]:
    """Evaluates the model in model/ of the run, and logs the scores; called on one rank.

    A failure is logged and ends nothing: the model is saved.

    Args:
        setup: The run, with evaluation.at_end.
        step: The number of steps it was trained.
        seconds: How long all these steps took, about.
        known_results: Scores of the same weights that were computed already.
    """
    config = setup.config.evaluation
    if config.at_end is False:
        return []
    command = f"krill-evaluate {shlex.quote(str(relative_path(setup.folder)))}"
    is_requested = config.at_end is True or config.every is not None or config.tasks != "auto"
    if not is_requested and setup.tokens_at(step) * 3 * TIME_SHARE < MIN_TOKENS:
        _log_skip(command)
        return []
    try:
        return _evaluate(setup, None if is_requested else seconds * TIME_SHARE, known_results, command)
    except Exception as error:
        log.warning("evaluation  failed: %s; to evaluate the model: %s", get_first_line(error), command)
        release_memory()
        return []


def _evaluate(
    setup: RunSetup, max_seconds: float | None, known_results: Sequence[TaskResult], command: str
) -> list[TaskResult]:
    """Evaluates with the configured settings, or with a limit so that it takes at most `max_seconds`."""
    from krill.evaluation.model_evaluation import ModelEvaluation  # with the word lists of the tasks

    config = setup.config.evaluation
    section = EvaluationConfig(**{key: getattr(config, key) for key in EvaluationConfig.model_fields})
    files = ModelFiles.locate(str(relative_path(setup.folder)))
    evaluation = ModelEvaluation(section, files, setup.store, setup.folder, setup.device, "auto")
    if max_seconds is not None:
        fitting = _find_fitting_limit(evaluation, max_seconds)
        if fitting is None:
            _log_skip(command)
            return []
        evaluation = fitting
    results = evaluation.run(known_results, logging.DEBUG)
    for result in results:
        log.info("evaluation  %s", describe_result(result))
    if evaluation.config.limit != section.limit:
        log.info(
            "            with limit=%d, which takes less than 5 %% of the time of the training; with all items: %s",
            evaluation.config.limit, command,
        )  # fmt: skip
    return results


def _find_fitting_limit(evaluation: ModelEvaluation, max_seconds: float) -> ModelEvaluation | None:
    """Returns the evaluation with the largest limit that takes `max_seconds`, by estimate; None: none fits."""
    assert evaluation.store is not None
    size = TextSize(evaluation.store.train.tokens, evaluation.store.validation.tokens)
    subject = evaluation.subject
    seconds_per_token = measure_seconds_per_token(subject.scorer, subject.tokenizer.vocab_size)
    for limit in list_limits(evaluation.config.limit):
        limited = replace(evaluation, config=evaluation.config.model_copy(update={"limit": limit}))
        if estimate_seconds(evaluation.tasks, size, limited.settings, seconds_per_token) <= max_seconds:
            return limited
    return None


def _log_skip(command: str) -> None:
    log.info("evaluation  skipped: it would take more than 5 %% of the time of the training; %s", command)
