"""Judges a run at its end in one paragraph: what its loss means, whether it was long enough, and what to change next.

A verdict says only what the run has shown. 20 tokens per parameter are compute-optimal by Hoffmann et al. 2022
(arXiv 2203.15556); of repeated text, 4 epochs are almost as good as new text and later ones add little by Muennighoff
et al. 2023 (arXiv 2305.16264).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from krill.config.size_rule import COMPUTE_OPTIMAL_RATIO
from krill.runs.record import Record
from krill.runs.summary import RUN
from krill.training import ranks
from krill.training.callbacks.skip_step import DivergenceError
from krill.training.metrics.evaluate import Baselines
from krill.training.run_facts import RunFacts, collect_facts
from krill.training.setup import RunSetup
from krill.training.trainer import KrillTrainer

log = logging.getLogger("krill")

MAX_EPOCHS = 4
MIN_STEPS = 50
"""Number of steps from which a run is judged."""
FALLING = 0.002
"""A loss that falls by this share over the last tenth of the steps is still falling."""
MAX_DECAYED_LR = 0.5
"""Part of the peak learning rate below which a loss may have stopped falling because the rate had decayed."""
MAX_SKIPPED = 0.01
"""Share of skipped steps from which the learning rate is too high."""
Outcome = Literal["diverged", "short", "unvalidated", "overfit", "rising", "falling", "converged", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run; None: not known."""

    outcome: Outcome
    text: str
    next: str
    """The command to run next, with RUN for the run."""
    tokens: int
    tokens_per_parameter: float
    epochs: float
    below_unigram: float | None
    """Nats per token; negative: above."""
    ngram: dict[str, Any] | None
    """The n-gram model: its loss, order, counted and scored tokens."""
    below_ngram: float | None
    change_per_tenth: float | None
    """Change of the validation loss over the last 10 % of the steps, in nats."""
    skipped_steps: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict as JSON types."""
        return asdict(self)


def record_verdict(
    setup: RunSetup, record: Record, step: int, baselines: Baselines | None, stopped_by: str | None = None
) -> Verdict:
    """Judges the run that ended at `step`, records the verdict in status.json and returns it."""
    verdict = judge_run(replace(collect_facts(setup, record.status, step, baselines), stopped_by=stopped_by))
    record.update(verdict=verdict.to_dict())
    return verdict


@contextmanager
def record_divergence(trainer: KrillTrainer, setup: RunSetup, record: Record) -> Iterator[None]:
    """Records and logs the verdict on a run that ends because it has diverged."""
    try:
        yield
    except DivergenceError:
        if ranks.is_rank0():
            facts = collect_facts(setup, record.status, trainer.state.global_step, None, has_failed=True)
            verdict = judge_run(facts)
            record.update(verdict=verdict.to_dict())
            log.info("verdict     %s", verdict.text)
        raise


def judge_run(facts: RunFacts) -> Verdict:
    """Returns the verdict on a run."""
    outcome = _classify(facts)
    advice, command = _advise(facts, outcome)
    sentences = [
        f"Stopped early: {facts.stopped_by}." if facts.stopped_by else "",
        _describe_loss(facts),
        _describe_amount(facts),
        _describe_trend(facts, outcome),
        _describe_start(facts),
        _describe_skips(facts),
        advice,
    ]
    loss, ngram = facts.eval_loss, facts.ngram
    change = facts.validation.compute_final_change()
    return Verdict(
        outcome=outcome,
        text=" ".join(filter(None, sentences)),
        next=command,
        tokens=facts.tokens,
        tokens_per_parameter=round(facts.tokens_per_parameter, 4),
        epochs=round(facts.epochs, 4),
        below_unigram=None if loss is None or facts.unigram is None else round(facts.unigram - loss, 4),
        ngram=None if ngram is None else asdict(ngram),
        below_ngram=None if loss is None or ngram is None else round(ngram.loss - loss, 4),
        change_per_tenth=None if change is None else round(change, 6),
        skipped_steps=facts.skipped,
    )


def _classify(facts: RunFacts) -> Outcome:
    if facts.has_failed:
        return "diverged"
    if facts.steps < MIN_STEPS:
        return "short"
    if _is_worse_than_uniform(facts) or facts.train.has_diverged():
        return "diverged"
    if facts.eval_loss is None:
        return "unvalidated"
    if (rise := facts.validation.find_rise()) is not None:
        return "overfit" if facts.epochs > 1 and _has_train_loss_fallen(facts, rise.step) else "rising"
    change = facts.validation.compute_final_change()
    if change is None:
        return "unknown"
    return "falling" if change < -FALLING * facts.eval_loss else "converged"


def _is_worse_than_uniform(facts: RunFacts) -> bool:
    return facts.eval_loss is not None and facts.uniform is not None and facts.eval_loss >= facts.uniform


def _has_train_loss_fallen(facts: RunFacts, step: int) -> bool:
    earlier, last = facts.train.compute_mean_after(step), facts.train.compute_mean(9)
    return earlier is not None and last is not None and last < earlier


def _describe_loss(facts: RunFacts) -> str:
    if facts.has_failed:
        return f"The training diverged at step {facts.train.end}."
    if facts.eval_loss is None:
        loss = facts.train.compute_mean(9)
        shown = "" if loss is None else f", {loss:.3f} nats per token at the end,"
        return (
            f"No text was held out. The training loss{shown} does not show what the model has learned: it also falls "
            "where a text is learned by heart."
        )
    text = f"{facts.eval_loss:.3f} nats per token on the held-out text"
    if facts.unigram is not None:
        text += f", {_compare(facts.eval_loss, facts.unigram)} unigram"
    if (ngram := facts.ngram) is not None:
        text += f", {_compare(facts.eval_loss, ngram.loss)} a {ngram.order}-gram model ({ngram.loss:.3f}) of "
        text += f"{ngram.counted_tokens:,} tokens of the training text"
        if facts.eval_loss > ngram.loss:
            text += ", a table of phrases, which predicts it better"
    return f"{text}."


def _compare(loss: float, baseline: float) -> str:
    return f"{abs(baseline - loss):.3f} {'below' if loss <= baseline else 'above'}"


def _describe_amount(facts: RunFacts) -> str:
    ratio = facts.tokens_per_parameter
    text = f"It read {facts.tokens:,} tokens, {_format_ratio(ratio)} per parameter"
    if facts.is_pretrained:
        text += " in this run, besides those of model.from"
    else:
        text += f" (about {COMPUTE_OPTIMAL_RATIO} are compute-optimal)"
    text += f", {_format_ratio(facts.epochs)} epochs"
    if facts.epochs > MAX_EPOCHS:
        text += f", of which those beyond about {MAX_EPOCHS} add little"
    return f"{text}."


def _format_ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _describe_trend(facts: RunFacts, outcome: Outcome) -> str:
    if facts.has_failed or outcome in ("short", "unvalidated"):
        return ""
    if outcome == "diverged":
        return (
            "The loss is not below that of uniform predictions."
            if _is_worse_than_uniform(facts)
            else "The training loss ended above what it had been before."
        )
    rise, loss = facts.validation.find_rise(), facts.eval_loss
    if rise is not None and loss is not None:
        text = f"The validation loss rose from {rise.loss:.3f} at step {rise.step} to {loss:.3f}"
        return (
            f"{text}, while the training loss fell: it learns its text by heart."
            if outcome == "overfit"
            else f"{text}."
        )
    change = facts.validation.compute_final_change()
    if change is None or loss is None:
        return "Too few validations show whether the validation loss was still falling."
    amount = f"by {abs(change):.4f} nats ({100 * abs(change) / loss:.2f} %) over the last 10 % of the steps"
    if outcome == "falling":
        return f"The validation loss was still falling, {amount}."
    text = f"The validation loss was no longer falling: it {'fell' if change < 0 else 'rose'} {amount}"
    if facts.final_lr is not None and facts.final_lr < MAX_DECAYED_LR:
        text += f", with the learning rate at {facts.final_lr:.2f} of its peak"
    return f"{text}."


def _describe_start(facts: RunFacts) -> str:
    if facts.loss_at_start is None or facts.eval_loss is None or facts.eval_loss <= facts.loss_at_start:
        return ""
    return (
        f"It ended {facts.eval_loss - facts.loss_at_start:.3f} above the loss at step {facts.train.start}, from "
        "which it continued."
    )


def _describe_skips(facts: RunFacts) -> str:
    if not facts.skipped:
        return ""
    return f"{facts.skipped} of {facts.steps} steps were skipped (skipped.jsonl)."


def _advise(facts: RunFacts, outcome: Outcome) -> tuple[str, str]:
    """Returns what to change next, as a sentence, and the command for it."""
    end = facts.train.end
    absolute = "" if facts.lr_scale == 1 else " lr_scale=1"  # a file may set it
    lower_lr = f"krill-train from={RUN} lr={facts.lr / 3:.2g}{absolute}"
    longer = f"krill-train continue={RUN} steps={2 * end}"
    batch = "" if facts.auto_batch is None else f" batch.tokens={facts.auto_batch}"
    if outcome in ("diverged", "rising"):
        return "Lower the learning rate.", lower_lr
    if outcome == "short":
        longer_run = f"krill-train from={RUN} steps={10 * max(MIN_STEPS, end)}"
        return (
            f"{facts.steps} steps are too few to judge these settings by.",
            longer if facts.train.start else longer_run,
        )
    if outcome == "unvalidated":
        fraction = min(0.2, max(0.01, math.ceil(1000 / max(1, facts.train_documents)) / 100))
        return "Hold out text.", f"krill-train from={RUN} data.validation_fraction={fraction:g}"
    if outcome == "overfit":
        best = facts.validation.find_rise()
        assert best is not None
        return "Use more text (data=), or fewer steps.", f"krill-train from={RUN} steps={best.step}{batch}"
    if facts.skipped > MAX_SKIPPED * facts.steps:
        return "Lower the learning rate: many steps were skipped.", lower_lr
    if outcome == "falling":
        more_text = ", more text (data=) would more" if facts.epochs * 2 > MAX_EPOCHS else ""
        return f"More steps lower it further{more_text}.", longer
    if outcome == "unknown":
        every = max(1, facts.steps // 20)
        return (
            "More validations would show it.",
            f"krill-train continue={RUN} steps={2 * end} eval_every={every}",
        )
    if facts.tokens_per_parameter > COMPUTE_OPTIMAL_RATIO and facts.num_layers is not None:
        more_text = " and more text (data=)" if facts.epochs > MAX_EPOCHS else ""
        layers = 2 * facts.num_layers
        return (
            f"Use a larger model{more_text}.",
            f"krill-train from={RUN} model.num_hidden_layers={layers}{batch}",
        )
    if facts.tokens_per_parameter < COMPUTE_OPTIMAL_RATIO and 2 * facts.epochs <= MAX_EPOCHS:
        return "Use a longer schedule, which decays later.", f"krill-train from={RUN} steps={2 * end}{batch}"
    rates = f"{facts.lr / 3:.2g},{facts.lr * 3:.2g}"
    return "Try other learning rates.", f"krill-train -m from={RUN} lr={rates}{absolute}"
