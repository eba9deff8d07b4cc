"""What is left when a run ends: its figures, the model, a sample, a plot, and what the person is told."""

from __future__ import annotations

import logging
import shlex
import shutil
from typing import Any

from krill import atomic
from krill.runs.record import read_metrics, read_validations, relative_path
from krill.training.callbacks.early_stopping import read_stop_reason
from krill.training.checkpoint.export import export_model
from krill.training.checkpoint.model_card import build_model_card
from krill.training.metrics.evaluate import Baselines
from krill.training.setup import RunSetup
from krill.training.trainer import KrillTrainer

log = logging.getLogger("krill")


def collect_final_metrics(
    trainer: KrillTrainer, setting: RunSetup, points: Baselines | None
) -> dict[str, Any]:
    """The figures of the last step, the best, and the reference points."""
    losses = [line["loss"] for line in read_metrics(setting.folder) if line.get("loss") is not None]
    metrics: dict[str, Any] = {"step": trainer.state.global_step, "loss": losses[-1] if losses else None}
    if why := read_stop_reason(setting.config.stop, setting.folder, trainer.state.global_step):
        metrics["stopped_by"] = why
    held = read_validations(setting.folder)
    if held and points is not None:
        metrics |= {key: held[-1][key] for key in ("eval_loss", "eval_bits_per_byte")}
        metrics["best_eval_loss"] = min(line["eval_loss"] for line in held)
        metrics |= {"uniform": points.uniform, "unigram": points.unigram}
    return metrics


def save_final_model(
    model: Any, setting: RunSetup, metrics: dict[str, Any], points: Baselines | None
) -> None:
    """Write model/: weights, configuration, tokenizer and model card, whole or not at all."""
    from krill.inference.generate import generate_sample

    final, partial_folder = setting.folder / "model", setting.folder / ".model.partial"
    for folder in (final, partial_folder):
        if folder.exists():
            shutil.rmtree(folder)
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    model.config.use_cache = True
    export_model(model, partial_folder, setting.config.export_dtype)
    setting.tokenizer.copy_to(partial_folder)
    card = build_model_card(setting, metrics, points, sum(p.numel() for p in model.parameters()))
    atomic.write_text(partial_folder / "README.md", card)
    partial_folder.rename(final)
    text = generate_sample(
        model, setting.tokenizer, setting.config.sample_prompt or "", seed=setting.config.seed
    )
    atomic.write_text(setting.folder / "sample.txt", text + "\n")


def log_summary(setting: RunSetup, metrics: dict[str, Any], points: Baselines | None) -> None:
    """The end of the run on the screen: what was reached, beside what knows nothing; a sample; what to type."""
    from krill.runs.plots import plot_losses

    plot = plot_losses(setting.folder, points.uniform if points else None, points.unigram if points else None)
    if points is not None:
        learned = points.unigram - metrics["eval_loss"]
        log.info(
            "validation  %.3f nats per token, %.3f bits per byte",
            metrics["eval_loss"], metrics["eval_bits_per_byte"],
        )  # fmt: skip
        log.info(
            "compare     uniform guess %.3f, token frequencies alone %.3f: the model is %.3f %s",
            points.uniform, points.unigram, abs(learned), "below" if learned >= 0 else "above",
        )  # fmt: skip
    text = (setting.folder / "sample.txt").read_text(encoding="utf-8").strip()
    log.info(
        "sample      %s", "".join(sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in text)
    )
    folder = shlex.quote(str(relative_path(setting.folder)))
    log.info("plot        %s", relative_path(plot))
    log.info("next        krill-infer %s", folder)
    log.info("            krill-train from=%s steps=%d", folder, 2 * setting.length.steps)
