"""One training run, from a token store and a tokenizer to a model: Hydra-free, everything in its folder.

checkpoints/    where it goes on when it was stopped
model/          the result, loads with AutoModelForCausalLM.from_pretrained, tokenizer beside it
metrics.jsonl   optimizer.json  loss.png  sample.txt
"""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from krill import atomic
from krill.config.schema import CustomOptimizer, Optimizer, TrainConfig
from krill.models.build import build
from krill.optim.groups import describe, parameter_groups, places
from krill.runs import checkpoints
from krill.runs.record import Record, shown
from krill.training.batches import Collate, Positions, RowDataset, loader
from krill.training.branch import branch_of
from krill.training.outcome import final_metrics, keep, tell
from krill.training.progress import Meter
from krill.training.setting import Setting, reference_points, settle
from krill.training.signals import StopOnSignal
from krill.training.trainer import Held, KrillTrainer

log = logging.getLogger("krill")


def run(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> dict[str, Any]:
    """Train in `folder` (continuing from its newest checkpoint) and return the final metrics.

    Raises UsageError when the data give no row or the device is not there, Stopped when a signal ended the
    run after saving.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with StopOnSignal() as stop:
        record = Record(folder)
        setting = settle(config, folder, store, tokenizer)
        branch = branch_of(config.branch) if config.branch else None
        own = next(reversed(checkpoints.found(folder / "checkpoints")), None)
        checkpoint = own or (branch.checkpoint if branch else None)
        begun_in = branch.run if branch and not own else folder
        record.cut_metrics(checkpoints.step(checkpoint) if checkpoint else 0, begun_in)

        model = _model(setting)
        points = reference_points(setting)
        _header(setting, model, checkpoint)
        _keep_groups(setting, model)
        record.update(
            data={"folder": str(store), "signature": setting.store.signature},
            tokenizer={"folder": str(tokenizer), "signature": setting.tokenizer.signature},
            branch=branch and {"run": str(branch.run), "step": branch.step},
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            steps=setting.length.steps,
        )
        meter = Meter(record, setting)
        trainer = _trainer(setting, model, [stop, meter])
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            meter.close()
        stop.check(trainer.state.global_step, setting.length.steps)

        metrics = final_metrics(trainer, setting, points)
        record.update(metrics=metrics)
        keep(trainer.model, setting)
        tell(setting, metrics, points)
    return metrics


def _model(setting: Setting) -> Any:
    tokenizer = setting.tokenizer
    torch.manual_seed(setting.config.seed)
    return build(
        setting.config.model, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id,
        setting.backend,
    )  # fmt: skip


def _trainer(setting: Setting, model: Any, callbacks: list[TrainerCallback]) -> KrillTrainer:
    config = setting.config
    collate = Collate(setting.backend, setting.device)
    order = partial(
        Positions, len(setting.rows), config.seed, setting.length.steps, setting.shape, setting.length.last
    )
    trainer = KrillTrainer(
        config,
        model,
        _arguments(setting),
        train_loader=lambda step: loader(setting.rows, order(step), collate, config.hardware.workers),
        held=_held(setting, collate),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


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
    arguments = TrainingArguments(
        output_dir=str(setting.folder / "checkpoints"),
        max_steps=setting.length.steps,
        per_device_train_batch_size=setting.shape.micro_batch_size,
        gradient_accumulation_steps=setting.shape.accumulation,
        max_grad_norm=config.optimizer.max_grad_norm or math.inf,  # inf: only measured
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
    )
    arguments._n_gpu = min(
        1, arguments.n_gpu
    )  # a process has one device; DataParallel would tear documents apart
    return arguments


def _header(setting: Setting, model: Any, checkpoint: Path | None) -> None:
    """Six lines that tell what is about to run."""
    config, train = setting.config, setting.store.split("train")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = setting.store.split("validation")
    log.info("name        %s", config.name)
    log.info("folder      %s", shown(setting.folder))
    log.info(
        "model       %s: %s parameters, %s, vocabulary %d",
        config.model.name, f"{parameters:,}", config.model.family, setting.tokenizer.vocab_size,
    )  # fmt: skip
    log.info(
        "tokens      %s to train on in %s rows of %d (%s), %s held out",
        f"{train.tokens:,}", f"{len(setting.rows):,}", config.sequence_len, config.packing, f"{held.tokens:,}",
    )  # fmt: skip
    log.info(
        "steps       %d of %s tokens: %.2f epochs%s", setting.length.steps, f"{setting.tokens_per_step:,}",
        setting.epochs_at(setting.length.steps),
        _going_on(setting, checkpoint) if checkpoint else "",
    )  # fmt: skip
    log.info("optimizer   %s", _optimizer_line(model, config.optimizer))
    log.info("device      %s, %s, attention %s", setting.device.type, setting.precision, setting.backend)


def _going_on(setting: Setting, checkpoint: Path) -> str:
    run = checkpoint.parents[1]
    whose = "" if run == setting.folder else f" of {shown(run)}"
    return f"; going on from step {checkpoints.step(checkpoint)}{whose}"


def _optimizer_line(model: Any, config: Optimizer) -> str:
    if isinstance(config, CustomOptimizer):
        return f"{config.build} at {config.lr:g}"
    groups = describe(parameter_groups(model, config))
    parts = (f"{group.name} {group.parameters:,} at {group.lr:g}" for group in groups)
    return f"{config.name}: {', '.join(parts)}"


def _keep_groups(setting: Setting, model: Any) -> None:
    """optimizer.json: which parameter is in which group, and the matrices that Muon sees in it."""
    config = setting.config.optimizer
    if isinstance(config, CustomOptimizer):
        return
    groups = parameter_groups(model, config)
    table = {
        "optimizer": config.name,
        "groups": [group._asdict() for group in describe(groups)],
        "parameters": [place._asdict() for place in places(model, groups)],
    }
    atomic.write_json(setting.folder / "optimizer.json", table)
