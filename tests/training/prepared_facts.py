"""Facts of runs that were not trained, for tests of verdicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from krill.evaluation.ngram_baseline import NgramBaseline
from krill.training.metrics.trend import LoggedLoss, LossCurve
from krill.training.run_facts import RunFacts

Loss = Callable[[int], float]


def make_facts(
    train: Loss,
    validation: Loss | None,
    start: int = 0,
    end: int = 1000,
    validate_every: int = 100,
    ngram_loss: float | None = None,
    **facts: Any,
) -> RunFacts:
    """Returns the facts of a run of 1000 tokens with these losses at each step after `start`."""
    ngram = ngram_loss and NgramBaseline(ngram_loss, 5, counted_tokens=1000, scored_tokens=100)
    validated = [step for step in range(start + 1, end + 1) if step % min(validate_every, end) == 0]
    defaults: dict[str, Any] = {
        "tokens": 1000, "parameters": 1000, "epochs": 1.0, "skipped": 0, "lr": 3e-3, "final_lr": 1.0, "num_layers": 4,
        "train_documents": 100, "ngram": ngram or None,
    }  # fmt: skip
    return RunFacts(
        train=LossCurve(start, end, [LoggedLoss(step, train(step)) for step in range(start + 1, end + 1)]),
        validation=LossCurve(
            start, end, [LoggedLoss(step, validation(step)) for step in validated] if validation else []
        ),
        **{**defaults, **facts},
    )
