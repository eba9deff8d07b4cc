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
from krill.models.build import build_model
from krill.runs import checkpoints
from krill.runs.record import Record
from krill.training import ranks
from krill.training.accelerate_env import check_accelerate_env
from krill.training.batches import (
    EMPTY_ROW,
    RowBatchSampler,
    RowCollator,
    RowDataset,
    build_dataloader,
    map_segments_to_sources,
    map_tokens_to_sources,
)
from krill.training.callbacks.early_stopping import EarlyStopping
from krill.training.callbacks.progress import ProgressReporter
from krill.training.callbacks.samples import SampleWriter
from krill.training.callbacks.signals import StopOnSignal
from krill.training.callbacks.skip_report import SkipReport
from krill.training.callbacks.verify_store import StoreVerifier
from krill.training.checkpoint.branch import resolve_branch
from krill.training.checkpoint.hub_upload import HubUploader
from krill.training.checkpoint.retention import CheckpointRetention
from krill.training.compute.attention import get_attn_implementation
from krill.training.compute.fsdp import (
    build_fsdp_arguments,
    check_checkpoint_sharding,
    gather_full_state_dict,
)
from krill.training.compute.head_loss import Loss, build_loss
from krill.training.compute.liger import apply_kernels
from krill.training.compute.setup import ComputeSetup, resolve_compute_setup
from krill.training.finish import collect_final_metrics, log_summary, save_final_model
from krill.training.metrics.throughput import build_throughput_meter
from krill.training.metrics.trackers import build_tracker_arguments
from krill.training.oom_retry import retry_on_oom
from krill.training.run_header import log_header, write_param_groups
from krill.training.setup import RunSetup, build_run_setup, compute_validation_baselines
from krill.training.trainer import KrillTrainer, ValidationSet


def run_training(
    config: TrainConfig, folder: Path, store: Path, tokenizer: Path, compute: ComputeSetup | None = None
) -> dict[str, Any]:
    """Train in `folder` (continuing from its newest checkpoint) and return the final metrics.

    `compute`: as the preflight checks of this process resolved it; None: it is resolved here.

    Called on every rank that the environment announces; the first writes the folder, which all of them see.

    Raises UsageError when the data give no row or the device is not there, KrillError when there are checkpoints
    and none verifies or memory is too small, Stopped when a signal ended the run after saving.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    stop = StopOnSignal()
    if compute is None:
        check_accelerate_env()
        compute = resolve_compute_setup(config)
    with ranks.process_group(compute.device):
        return retry_on_oom(
            lambda fitted: _train_once(fitted, folder, store, tokenizer, compute, stop), config, folder
        )


def _train_once(
    config: TrainConfig, folder: Path, store: Path, tokenizer: Path, compute: ComputeSetup, stop: StopOnSignal
) -> dict[str, Any]:
    """The run as far as memory goes; `stop` remembers a signal of the attempt before."""
    with stop:
        record = Record(folder, is_writer=ranks.is_rank0())
        setting = build_run_setup(config, folder, store, tokenizer, compute)
        branch = resolve_branch(config.branch) if config.branch else None
        own, broken = ranks.on_rank0(lambda: checkpoints.find_newest_valid(folder / "checkpoints"))
        checkpoint = own or (branch.verify_checkpoint() if branch else None)
        if checkpoint:
            check_checkpoint_sharding(checkpoint, config.hardware.sharding, ranks.get_world_size())
        begun_in = branch.run_folder if branch and not own else folder
        record.truncate_metrics(checkpoints.parse_step(checkpoint) if checkpoint else 0, begun_in)

        model = _build_model(setting)
        loss = build_loss(model, config.hardware.loss, setting.device.type)
        kernels = apply_kernels(model, config.hardware, setting.device.type)
        if ranks.is_rank0():
            log_header(setting, model, checkpoint, [f"loss {loss.name}", *kernels])
            write_param_groups(setting, model)
        record.update(
            data={"folder": str(store), "signature": setting.store.signature},
            tokenizer={"folder": str(tokenizer), "signature": setting.tokenizer.signature},
            branch=branch and {"run": str(branch.run_folder), "step": branch.step},
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            steps=setting.length.steps,
            rows_per_step=setting.batch_shape.rows_per_step,
        )
        meter, uploads = ProgressReporter(record, setting), HubUploader(record, config.hub)
        trainer = _build_trainer(setting, model, loss, stop, meter)
        if ranks.is_rank0():
            keeping = CheckpointRetention(record, config, trainer.last_stable_step, broken)
            trainer.add_callback(keeping)
            trainer.add_callback(StoreVerifier(setting.store))
            trainer.save_hooks = [
                uploads.on_checkpoint_saved,
                keeping.on_checkpoint_saved,
            ]  # the latter deletes what is not to be kept
        with uploads, trainer.async_saver, meter:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.raise_if_signaled(
            trainer.state.global_step, setting.length.steps
        )  # from here on a signal stops it at once
        return _finish_run(trainer, setting, record, uploads)


def _finish_run(
    trainer: KrillTrainer, setting: RunSetup, record: Record, uploads: HubUploader
) -> dict[str, Any]:
    """What is left to do when the training is over; the figures of the run."""
    points = compute_validation_baselines(setting)
    if points is not None and not trainer.already_validated():
        trainer.evaluate()
    weights = gather_full_state_dict(trainer.model) if trainer.is_fsdp_enabled else None

    def conclude() -> dict[str, Any]:
        model = trainer.model
        if weights is not None:
            model = _build_model(setting)
            model.load_state_dict(weights)
        metrics = collect_final_metrics(trainer, setting, points)
        record.update(metrics=metrics)
        save_final_model(model, setting, metrics, points)
        uploads.finish()
        log_summary(setting, metrics, points)
        return metrics

    return ranks.on_rank0(conclude)


def _build_model(setting: RunSetup) -> Any:
    tokenizer = setting.tokenizer
    set_seed(setting.config.seed)  # of random and numpy as well: a model of one's own may draw from them
    return build_model(
        setting.config.model, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id,
        get_attn_implementation(setting.attention_backend),
    )  # fmt: skip


def _build_trainer(
    setting: RunSetup, model: Any, loss: Loss, stop: StopOnSignal, meter: ProgressReporter
) -> KrillTrainer:
    config = setting.config
    collate = RowCollator(setting.attention_backend, setting.device)
    pace = build_throughput_meter(setting)
    order = partial(
        RowBatchSampler,
        len(setting.train_rows),
        config.seed,
        setting.length.steps,
        setting.batch_shape,
        setting.length.total_rows,
    )
    trainer = KrillTrainer(
        config,
        model,
        _build_training_arguments(setting),
        train_loader=lambda step: build_dataloader(
            setting.train_rows, order(step, ranks.get_rank()), collate, config.hardware.workers
        ),
        validation_set=_build_validation_set(setting, collate, stop),
        throughput=pace,
        loss=loss,
        pad_id=setting.tokenizer.pad_id,
        skip_report=SkipReport(setting, order(lambda: 0).get_step_rows),
        callbacks=[stop, meter, EarlyStopping(config.stop, setting.folder), SampleWriter(setting, pace)],
    )
    trainer.remove_callback(PrinterCallback)
    set_seed(config.seed + ranks.get_rank())  # the weights were the same on all, what is dropped is not
    return trainer


def _build_validation_set(
    setting: RunSetup, collate: RowCollator, stop: StopOnSignal
) -> ValidationSet | None:
    """The validation rows in their order, as the trainer evaluates them until a signal comes.

    Ranks take batches in turn, and have as many: sharded weights are gathered by all of them for each.
    """
    rows = setting.validation_rows
    if rows is None:
        return None
    size = setting.config.batch.micro_batch_size
    parts = [list(range(first, min(first + size, len(rows)))) for first in range(0, len(rows), size)]
    parts += [[EMPTY_ROW]] * (-len(parts) % ranks.get_world_size())
    batches = parts[ranks.get_rank() :: ranks.get_world_size()]
    by_source = setting.store.manifest["splits"]["validation"]["by_source"]
    of_segment = map_segments_to_sources(rows, setting.store.validation)

    def of_source() -> Iterator[dict[str, Any]]:
        for batch, indices in zip(build_dataloader(rows, batches, collate, workers=0), batches, strict=True):
            yield batch | {"sources": map_tokens_to_sources(rows, of_segment, indices)}

    return ValidationSet(
        dataset=RowDataset(rows),
        load_batches=lambda: stop.iterate_until_signal(of_source()),
        text_bytes={name: by_source.get(name, {}).get("text_bytes", 0) for name in setting.store.sources},
        eos_id=setting.tokenizer.eos_id,
    )


def _build_training_arguments(setting: RunSetup) -> TrainingArguments:
    """TrainingArguments with the defaults off that hide NaN, count tokens wrongly or wait for the device."""
    config = setting.config
    arguments = TrainingArguments(
        output_dir=str(setting.folder / "checkpoints"),
        max_steps=setting.length.steps,
        per_device_train_batch_size=setting.batch_shape.micro_batch_size,
        gradient_accumulation_steps=setting.batch_shape.accumulation_steps,
        max_grad_norm=config.optimizer.max_grad_norm or math.inf,  # inf: only measured
        bf16=setting.precision == "bf16",
        use_cpu=setting.device.type == "cpu",
        seed=config.seed,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if setting.validation_rows is not None else "no",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.save_every,
        ignore_data_skip=True,
        remove_unused_columns=False,
        **build_tracker_arguments(config, setting.folder),
        disable_tqdm=True,
        include_num_input_tokens_seen="no",
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        **build_fsdp_arguments(config.hardware.sharding, ranks.get_world_size()),
    )
    arguments._n_gpu = min(
        1, arguments.n_gpu
    )  # a process has one device; DataParallel would tear documents apart
    return arguments
