"""Collects what a run recorded, as far as its verdict needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krill.config.schema import PretrainedModelConfig, TransformerConfig
from krill.evaluation.ngram_baseline import NgramBaseline, choose_counted_tokens, compute_ngram_baseline
from krill.runs.json_lines import read_jsonl, read_metrics
from krill.runs.record import compute_run_seconds, read_status
from krill.training.batch_shape import is_batch_automatic
from krill.training.metrics.evaluate import Baselines
from krill.training.metrics.trend import LoggedLoss, LossCurve
from krill.training.oom_retry import MICRO_BATCH_KEY
from krill.training.setup import RunSetup


@dataclass(frozen=True)
class RunFacts:
    """What a run recorded, as far as its verdict needs it."""

    train: LossCurve
    """Training losses. Its steps are those of this run, without those of the run that it branched from."""
    validation: LossCurve
    tokens: int
    """Tokens that were trained on, with those of the run that it branched from."""
    parameters: int
    epochs: float
    """Passes over the distinct training text."""
    skipped: int
    lr: float
    final_lr: float | None
    """The learning rate of the last logged step, as a part of the highest one of this run."""
    num_layers: int | None
    """Layers of a model whose number is a key; None: another model."""
    train_documents: int
    is_pretrained: bool = False
    has_failed: bool = False
    """Whether the run ended because it diverged."""
    uniform: float | None = None
    unigram: float | None = None
    ngram: NgramBaseline | None = None
    loss_at_start: float | None = None
    """The validation loss of the same text at the step from which the run branched."""
    stopped_by: str | None = None
    lr_scale: float = 1.0
    auto_batch: int | None = None
    """Tokens of a step, which another number of steps, or a retry after running out of memory, would change; None:
    they are set."""

    @property
    def steps(self) -> int:
        """The number of steps of this run."""
        return self.train.end - self.train.start

    @property
    def eval_loss(self) -> float | None:
        """The last validation loss."""
        return self.validation.losses[-1].loss if self.validation.losses else None

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters


def collect_facts(
    setup: RunSetup, status: dict[str, Any], step: int, baselines: Baselines | None, has_failed: bool = False
) -> RunFacts:
    """Returns the facts of the run that ended at `step`; counts n-grams if that takes a small part of its time.

    `status`: that of the run's record.
    """
    branch = status.get("branch") or {}
    start = branch.get("step", 0)
    origin = (read_status(Path(branch["run"])) or {}).get("data") or {} if branch else {}
    lines = read_metrics(setup.folder)
    config, train = setup.config, setup.store.train

    def build_curve(key: str) -> LossCurve:
        losses = [LoggedLoss(line["step"], line[key]) for line in lines if line.get(key) is not None]
        return LossCurve(start, step, [one for one in losses if start < one.step <= step])

    rates = [line["lr"] for line in lines if start < line["step"] <= step and line.get("lr") is not None]
    has_same_text = origin.get("signature") == setup.store.signature
    epochs = setup.epochs_at(step) - (0 if not branch or has_same_text else setup.epochs_at(start))
    repeated = setup.store.manifest.get("repeated", {}).get("tokens", 0)
    has_same_validation = bool(branch) and origin.get("validation_set") == setup.validation_set
    return RunFacts(
        train=build_curve("loss"),
        validation=build_curve("eval_loss"),
        tokens=setup.tokens_at(step),
        parameters=status["parameters"],
        epochs=epochs * train.tokens / (train.tokens - repeated),
        skipped=sum(line["step"] > start for line in read_jsonl(setup.folder / "skipped.jsonl")),
        lr=config.lr,
        lr_scale=config.lr_scale,
        final_lr=rates[-1] / max(rates) if max(rates, default=0.0) > 0 else None,
        num_layers=config.model.num_hidden_layers if isinstance(config.model, TransformerConfig) else None,
        train_documents=train.documents,
        is_pretrained=isinstance(config.model, PretrainedModelConfig),
        has_failed=has_failed,
        uniform=None if baselines is None else baselines.uniform,
        unigram=None if baselines is None else baselines.unigram,
        ngram=None if baselines is None else _compute_ngram_baseline(setup, step, status),
        loss_at_start=_get_loss_at(lines, start) if has_same_validation else None,
        auto_batch=setup.tokens_per_step if is_batch_automatic(config) or MICRO_BATCH_KEY in status else None,
    )


def _get_loss_at(lines: list[dict[str, Any]], step: int) -> float | None:
    return next((line["eval_loss"] for line in lines if line["step"] == step and "eval_loss" in line), None)


def _compute_ngram_baseline(setup: RunSetup, step: int, status: dict[str, Any]) -> NgramBaseline | None:
    """Returns the loss of an n-gram model of as many tokens as the run was trained on; None if it takes too long."""
    seconds = compute_run_seconds(setup.folder, status, is_running=True) or 0.0
    documents = setup.validation_documents
    tokens = choose_counted_tokens(setup.store, documents, setup.tokens_at(step), seconds)
    return compute_ngram_baseline(setup.store, documents, tokens) if tokens else None
