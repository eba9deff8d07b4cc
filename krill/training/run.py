"""Runs one training, from a token store and a tokenizer to a model, without Hydra. A run folder holds:

checkpoints/    the checkpoints that an interrupted run resumes from
model/          the trained model and its tokenizer; loads with AutoModelForCausalLM.from_pretrained
model-manifest.json     the digests of the files in model/, which krill verifies before it loads them
config.yaml     .hydra/  status.json  log.txt
metrics.jsonl   samples.jsonl  skipped.jsonl  optimizer.json  loss.png  scores.png  sample.txt
evaluations/    the scores of the trained model
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainingArguments, set_seed

from krill.config.schema import TrainConfig
from krill.errors import UsageError
from krill.evaluation.score_metrics import list_metrics
from krill.models.build import build_model
from krill.models.model_folder import silence_transformers
from krill.optim.schedules import Restart
from krill.resources import CoreClock, release_heap
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
    name_lost_workers,
)
from krill.training.callbacks.early_stopping import EarlyStopping
from krill.training.callbacks.heartbeat import Heartbeat
from krill.training.callbacks.progress import ProgressReporter
from krill.training.callbacks.samples import SampleWriter
from krill.training.callbacks.signals import StopOnSignal
from krill.training.callbacks.skip_report import SkipReport
from krill.training.callbacks.task_evaluation import TaskEvaluation
from krill.training.callbacks.verify_store import StoreVerifier
from krill.training.checkpoint.branch import Branch, resolve_branch, resolve_restart
from krill.training.checkpoint.export import raise_if_model_is_link
from krill.training.checkpoint.hub_upload import HubUploader
from krill.training.checkpoint.retention import CheckpointRetention
from krill.training.compute.attention import get_attn_implementation
from krill.training.compute.context_parallel import (
    check_context_parallel,
    get_context_parallel_implementation,
    register_context_parallel_attention,
    select_tested_kernels,
)
from krill.training.compute.device import BF16_PRECISIONS, apply_precision, resolve_shard_size
from krill.training.compute.flash import activate_flash_attention
from krill.training.compute.fp8 import convert_to_fp8
from krill.training.compute.fsdp import (
    build_fsdp_arguments,
    check_checkpoint_sharding,
    gather_full_state_dict,
)
from krill.training.compute.head_loss import Loss, build_loss
from krill.training.compute.liger import apply_kernels
from krill.training.compute.setup import ComputeSetup, resolve_compute_setup
from krill.training.final_evaluation import evaluate_final_model
from krill.training.finish import collect_final_metrics, log_summary, save_final_model
from krill.training.metrics.step_timer import StepTimer
from krill.training.metrics.throughput import build_throughput_meter, get_peak_memory
from krill.training.metrics.trackers import TrackedRun, Trackers, collect_tracked_config
from krill.training.oom_retry import retry_on_oom
from krill.training.run_header import log_header, write_param_groups
from krill.training.setup import (
    RunSetup,
    build_run_setup,
    compute_validation_baselines,
    count_text_bytes,
)
from krill.training.trainer import KrillTrainer, ValidationSet
from krill.training.verdict import record_divergence, record_verdict


def run_training(
    config: TrainConfig, folder: Path, store: Path, tokenizer: Path, compute: ComputeSetup | None = None
) -> dict[str, Any]:
    """Trains in `folder`, resuming from its newest checkpoint if there is one, and returns the final metrics.

    Called on every rank that the launcher started; `folder` is on storage that all ranks share, and rank 0 writes it.

    Args:
        compute: The result of this process's preflight checks. None: resolved here.

    Raises:
        UsageError: The data contain no row, or the device is not available.
        KrillError: Checkpoints exist but none is valid, or the memory is too small.
        SignalInterrupt: A signal ended the run, after a checkpoint was saved.
    """
    silence_transformers()
    stop, heartbeat = StopOnSignal(), Heartbeat()
    if compute is None:
        check_accelerate_env()
        compute = resolve_compute_setup(config)
        check_context_parallel(config, compute.attention_backend)
    config = config.model_copy(update={"hardware": select_tested_kernels(config.hardware)})
    with heartbeat, ranks.process_group(compute.device), name_lost_workers():
        return retry_on_oom(
            lambda attempt: _train_once(attempt, folder, store, tokenizer, compute, stop, heartbeat),
            config,
            folder,
        )


def _train_once(
    config: TrainConfig, folder: Path, store: Path, tokenizer: Path, compute: ComputeSetup, stop: StopOnSignal,
    heartbeat: Heartbeat,
) -> dict[str, Any]:  # fmt: skip
    """Trains once, as far as memory allows. `stop` is shared by the attempts: it keeps a signal received earlier."""
    with stop:
        ranks.on_rank0(lambda: raise_if_model_is_link(folder))
        if config.hardware.sharding == "hsdp":
            _check_equal_nodes(config)
        record = Record(folder, is_writer=ranks.is_rank0())
        setup = build_run_setup(config, folder, store, tokenizer, compute)
        apply_precision(setup.precision)
        activate_flash_attention(setup.attention_backend)
        start = _find_starting_point(config, folder)
        record.truncate_metrics(start.step, start.run_folder)

        model, loss, kernels = _build_training_model(setup)
        if ranks.is_rank0():
            log_header(setup, model, start.checkpoint, start.restart, [f"loss {loss.name}", *kernels])
            write_param_groups(setup, model)
        _record_setup(record, setup, model, start)
        progress, uploader = ProgressReporter(record, setup), HubUploader(record, config.hub)
        trainer = _build_trainer(setup, model, loss, stop, progress, start.restart)
        evaluation = TaskEvaluation(setup, trainer, stop)
        trainer.evaluate_tasks = evaluation.evaluate_if_due
        for callback in (evaluation, EarlyStopping(config, folder), heartbeat):
            trainer.add_callback(callback)
        trackers = _build_trackers(record, setup, model, start)
        if ranks.is_rank0():
            _add_rank0_callbacks(trainer, setup, record, uploader, trackers, start.corrupt)
        with trackers, record_divergence(trainer, setup, record):
            with uploader, trainer.async_saver, progress:
                started_at, clock = time.perf_counter(), CoreClock()
                trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
                seconds = time.perf_counter() - started_at
            record.update(training_seconds=round(seconds, 2), training_waited=round(clock.read()[1], 2))
            stop.raise_if_signaled(
                trainer.state.global_step, setup.length.steps
            )  # later signals interrupt at once
            if steps := trainer.state.global_step - start.step:
                seconds *= trainer.state.global_step / steps
            else:  # it was trained by a process that was interrupted afterwards
                seconds = record.status.get("seconds", 0.0)
            return _finish_run(trainer, setup, record, uploader, trackers, evaluation, seconds)


def time_training_steps(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> StepTimer:
    """Trains a few steps as `run_training` does, without a validation, a checkpoint or a result; returns their times.

    Args:
        config: The run, on one rank; it is as long as its steps, or until the timer has enough of them.
        folder: An empty folder.
        store: Its tokens.
        tokenizer: Its tokenizer.
    """
    silence_transformers()
    config = config.model_copy(update={"hardware": select_tested_kernels(config.hardware)})
    setup = build_run_setup(config, folder, store, tokenizer, resolve_compute_setup(config))
    apply_precision(setup.precision)
    activate_flash_attention(setup.attention_backend)
    model, loss, _ = _build_training_model(setup)
    progress = ProgressReporter(Record(folder), setup)
    trainer = _build_trainer(setup, model, loss, StopOnSignal(), progress, restart=None)
    timer = StepTimer(setup.device)
    trainer.add_callback(timer)
    with name_lost_workers():
        trainer.train()
    return timer


def _check_equal_nodes(config: TrainConfig) -> None:
    """Raises UsageError on every rank if hsdp would shard over different numbers of ranks on different nodes."""
    with ranks.raise_on_any_rank():
        shard_size = resolve_shard_size(config)
    sizes = ranks.all_gather_object(shard_size)
    if len(set(sizes)) > 1:
        raise UsageError(
            f"hardware.sharding=hsdp: the nodes have {' and '.join(map(str, sorted(set(sizes))))} ranks; start the "
            "same number on every node, or use hardware.sharding=fsdp2"
        )


@dataclass(frozen=True)
class _StartingPoint:
    """Where a training starts: from scratch, from its own checkpoint, or from that of the run it branches from."""

    run_folder: Path
    """The run whose metrics up to `step` are kept."""
    checkpoint: Path | None
    corrupt: list[Path]
    """Checkpoints of the run that were skipped."""
    branch: Branch | None
    restart: Restart | None

    @property
    def step(self) -> int:
        """The step after which the training starts."""
        return checkpoints.parse_step(self.checkpoint) if self.checkpoint else 0


def _find_starting_point(config: TrainConfig, folder: Path) -> _StartingPoint:
    """Returns the newest valid checkpoint in `folder`, else that of branch=, on every rank.

    Raises UsageError if this run cannot read it.
    """
    branch = resolve_branch(config.branch) if config.branch else None
    restart = resolve_restart(branch, config) if branch else None
    own_checkpoint, corrupt = ranks.on_rank0(lambda: checkpoints.find_newest_valid(folder / "checkpoints"))
    checkpoint = own_checkpoint or (ranks.on_rank0(branch.verify_checkpoint) if branch else None)
    if checkpoint:
        check_checkpoint_sharding(checkpoint, config.hardware.sharding, ranks.get_world_size())
    run_folder = branch.run_folder if branch and not own_checkpoint else folder
    return _StartingPoint(run_folder, checkpoint, corrupt, branch, restart)


def _build_training_model(setup: RunSetup) -> tuple[Any, Loss, list[str]]:
    """Returns the model with its initial weights, its loss, and the names of the kernels that it uses."""
    hardware = setup.config.hardware
    if hardware.context_parallel > 1:
        register_context_parallel_attention(setup.attention_backend, hardware.context_parallel)
    model = _build_model(setup)
    loss = build_loss(
        model, hardware.loss, setup.device.type, setup.is_compiled, setup.config.optimizer.z_loss
    )
    kernels = apply_kernels(model, hardware, setup.device.type, setup.is_compiled)
    if setup.precision == "fp8":  # before the model is sharded or compiled
        kernels.append(convert_to_fp8(model))
    return model, loss, kernels


def _record_setup(record: Record, setup: RunSetup, model: Any, start: _StartingPoint) -> None:
    """Records in status.json what the run is trained on, where it starts, and how long it is."""
    branch, restart = start.branch, start.restart
    record.update(
        data={
            "folder": str(setup.store.folder),
            "signature": setup.store.signature,
            "validation_set": setup.validation_set,
        },
        tokenizer={"folder": str(setup.tokenizer.folder), "signature": setup.tokenizer.signature},
        branch=branch
        and {
            "run": str(branch.run_folder),
            "step": branch.step,
            "restart": restart and asdict(restart),
        },
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        verdict=None,  # of an earlier start
        steps=setup.length.steps,
        rows_per_step=setup.batch_shape.rows_per_step,
    )


def _build_trackers(record: Record, setup: RunSetup, model: Any, start: _StartingPoint) -> Trackers:
    """Returns the trackers of the run, which only rank 0 has."""
    tracked_config = collect_tracked_config(setup, model, record.status.get("signature"), start.restart)
    names = setup.config.trackers if ranks.is_rank0() else []
    return Trackers(names, TrackedRun(record, setup, tracked_config, start.step))


def _add_rank0_callbacks(
    trainer: KrillTrainer, setup: RunSetup, record: Record, uploader: HubUploader, trackers: Trackers,
    corrupt: list[Path],
) -> None:  # fmt: skip
    """Adds what one rank does for all: it deletes checkpoints, uploads and tracks them, and verifies the tokens."""
    retention = CheckpointRetention(record, setup.config, trainer.last_stable_step, corrupt)
    for callback in (retention, StoreVerifier(setup.store), trackers):
        trainer.add_callback(callback)
    # In this order: retention deletes checkpoints, which must be uploaded before.
    trainer.save_hooks = [
        trackers.log_checkpoint, uploader.on_checkpoint_saved, retention.on_checkpoint_saved,
    ]  # fmt: skip


def _finish_run(
    trainer: KrillTrainer, setup: RunSetup, record: Record, uploader: HubUploader, trackers: Trackers,
    evaluation: TaskEvaluation, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Validates, exports, evaluates and reports the trained model; returns the final metrics.

    `seconds`: how long its training took.
    """
    baselines = compute_validation_baselines(setup)
    if baselines is not None and not trainer.already_validated():
        trainer.evaluate()
    evaluation.evaluate_if_due()  # where the process that trained the last step was interrupted
    trainer.optimizer.state.clear()  # it is saved; the evaluation loads the model a second time
    release_heap()
    weights = gather_full_state_dict(trainer.model) if trainer.is_fsdp_enabled else None

    def write_results() -> dict[str, Any]:
        model = trainer.model
        if weights is not None:
            model = _build_model(setup)
            model.load_state_dict(weights)
        metrics = collect_final_metrics(trainer, setup, baselines)
        record.update(metrics=metrics)
        save_final_model(model, setup, metrics, baselines)
        step = trainer.state.global_step
        results = evaluate_final_model(setup, step, seconds, evaluation.get_final_results(step))
        if results and not evaluation.config.every:
            trackers.log_scores(step, list_metrics(results))
        record.update(peak_memory=get_peak_memory(setup.device))
        verdict = record_verdict(setup, record, step, baselines, metrics.get("stopped_by"))
        trackers.log_model()
        uploader.finish()
        log_summary(setup, metrics, baselines, verdict)
        return metrics

    return ranks.on_rank0(write_results)


def _build_model(setup: RunSetup) -> Any:
    tokenizer, is_cut = setup.tokenizer, setup.config.hardware.context_parallel > 1
    get_name = get_context_parallel_implementation if is_cut else get_attn_implementation
    set_seed(setup.config.seed)  # random and numpy too: a custom model may draw from them
    return build_model(
        setup.config.model, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id,
        get_name(setup.attention_backend),
    )  # fmt: skip


def _build_trainer(
    setup: RunSetup,
    model: Any,
    loss: Loss,
    stop: StopOnSignal,
    progress: ProgressReporter,
    restart: Restart | None,
) -> KrillTrainer:
    config = setup.config
    rank, part = divmod(ranks.get_rank(), config.hardware.context_parallel)
    collator = RowCollator(setup.attention_backend, setup.device)
    train_collator = replace(collator, part=part, parts=config.hardware.context_parallel)
    throughput = build_throughput_meter(setup)
    build_sampler = partial(
        RowBatchSampler,
        len(setup.train_rows),
        config.seed,
        setup.length.steps,
        setup.batch_shape,
        setup.length.total_rows,
    )
    trainer = KrillTrainer(
        config,
        model,
        _build_training_arguments(setup),
        train_loader=lambda step: build_dataloader(
            setup.train_rows, build_sampler(step, rank), train_collator, config.hardware.workers
        ),
        validation_set=_build_validation_set(setup, collator, stop),
        throughput=throughput,
        loss=loss,
        is_compiled=setup.is_compiled,
        tokenizer=setup.tokenizer,
        restart=restart,
        epochs_at=setup.epochs_at,
        skip_report=SkipReport(setup, build_sampler(lambda: 0).get_step_rows),
        callbacks=[stop, progress, SampleWriter(setup, throughput)],
    )
    trainer.remove_callback(PrinterCallback)
    set_seed(config.seed + ranks.get_rank())  # weights are equal on all ranks, dropout masks are not
    return trainer


def _build_validation_set(setup: RunSetup, collator: RowCollator, stop: StopOnSignal) -> ValidationSet | None:
    """Returns the validation rows in order, in batches that end early when a signal is received.

    Batches are dealt to the ranks in turn. Each rank gets the same number of them, because sharded weights are
    gathered by all ranks for each batch.
    """
    rows = setup.validation_rows
    if rows is None:
        return None
    size = setup.config.batch.micro_batch_size
    all_batches = [list(range(first, min(first + size, len(rows)))) for first in range(0, len(rows), size)]
    all_batches += [[EMPTY_ROW]] * (-len(all_batches) % ranks.get_world_size())
    batches = all_batches[ranks.get_rank() :: ranks.get_world_size()]
    segment_sources = map_segments_to_sources(rows, setup.store.validation)

    def iterate_batches() -> Iterator[dict[str, Any]]:
        for batch, indices in zip(build_dataloader(rows, batches, collator, workers=0), batches, strict=True):
            yield batch | {"sources": map_tokens_to_sources(rows, segment_sources, indices)}

    return ValidationSet(
        dataset=RowDataset(rows),
        load_batches=lambda: stop.iterate_until_signal(iterate_batches()),
        text_bytes=count_text_bytes(setup),
        is_sample=setup.validation_documents is not None,
        eos_id=setup.tokenizer.eos_id,
    )


def _build_training_arguments(setup: RunSetup) -> TrainingArguments:
    """Returns TrainingArguments without the defaults that hide NaN, miscount tokens or wait for the device."""
    config = setup.config
    arguments = TrainingArguments(
        output_dir=str(setup.folder / "checkpoints"),
        max_steps=setup.length.steps,
        per_device_train_batch_size=setup.batch_shape.micro_batch_size,
        gradient_accumulation_steps=setup.batch_shape.accumulation_steps,
        max_grad_norm=config.optimizer.max_grad_norm or math.inf,  # inf: measures the norm, does not clip
        bf16=setup.precision in BF16_PRECISIONS,
        use_cpu=setup.device.type == "cpu",
        seed=config.seed,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if setup.validation_rows is not None else "no",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.save_every,
        ignore_data_skip=True,
        remove_unused_columns=False,
        report_to="none",  # krill.training.metrics.trackers
        disable_tqdm=True,
        include_num_input_tokens_seen="no",
        average_tokens_across_devices=False,  # KrillTrainer does, without waiting for the device
        ddp_find_unused_parameters=False,
        **build_fsdp_arguments(config.hardware.sharding, ranks.get_world_size()),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # no DataParallel, which would split packed documents
    return arguments
