"""One training run, from a token store and a tokenizer to a model: Hydra-free, everything in its folder.

checkpoints/    where it goes on when it was stopped
model/          the result, loads with AutoModelForCausalLM.from_pretrained, tokenizer beside it
metrics.jsonl   optimizer.json  skipped.jsonl  loss.png  sample.txt
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from krill.config.schema import TrainConfig
from krill.models.build import build
from krill.runs import checkpoints
from krill.runs.record import Record
from krill.training import ranks
from krill.training.attention import implementation
from krill.training.batches import (
    EMPTY,
    Collate,
    Positions,
    RowDataset,
    loader,
    segment_sources,
    token_sources,
)
from krill.training.branch import branch_of
from krill.training.fitting import fitting
from krill.training.header import keep_groups, tell_beginning
from krill.training.intact import Intact
from krill.training.keeping import Keeping
from krill.training.kernels import apply_kernels
from krill.training.loss import Loss, loss_of
from krill.training.outcome import final_metrics, keep, tell
from krill.training.pace import pace_of
from krill.training.plan import device_name
from krill.training.progress import Meter
from krill.training.samples import Samples
from krill.training.setting import Setting, reference_points, settle
from krill.training.sharding import check_checkpoint, sharding_arguments, whole_weights
from krill.training.signals import StopOnSignal
from krill.training.skipped import Skipped
from krill.training.stopping import StopByLoss
from krill.training.trackers import tracker_arguments
from krill.training.trainer import Held, KrillTrainer
from krill.training.uploads import Uploads


def run(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> dict[str, Any]:
    """Train in `folder` (continuing from its newest checkpoint) and return the final metrics.

    Called on every rank that the environment announces; the first writes the folder, which all of them see.

    Raises UsageError when the data give no row or the device is not there, KrillError when there are checkpoints
    and none verifies or memory is too small, Stopped when a signal ended the run after saving.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    stop = StopOnSignal()
    with ranks.joined(device_name(config.device)):
        return fitting(lambda fitted: _attempt(fitted, folder, store, tokenizer, stop), config, folder)


def _attempt(
    config: TrainConfig, folder: Path, store: Path, tokenizer: Path, stop: StopOnSignal
) -> dict[str, Any]:
    """The run as far as memory goes; `stop` remembers a signal of the attempt before."""
    with stop:
        record = Record(folder, writes=ranks.is_first())
        setting = settle(config, folder, store, tokenizer)
        branch = branch_of(config.branch) if config.branch else None
        own, broken = ranks.from_first(lambda: checkpoints.newest(folder / "checkpoints"))
        checkpoint = own or (branch.verified() if branch else None)
        if checkpoint:
            check_checkpoint(checkpoint, config.hardware.sharding, ranks.count())
        begun_in = branch.run if branch and not own else folder
        record.cut_metrics(checkpoints.step(checkpoint) if checkpoint else 0, begun_in)

        model = _model(setting)
        loss = loss_of(model, config.hardware.loss, setting.device.type)
        kernels = apply_kernels(model, config.hardware, setting.device.type)
        if ranks.is_first():
            tell_beginning(setting, model, checkpoint, [f"loss {loss.name}", *kernels])
            keep_groups(setting, model)
        record.update(
            data={"folder": str(store), "signature": setting.store.signature},
            tokenizer={"folder": str(tokenizer), "signature": setting.tokenizer.signature},
            branch=branch and {"run": str(branch.run), "step": branch.step},
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            steps=setting.length.steps,
            rows_per_step=setting.shape.rows_per_step,
        )
        meter, uploads = Meter(record, setting), Uploads(record, config.hub)
        trainer = _trainer(setting, model, loss, stop, meter)
        if ranks.is_first():
            keeping = Keeping(record, config, trainer.stable, broken)
            trainer.add_callback(keeping)
            trainer.add_callback(Intact(setting.store))
            trainer.after_save = [uploads.saved, keeping.saved]  # the latter deletes what is not to be kept
        with uploads, trainer.background, meter:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.check(trainer.state.global_step, setting.length.steps)  # from here on a signal stops it at once
        return _concluded(trainer, setting, record, uploads)


def _concluded(trainer: KrillTrainer, setting: Setting, record: Record, uploads: Uploads) -> dict[str, Any]:
    """What is left to do when the training is over; the figures of the run."""
    points = reference_points(setting)
    if points is not None and not trainer.is_judged():
        trainer.evaluate()
    weights = whole_weights(trainer.model) if trainer.is_fsdp_enabled else None

    def conclude() -> dict[str, Any]:
        model = trainer.model
        if weights is not None:
            model = _model(setting)
            model.load_state_dict(weights)
        metrics = final_metrics(trainer, setting, points)
        record.update(metrics=metrics)
        keep(model, setting, metrics, points)
        uploads.finish()
        tell(setting, metrics, points)
        return metrics

    return ranks.from_first(conclude)


def _model(setting: Setting) -> Any:
    tokenizer = setting.tokenizer
    set_seed(setting.config.seed)  # of random and numpy as well: a model of one's own may draw from them
    return build(
        setting.config.model, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id,
        implementation(setting.backend),
    )  # fmt: skip


def _trainer(setting: Setting, model: Any, loss: Loss, stop: StopOnSignal, meter: Meter) -> KrillTrainer:
    config = setting.config
    collate = Collate(setting.backend, setting.device)
    pace = pace_of(setting)
    order = partial(
        Positions, len(setting.rows), config.seed, setting.length.steps, setting.shape, setting.length.last
    )
    trainer = KrillTrainer(
        config,
        model,
        _arguments(setting),
        train_loader=lambda step: loader(
            setting.rows, order(step, ranks.rank()), collate, config.hardware.workers
        ),
        held=_held(setting, collate, stop),
        pace=pace,
        loss=loss,
        pad_id=setting.tokenizer.pad_id,
        skipped=Skipped(setting, order(lambda: 0).of_step),
        callbacks=[stop, meter, StopByLoss(config.stop, setting.folder), Samples(setting, pace)],
    )
    trainer.remove_callback(PrinterCallback)
    set_seed(config.seed + ranks.rank())  # the weights were the same on all, what is dropped is not
    return trainer


def _held(setting: Setting, collate: Collate, stop: StopOnSignal) -> Held | None:
    """The validation rows in their order, as the trainer evaluates them until a signal comes.

    Ranks take batches in turn, and have as many: sharded weights are gathered by all of them for each.
    """
    rows = setting.held
    if rows is None:
        return None
    size = setting.config.batch.micro_batch_size
    parts = [list(range(first, min(first + size, len(rows)))) for first in range(0, len(rows), size)]
    parts += [[EMPTY]] * (-len(parts) % ranks.count())
    batches = parts[ranks.rank() :: ranks.count()]
    by_source = setting.store.manifest["splits"]["validation"]["by_source"]
    of_segment = segment_sources(rows, setting.store.validation)

    def of_source() -> Iterator[dict[str, Any]]:
        for batch, indices in zip(loader(rows, batches, collate, workers=0), batches, strict=True):
            yield batch | {"sources": token_sources(rows, of_segment, indices)}

    return Held(
        dataset=RowDataset(rows),
        batches=lambda: stop.watch(of_source()),
        text_bytes={name: by_source.get(name, {}).get("text_bytes", 0) for name in setting.store.sources},
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
        **tracker_arguments(config, setting.folder),
        disable_tqdm=True,
        include_num_input_tokens_seen="no",
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        **sharding_arguments(config.hardware.sharding, ranks.count()),
    )
    arguments._n_gpu = min(
        1, arguments.n_gpu
    )  # a process has one device; DataParallel would tear documents apart
    return arguments
