"""Writes the results of a run: final metrics, model, sample and loss plot, and logs a summary."""

from __future__ import annotations

import logging
import shlex
import shutil
from typing import Any

from krill import atomic
from krill.config.paths import relative_path
from krill.evaluation.score_metrics import list_main_metrics
from krill.runs.json_lines import read_evaluations, read_metrics, read_validations
from krill.runs.summary import format_next_command
from krill.training.callbacks.early_stopping import read_stop_reason
from krill.training.checkpoint.export import (
    EXPORT_DTYPES,
    export_model,
    raise_if_model_is_link,
    write_model_manifest,
)
from krill.training.checkpoint.model_card import build_model_card
from krill.training.metrics.evaluate import Baselines
from krill.training.setup import RunSetup
from krill.training.trainer import KrillTrainer
from krill.training.verdict import Verdict

log = logging.getLogger("krill")


def collect_final_metrics(
    trainer: KrillTrainer, setup: RunSetup, baselines: Baselines | None
) -> dict[str, Any]:
    """Returns the metrics of the last step, the best validation loss, and the baselines."""
    losses = [line["loss"] for line in read_metrics(setup.folder) if line.get("loss") is not None]
    metrics: dict[str, Any] = {"step": trainer.state.global_step, "loss": losses[-1] if losses else None}
    if reason := read_stop_reason(setup.config, setup.folder, trainer.state.global_step):
        metrics["stopped_by"] = reason
    validations = read_validations(setup.folder)
    if validations and baselines is not None:
        metrics |= {key: validations[-1][key] for key in ("eval_loss", "eval_bits_per_byte")}
        metrics["best_eval_loss"] = min(line["eval_loss"] for line in validations)
        metrics |= {"uniform": baselines.uniform, "unigram": baselines.unigram}
    return metrics


def save_final_model(
    model: Any, setup: RunSetup, metrics: dict[str, Any], baselines: Baselines | None
) -> None:
    """Writes model/ (weights, configuration, tokenizer and model card) by one rename, and sample.txt."""
    from krill.inference.generate import generate_sample

    raise_if_model_is_link(setup.folder)
    final, partial_folder = setup.folder / "model", setup.folder / ".model.partial"
    for folder in (final, partial_folder):
        if folder.exists():
            shutil.rmtree(folder)
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    model.config.use_cache = True
    export_model(model, partial_folder, EXPORT_DTYPES[setup.config.export_dtype])
    setup.tokenizer.copy_to(partial_folder, setup.config.model.max_position_embeddings)
    card = build_model_card(setup, metrics, baselines, sum(p.numel() for p in model.parameters()))
    write_model_manifest(partial_folder, setup.folder)  # without the model card, which users edit
    atomic.write_text(partial_folder / "README.md", card)
    atomic.apply_umask(partial_folder)
    partial_folder.rename(final)
    text = generate_sample(model, setup.tokenizer, setup.config.sample_prompt or "", seed=setup.config.seed)
    atomic.write_text(setup.folder / "sample.txt", text + "\n")


def log_summary(
    setup: RunSetup, metrics: dict[str, Any], baselines: Baselines | None, verdict: Verdict
) -> None:
    """Logs the validation loss beside the baselines, the verdict, a sample, and what to run next; writes the plot."""
    from krill.runs.plots import plot_losses, plot_scores

    plot = plot_losses(
        setup.folder, baselines.uniform if baselines else None, baselines.unigram if baselines else None
    )
    if baselines is not None:
        margin = baselines.unigram - metrics["eval_loss"]
        log.info(
            "validation  %.3f nats per token, %.3f bits per byte",
            metrics["eval_loss"], metrics["eval_bits_per_byte"],
        )  # fmt: skip
        log.info(
            "baseline    uniform %.3f, unigram %.3f; the model is %.3f nats %s unigram",
            baselines.uniform, baselines.unigram, abs(margin), "below" if margin >= 0 else "above",
        )  # fmt: skip
    log.info("verdict     %s", verdict.text)
    text = (setup.folder / "sample.txt").read_text(encoding="utf-8").strip()
    log.info(
        "sample      %s", "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
    )
    folder = shlex.quote(str(relative_path(setup.folder)))
    log.info("plot        %s", relative_path(plot))
    if evaluations := read_evaluations(setup.folder):
        scores = {name: value for line in evaluations for name, value in line.items() if "/" in name}
        plot = plot_scores(setup.folder, evaluations, list(list_main_metrics(scores)))
        log.info("            %s", relative_path(plot))
    log.info("next        krill-infer %s", folder)
    log.info("            %s", format_next_command(verdict.to_dict(), relative_path(setup.folder)))
