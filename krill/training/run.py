"""One training run, from a token store and a tokenizer to a model: Hydra-free, everything in its folder.

checkpoints/    where it goes on when it was stopped
model/          the result, loads with AutoModelForCausalLM.from_pretrained, tokenizer beside it
metrics.jsonl   loss.png  sample.txt
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from krill import atomic
from krill.config.schema import CustomOptimizer, Optimizer, TrainConfig
from krill.data.packing import Rows, pack, windows
from krill.data.store import Store
from krill.errors import KrillError, UsageError
from krill.models.build import build
from krill.optim.groups import describe, parameter_groups
from krill.runs.record import Record, read_metrics
from krill.tokenizer import TokenizerFolder, load_tokenizer
from krill.training import attention, checkpoints
from krill.training.batches import Collate, Positions, RowDataset, Shape, loader
from krill.training.metrics import Reference, reference
from krill.training.plan import Length, device_name, length, precision, shape
from krill.training.progress import Meter
from krill.training.signals import StopOnSignal
from krill.training.trainer import Held, KrillTrainer

log = logging.getLogger("krill")


@dataclass(frozen=True)
class Setting:
    """All that is settled before the first step."""

    config: TrainConfig
    folder: Path
    store: Store
    tokenizer: TokenizerFolder
    device: torch.device
    precision: str
    backend: str
    shape: Shape
    length: Length
    rows: Rows
    held: Rows | None

    @property
    def tokens_per_step(self) -> int:
        return self.shape.rows_per_step * self.config.sequence_len


def run(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> dict[str, Any]:
    """Train in `folder` (continuing from its newest checkpoint) and return the final metrics.

    Raises UsageError when the data give no row or the device is not there, Stopped when a signal ended the
    run after saving.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    record = Record(folder)
    setting = settle(config, folder, store, tokenizer)
    checkpoint = next(reversed(checkpoints.found(folder / "checkpoints")), None)
    record.cut_metrics(checkpoints.step(checkpoint) if checkpoint else 0)

    model = _model(setting)
    points = _reference(setting)
    _header(setting, model, checkpoint)
    record.update(
        data={"folder": str(store), "signature": setting.store.signature},
        tokenizer={"folder": str(tokenizer), "signature": setting.tokenizer.signature},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=setting.length.steps,
    )
    trainer, stop = _trainer(setting, model, record)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.check(trainer.state.global_step, setting.length.steps)
    finally:
        stop.restore()
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Meter):
                callback.close()

    metrics = _final_metrics(trainer, setting, points)
    record.update(metrics=metrics)
    _keep(trainer.model, setting)
    _tell(setting, metrics, points)
    return metrics


def settle(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> Setting:
    """Read the store and settle device, rows and length of the run."""
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    device = device_name(config.device)
    opened = Store.open(store)
    train = opened.split("train")
    if train.tokens == 0:
        raise UsageError("no training tokens in the store: every document fell into the validation split")
    rows = pack(train, config.sequence_len, config.packing)
    validation = opened.split("validation")
    if validation.tokens == 0:
        log.warning("no document fell into the validation split: raise data.validation_fraction to get one")
    batch = shape(config.batch, config.sequence_len)
    arithmetic = precision(config.hardware.precision, device)
    return Setting(
        config=config,
        folder=folder,
        store=opened,
        tokenizer=load_tokenizer(tokenizer),
        device=torch.device(device),
        precision=arithmetic,
        backend=attention.choose(config.hardware.attention, device, arithmetic),
        shape=batch,
        length=length(config, len(rows), batch.rows_per_step),
        rows=rows,
        held=windows(validation, config.sequence_len) if validation.tokens else None,
    )


def _model(setting: Setting) -> Any:
    tokenizer = setting.tokenizer
    torch.manual_seed(setting.config.seed)
    return build(
        setting.config.model, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id,
        setting.backend,
    )  # fmt: skip


def _reference(setting: Setting) -> Reference | None:
    if setting.held is None:
        return None
    labels = np.concatenate([setting.held.row(index).labels for index in range(len(setting.held))])
    return reference(torch.from_numpy(labels[labels != -100]), setting.tokenizer.vocab_size)


def _trainer(setting: Setting, model: Any, record: Record) -> tuple[KrillTrainer, StopOnSignal]:
    config = setting.config
    collate = Collate(setting.backend, setting.device)
    order = partial(
        Positions, len(setting.rows), config.seed, setting.length.steps, setting.shape, setting.length.last
    )
    held = _held(setting, collate)
    stop = StopOnSignal()
    trainer = KrillTrainer(
        config,
        model,
        _arguments(setting),
        train_loader=lambda step: loader(setting.rows, order(step), collate, config.hardware.workers),
        held=held,
        callbacks=[
            stop,
            Meter(record, setting.tokens_per_step, setting.shape.rows_per_step, len(setting.rows)),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, stop


def _held(setting: Setting, collate: Collate) -> Held | None:
    """The validation rows in their order, as the trainer evaluates them."""
    rows = setting.held
    if rows is None:
        return None
    size = setting.config.batch.micro_batch_size
    batches = [list(range(first, min(first + size, len(rows)))) for first in range(0, len(rows), size)]
    return Held(
        dataset=RowDataset(rows),
        batches=lambda: loader(rows, batches, collate, workers=0),
        text_bytes=setting.store.validation.text_bytes,
        eos_id=setting.tokenizer.eos_id,
    )


def _arguments(setting: Setting) -> TrainingArguments:
    """TrainingArguments with the defaults off that hide NaN, count tokens wrongly or wait for the device."""
    config = setting.config
    return TrainingArguments(
        output_dir=str(setting.folder / "checkpoints"),
        max_steps=setting.length.steps,
        per_device_train_batch_size=setting.shape.micro_batch_size,
        gradient_accumulation_steps=setting.shape.accumulation,
        max_grad_norm=config.optimizer.max_grad_norm,
        bf16=setting.precision == "bf16",
        use_cpu=setting.device.type == "cpu",
        seed=config.seed,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if setting.held is not None else "no",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.save_every,
        ignore_data_skip=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        include_num_input_tokens_seen="no",
        average_tokens_across_devices=True,
        dataloader_num_workers=config.hardware.workers,
        dataloader_pin_memory=False,
    )


def _header(setting: Setting, model: Any, checkpoint: Path | None) -> None:
    """Six lines that tell what is about to run."""
    config, train = setting.config, setting.store.split("train")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = setting.store.split("validation")
    epochs = setting.length.steps * setting.shape.rows_per_step / len(setting.rows)
    log.info("name        %s", config.name)
    log.info("folder      %s", setting.folder)
    log.info(
        "model       %s: %s parameters, %s, vocabulary %d",
        config.model.name, f"{parameters:,}", config.model.family, setting.tokenizer.vocab_size,
    )  # fmt: skip
    log.info(
        "tokens      %s to train on in %s rows of %d (%s), %s held out",
        f"{train.tokens:,}", f"{len(setting.rows):,}", config.sequence_len, config.packing, f"{held.tokens:,}",
    )  # fmt: skip
    log.info(
        "steps       %d of %s tokens: %.2f epochs%s", setting.length.steps, f"{setting.tokens_per_step:,}", epochs,
        f"; going on from step {checkpoints.step(checkpoint)}" if checkpoint else "",
    )  # fmt: skip
    log.info("optimizer   %s", _optimizer_line(model, config.optimizer))
    log.info("device      %s, %s, attention %s", setting.device.type, setting.precision, setting.backend)


def _optimizer_line(model: Any, config: Optimizer) -> str:
    if isinstance(config, CustomOptimizer):
        return f"{config.build} at {config.lr:g}"
    groups = describe(parameter_groups(model, config))
    parts = (f"{group.name} {group.parameters:,} at {group.lr:g}" for group in groups)
    return f"{config.name}: {', '.join(parts)}"


def _final_metrics(trainer: KrillTrainer, setting: Setting, points: Reference | None) -> dict[str, Any]:
    lines = read_metrics(setting.folder)
    if points is not None and not any(
        line["step"] == trainer.state.global_step and "eval_loss" in line for line in lines
    ):
        trainer.evaluate()
        lines = read_metrics(setting.folder)
    losses = [line["loss"] for line in lines if "loss" in line]
    metrics: dict[str, Any] = {"step": trainer.state.global_step, "loss": losses[-1] if losses else None}
    held = [line for line in lines if "eval_loss" in line]
    if held and points is not None:
        metrics |= {key: held[-1][key] for key in ("eval_loss", "eval_bits_per_byte")}
        metrics["best_eval_loss"] = min(line["eval_loss"] for line in held)
        metrics |= {"uniform": points.uniform, "unigram": points.unigram}
    return metrics


def _keep(model: Any, setting: Setting) -> None:
    """Write model/: weights, configuration and tokenizer, whole or not at all."""
    from krill.inference.generate import sample

    final, partial_folder = setting.folder / "model", setting.folder / ".model.partial"
    for folder in (final, partial_folder):
        if folder.exists():
            shutil.rmtree(folder)
    model.set_attn_implementation("sdpa")
    model.config.use_cache = True
    model.save_pretrained(partial_folder)
    setting.tokenizer.copy_to(partial_folder)
    partial_folder.rename(final)
    text = sample(model, setting.tokenizer, setting.config.sample_prompt or "", seed=setting.config.seed)
    atomic.write_text(setting.folder / "sample.txt", text + "\n")
    if setting.config.hub.push:
        _push(final, setting.config)


def _push(folder: Path, config: TrainConfig) -> None:
    """Upload model/ to hub.id, private unless asked otherwise."""
    from huggingface_hub import HfApi

    assert config.hub.id is not None
    api = HfApi()
    try:
        api.create_repo(config.hub.id, private=config.hub.private, exist_ok=True)
        url = api.upload_folder(
            repo_id=config.hub.id, folder_path=folder, commit_message=f"krill: {config.name}"
        )
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise KrillError(
            f"hub.push: the upload to {config.hub.id} failed ({type(error).__name__}: {error}). The model is in "
            f"{folder}; give the same command again to try once more"
        ) from error
    log.info("hub: %s", url)


def _tell(setting: Setting, metrics: dict[str, Any], points: Reference | None) -> None:
    """The end of the run on the screen: what was reached, beside what knows nothing; a sample; what to type."""
    from krill.runs.report import plot_losses

    plot = plot_losses(setting.folder, points.uniform if points else None, points.unigram if points else None)
    if points is not None:
        learned = points.unigram - metrics["eval_loss"]
        log.info(
            "validation  %.3f nats per token, %.3f bits per byte",
            metrics["eval_loss"], metrics["eval_bits_per_byte"],
        )  # fmt: skip
        log.info(
            "compare     uniform guess %.3f, token frequencies alone %.3f: the model is %.3f below",
            points.uniform, points.unigram, learned,
        )  # fmt: skip
    log.info("sample      %s", (setting.folder / "sample.txt").read_text(encoding="utf-8").strip())
    log.info("plot        %s", plot)
    log.info("next        krill-infer %s", setting.folder)
    log.info("            krill-train from=%s steps=%d", setting.folder, 2 * setting.length.steps)
