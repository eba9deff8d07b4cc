"""Scores as metrics of a training, each under a name: english_pairs/accuracy, english_pairs/accuracy/many_much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from krill.config.suggestions import suggest
from krill.errors import UsageError
from krill.evaluation.evaluator import Evaluator
from krill.evaluation.results import TaskResult
from krill.runs.scores import describe_metric, format_score_value

LOWER_IS_BETTER = ("bits_per_byte", "perplexity", "loss", "brier_score")
"""Ends of the names of metrics of which the lowest value is the best."""


def list_metrics(results: Iterable[TaskResult]) -> dict[str, float]:
    """Returns the values of the displayed scores by name."""
    return {
        "/".join(filter(None, (result.task, score.metric, score.name))): score.value
        for result in results
        for score in result.displayed_scores
    }


def list_main_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns one of `metrics` for each task: the first, which is of the whole task."""
    main: dict[str, str] = {}
    for name in metrics:
        main.setdefault(name.partition("/")[0], name)
    return {name: metrics[name] for name in main.values()}


def is_lower_better(metric: str) -> bool:
    """Returns whether the lowest value of the metric with this name is the best."""
    name = metric.split("/")[1] if "/" in metric else metric
    return name.endswith(LOWER_IS_BETTER)


def check_best_metric(name: str, evaluators: Sequence[Evaluator]) -> None:
    """Raises UsageError for a score of a task that none of the evaluators measures, as far as it is known."""
    if name == "eval_loss":
        return
    task, _, rest = name.partition("/")
    metric, _, part = rest.partition("/")
    known = {evaluator.name: evaluator.metrics for evaluator in evaluators}
    metrics = known.get(task)
    is_displayed = metric != "accuracy_per_byte" or not part
    if task in known and (metrics is None or (metric in metrics and is_displayed)):
        return
    names = [f"{other}/{metric}" for other in known for metric in known[other] or ()]
    raise UsageError(f"best_metric={name}: no such score; {suggest(name, ['eval_loss', *names])}")


def format_metric(name: str, value: float) -> str:
    """Returns a metric for reading: english_pairs 51.3 %, text 2.607 bits per byte, kobest 51.3 % acc."""
    task, metric = name.split("/")[:2]
    unit = "" if metric == "accuracy" else f" {describe_metric(metric)}"
    return f"{task} {format_score_value(value, metric)}{unit}"


def describe_result(result: TaskResult) -> str:
    """Returns the score of a whole task, with its interval and the scores that need no model."""
    score = result.main_score
    text = format_metric(f"{result.task}/{score.metric}", score.value)
    others = []
    if score.low is not None and score.high is not None:
        low, high = (format_score_value(bound, score.metric) for bound in (score.low, score.high))
        others.append(f"{low} to {high}")
    values = {"chance": score.chance, "unigram": score.unigram, "trigram": score.trigram}
    others += [
        f"{name} {format_score_value(value, score.metric)}"
        for name, value in values.items()
        if value is not None
    ]
    return f"{text} ({', '.join(others)})" if others else text
