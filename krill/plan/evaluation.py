"""What the evaluations of a run take: those of evaluation.every, and that of the final model."""

from __future__ import annotations

from krill.config.schema import TrainConfig
from krill.evaluation.bundled import PAIR_TASKS
from krill.evaluation.cost import MIN_TOKENS, TIME_SHARE, TextSize, estimate_seconds, list_limits
from krill.evaluation.task import TEXT

UNKNOWN_TEXT = TextSize(train=10**7, validation=10**6)
"""The text where its size is not known (assumed)."""

AUTO_TASKS = (TEXT, *PAIR_TASKS, "cloze")
"""The tasks of tasks=auto for a text in all languages: the one of a run is known once its tokens are read."""


def has_final_evaluation(config: TrainConfig, tokens: int | None) -> bool:
    """Returns whether the final model may be evaluated after `tokens` of training; None: not known."""
    section = config.evaluation
    if section.at_end is False:
        return False
    return is_evaluation_requested(config) or tokens is None or tokens * 3 * TIME_SHARE >= MIN_TOKENS


def is_evaluation_requested(config: TrainConfig) -> bool:
    """Returns whether the final model is evaluated whatever that takes."""
    section = config.evaluation
    return section.at_end is True or section.every is not None or section.tasks != "auto"


def estimate_evaluation_seconds(
    config: TrainConfig,
    steps: int,
    tokens: int,
    step_seconds: float,
    seconds_per_token: float,
    size: TextSize | None,
) -> float:
    """Returns the seconds of all evaluations of a run.

    Tasks of lm-eval and those of the user are counted as long as the cloze.

    Args:
        config: The run.
        steps: Its optimizer steps.
        tokens: The tokens that it trains on.
        step_seconds: The seconds of all steps.
        seconds_per_token: The seconds that a token takes in the forward pass.
        size: The size of its text; None: not known.
    """
    section, size = config.evaluation, size or UNKNOWN_TEXT
    tasks = AUTO_TASKS if section.tasks == "auto" else tuple(section.tasks)
    once = estimate_seconds(tasks, size, section, seconds_per_token)
    total = 0.0
    if section.every is not None:
        again = estimate_seconds(tasks, size, section, seconds_per_token, is_prepared=True)
        total += once + again * (-(-steps // section.every) - 1)
    if not has_final_evaluation(config, tokens):
        return total
    if section.every is not None:  # the scores of the last step are those of the final model
        return total
    if is_evaluation_requested(config):
        return once
    affordable = TIME_SHARE * step_seconds
    for limit in list_limits(section.limit):
        limited = section.model_copy(update={"limit": limit})
        seconds = estimate_seconds(tasks, size, limited, seconds_per_token)
        if seconds <= affordable:
            return seconds
    return 0.0
