"""KrillTrainer: transformers' Trainer with krill's data order, optimizer, validation and checkpoints.

Overridden methods, and why:
    create_accelerator_and_postprocess
                            options of DDP and FSDP2
    get_train_dataloader    rows by (seed, epoch, position), so that the step number is all that resuming needs
    create_optimizer, create_scheduler
                            krill's optimizers and schedules; what FSDP2 needs before it shards
    compute_loss            no full logits; the compiled model, where it is compiled; scales the loss of several ranks
    floating_point_ops      0: Trainer's count omits attention and head
    get_batch_samples       counts the tokens, over all ranks without the device, and measures the time that the loop
                            waits for rows
    _prepare_input          copies to the device without waiting for it
    training_step           passes the loss to the detector of bad steps
    _clip_grad_norm, log    statistics of the optimizer and throughput in logged steps; bad steps are masked out
                            and reported with the next line of metrics
    evaluate                loss per token and bits per byte over all validation rows
    _evaluate               the validation, the evaluation on tasks, or both, as due
    _get_output_dir         the staging folder while a checkpoint is saved
    _save_checkpoint        writes to a staging folder, hashes, then renames; stores the epoch of metrics.jsonl, and
                            whether a validation that a signal interrupted is pending
    _save, _save_optimizer_and_scheduler
                            in a background thread, where configured
    _load_optimizer_and_scheduler
                            the state of the checkpoint with the options of the configuration
    _init_training_state, _run_epoch
                            current save_every etc. instead of the checkpoint's; restores the loss since the last
                            line of metrics and the detector of bad steps
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from krill import atomic
from krill.config.schema import TrainConfig, WSDSchedulerConfig
from krill.config.size_rule import round_to_digits
from krill.optim.build import build_optimizer
from krill.optim.groups import get_lr_multiple
from krill.optim.schedules import Restart, build_scheduler, set_learning_rates, stable_phase
from krill.optim.skip_mask import supports_found_inf, wrap_step_skip
from krill.runs.json_lines import read_validations
from krill.tokenizer.artifact import TokenizerFolder
from krill.training import ranks
from krill.training.batches import RowDataset
from krill.training.callbacks.progress import is_logging_step
from krill.training.callbacks.signals import EvaluationInterrupted
from krill.training.callbacks.skip_report import SkipReport
from krill.training.callbacks.skip_step import BadStepDetector, suggest_divergence_remedy
from krill.training.checkpoint.async_save import AsyncCheckpointSaver, copy_to_host
from krill.training.checkpoint.branch import SaveAtStep
from krill.training.checkpoint.commit import staged_checkpoint_on_all_ranks
from krill.training.compute.compilation import compile_blocks, compile_callable, explain_compile_errors
from krill.training.compute.ddp import configure_ddp
from krill.training.compute.device import resolve_shard_size
from krill.training.compute.fsdp import configure_fsdp, shard_in_fp32
from krill.training.compute.head_loss import Loss
from krill.training.metrics.evaluate import ValidationTotals, evaluate_batches, merge_validation_totals
from krill.training.metrics.optimizer_stats import OptimizerStats
from krill.training.metrics.throughput import ThroughputMeter

PENDING_FILE = "pending_loss.json"
"""File in a checkpoint: the loss of each rank, summed since the last line of metrics for the mean in the next line,
and whether the validation of the step is pending."""
SKIP_STEP_FILE = "guard.pt"
"""File in a checkpoint: the state of BadStepDetector."""


@dataclass(frozen=True)
class ValidationSet:
    """The validation rows and the size of their text."""

    dataset: RowDataset
    load_batches: Callable[[], Any]
    """Returns the batches of this rank; every rank has the same number."""
    text_bytes: dict[str, int]
    """UTF-8 bytes of the validation text of each source."""
    is_sample: bool
    """Whether these are not all rows of the split: then the metrics have the number of their tokens."""
    eos_id: int


class KrillTrainer(Trainer):
    """transformers.Trainer on a token store."""

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        train_loader: Callable[[Callable[[], int]], DataLoader[Any]],
        validation_set: ValidationSet | None,
        throughput: ThroughputMeter,
        loss: Loss,
        is_compiled: bool,
        tokenizer: TokenizerFolder,
        restart: Restart | None,
        epochs_at: Callable[[int], float],
        skip_report: SkipReport,
        callbacks: list[Any],
    ):
        """Builds the trainer; nothing runs yet.

        `train_loader`: called with a function that returns the current step; returns the batches from that step on.
        `epochs_at`: returns the epochs after a step.
        """
        self.config, self.train_loader, self.validation_set = config, train_loader, validation_set
        self.throughput, self.loss, self.skip_report = throughput, loss, skip_report
        self.tokenizer, self.restart, self.epochs_at = tokenizer, restart, epochs_at
        self.is_compiled, self.compiled_model = is_compiled, None
        self.optimizer: Any
        self.lr_scheduler: Any
        self.control: Any
        self.staging_folder: Path | None = None
        self.is_validation_pending = False
        self.evaluate_tasks: Callable[[], None] = lambda: None
        """Evaluates on tasks if that is due at the current step."""
        self.save_hooks: list[Callable[[int], None]] = []
        """Called in this order with the step of each checkpoint that is complete."""
        self.async_saver = AsyncCheckpointSaver(self.run_save_hooks)
        self.optimizer_stats: OptimizerStats | None = None
        scheduler, steps = config.scheduler, arguments.max_steps
        self.last_stable_step = (
            stable_phase(scheduler, steps, restart)[1] if isinstance(scheduler, WSDSchedulerConfig) else None
        )
        super().__init__(
            model=model,
            args=arguments,
            eval_dataset=validation_set and validation_set.dataset,
            callbacks=[*callbacks, SaveAtStep(self.last_stable_step), self.async_saver],
        )
        self.bad_step_detector = BadStepDetector(config.skip_step, self.args.device)
        if is_compiled and self.is_fsdp_enabled:
            compile_blocks(model)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        configure_ddp(self)
        configure_fsdp(self, resolve_shard_size(self.config))

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.train_loader(lambda: self.state.global_step)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            shard_in_fp32(self)
            self.optimizer = build_optimizer(self.model, self.config.optimizer)
            if not supports_found_inf(self.optimizer):
                wrap_step_skip(lambda: bool(self.bad_step_detector.is_bad), self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = build_scheduler(
                self.config.scheduler, optimizer or self.optimizer, num_training_steps, self.restart
            )
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # Only this pass is compiled: names in checkpoints stay plain, validation and generation run eagerly.
        if self.is_compiled and not self.is_fsdp_enabled:
            if self.compiled_model is None:  # bool() of it would ask for the length of the model
                self.compiled_model = compile_callable(model)
            model = self.compiled_model
        with self.loss.training_context():
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        # The model divides by the tokens of all ranks, and the gradients of the ranks are averaged.
        return loss if kwargs.get("num_items_in_batch") is None else loss * ranks.get_world_size()

    def get_batch_samples(self, batches_left: Any, count: int, device: torch.device) -> Any:
        started_at = time.perf_counter()
        batches, items = super().get_batch_samples(batches_left, count, torch.device("cpu"))
        waited = time.perf_counter() - started_at
        if items is not None:  # Trainer's own sum over ranks waits for the device
            items = ranks.all_reduce_sum(items.double()).float()
        tokens = sum(int(batch["input_ids"].ne(self.tokenizer.pad_id).sum()) for batch in batches)
        self.throughput.add_batch(self.state.global_step, tokens, waited)
        self.loss_before_step = self._tr_loss.clone()
        return batches, self._prepare_input(items)

    def _prepare_input(self, data: Any) -> Any:
        # Trainer's copy is blocking: it waits for all work queued on the device.
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with explain_compile_errors(self.is_compiled):
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.bad_step_detector.add_loss(loss)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if is_logging_step(self.state.global_step + 1, self.state):
            self.optimizer_stats = OptimizerStats(optimizer)
        norm = super()._clip_grad_norm(model)
        is_bad = self.bad_step_detector.check_step(norm)
        if supports_found_inf(optimizer):
            optimizer.found_inf = is_bad
        self._tr_loss.copy_(torch.where(is_bad > 0, self.loss_before_step, self._tr_loss))
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        bad_steps, steps = (
            self.bad_step_detector.read_bad_steps(self.state.global_step) if "loss" in logs else ([], 0)
        )
        if bad_steps:
            good = steps - len(bad_steps)
            logs |= {"loss": logs["loss"] * steps / good if good else math.nan, "skipped": len(bad_steps)}
        if "learning_rate" in logs:  # of group 0
            multiple = get_lr_multiple(self.config.optimizer, self.optimizer.param_groups[0].get("name", ""))
            logs["learning_rate"] = round_to_digits(logs["learning_rate"] / multiple, 12)
        if "loss" in logs:
            logs |= self.throughput.collect_metrics(self.state.global_step, self.state.max_steps)
        if self.optimizer_stats and "loss" in logs:
            logs |= self.optimizer_stats.collect_metrics()
            self.optimizer_stats = None
        self._set_epoch()
        super().log(logs, start_time)
        if ranks.is_rank0():
            self.skip_report.report(bad_steps)
        self.bad_step_detector.raise_if_diverged(bad_steps, suggest_divergence_remedy(self.config.lr))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Returns validation loss (nats per token) and bits per byte over all validation rows.

        A signal interrupts it: then a checkpoint is saved, and the resumed run validates first.
        """
        if self.validation_set is None:
            return {}
        self.is_validation_pending = False
        batches = self._iterate_validation_batches()
        try:
            with self.throughput.pause():
                totals = evaluate_batches(
                    self.model,
                    batches,
                    self.validation_set.eos_id,
                    self.loss,
                    len(self.validation_set.text_bytes),
                )
        except EvaluationInterrupted:
            self.is_validation_pending = self.control.should_save = self.control.should_training_stop = True
            return {}
        metrics = _compute_evaluation_metrics(totals, self.validation_set.text_bytes)
        if self.validation_set.is_sample:
            metrics["eval_tokens"] = sum(total.tokens for total in totals)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        step, state = self.state.global_step, self.state
        is_validation_due = step % state.eval_steps == 0 or step == state.max_steps
        metrics = super()._evaluate(*args, **kwargs) if is_validation_due else {}
        self.evaluate_tasks()
        self.control.should_evaluate = False
        return metrics

    def _iterate_validation_batches(self) -> Iterator[dict[str, Any]]:
        """Yields the batches of this rank on its device, and reports each one to the callbacks."""
        assert self.validation_set is not None
        for batch in self.validation_set.load_batches():
            yield self._prepare_inputs(batch)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns 0: Trainer's count omits attention and head, and walks the model at every micro step."""
        return 0

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        groups, peaks = self.optimizer.param_groups, self.lr_scheduler.base_lrs
        options = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        # The checkpoint restores the options it was saved with: learning rates, decay, momentum.
        for group, configured in zip(self.optimizer.param_groups, options, strict=True):
            group.update(configured)
        self.lr_scheduler.base_lrs = peaks
        set_learning_rates(self.lr_scheduler, self.optimizer)

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        position: tuple[int, int] = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)  # replaces those of the checkpoint
        return position

    def _run_epoch(self, *, resume_from_checkpoint: str | None, **kwargs: Any) -> None:
        if self.control.should_training_stop:  # early stopping ended it before
            return
        if resume_from_checkpoint:
            state = torch.load(Path(resume_from_checkpoint) / SKIP_STEP_FILE, "cpu", weights_only=True)
            self.bad_step_detector.load_state_dict(state)
            pending = json.loads((Path(resume_from_checkpoint) / PENDING_FILE).read_text(encoding="utf-8"))
            sums = pending["sums"]
            is_same_world_size = len(sums) == ranks.get_world_size()
            self._tr_loss += sums[ranks.get_rank()] if is_same_world_size else sum(sums) / len(sums)
            self._globalstep_last_logged = pending["since"]
            if pending["validation"] and not self.already_validated():
                self.evaluate()
            self.evaluate_tasks()
            if self.control.should_training_stop:  # interrupted again, or early stopping
                return
        if ranks.is_rank0():
            self.skip_report.truncate(self._globalstep_last_logged)
        super()._run_epoch(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self.async_saver.finalize()

    def already_validated(self) -> bool:
        """Returns whether metrics.jsonl has the validation of this step, also if a killed process wrote it."""
        lines = ranks.on_rank0(lambda: read_validations(Path(self.args.output_dir).parent))
        return any(line["step"] == self.state.global_step for line in lines)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging_folder or self.args.output_dir)

    def _set_epoch(self) -> None:
        """Replaces Trainer's epoch, which counts the batches of this process: other ones after a resume."""
        self.state.epoch = self.epochs_at(self.state.global_step)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._set_epoch()
        pending = {
            "sums": ranks.all_gather_object(float(self._tr_loss)),
            "since": self._globalstep_last_logged,
            "validation": self.is_validation_pending,
        }
        self.async_saver.finalize()
        step, in_background = self.state.global_step, self.config.save_in_background
        on_commit = partial(self.async_saver.start, step) if in_background else None
        with staged_checkpoint_on_all_ranks(Path(self.args.output_dir), on_commit) as self.staging_folder:
            super()._save_checkpoint(model, trial)
            if ranks.is_rank0():
                checkpoint = self.staging_folder / f"checkpoint-{step}"
                atomic.write_json(checkpoint / PENDING_FILE, pending)
                torch.save(self.bad_step_detector.state_dict(), checkpoint / SKIP_STEP_FILE)
                self.tokenizer.copy_to(checkpoint, self.config.model.max_position_embeddings)
        self.staging_folder = None
        if not in_background:
            self.run_save_hooks(step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.config.save_in_background and self.args.should_save:
            weights = copy_to_host(self.model.state_dict())
            self.async_saver.add_write(super()._save, output_dir, weights)
        else:
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.config.save_in_background and self.args.should_save:
            folder = Path(output_dir)
            folder.mkdir(exist_ok=True)
            state = copy_to_host(self.optimizer.state_dict())
            self.async_saver.add_write(torch.save, state, folder / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def run_save_hooks(self, step: int) -> None:
        """Calls the save hooks for the complete checkpoint of `step`."""
        for hook in self.save_hooks:
            hook(step)


def _compute_evaluation_metrics(
    totals: list[ValidationTotals], text_bytes: dict[str, int]
) -> dict[str, float]:
    """Returns the metrics of a validation; with several sources also those of each, by name."""
    overall = merge_validation_totals(totals)
    metrics = {
        "eval_loss": overall.loss(),
        "eval_bits_per_byte": overall.bits_per_byte(sum(text_bytes.values())),
    }
    for total, (source, size) in zip(totals, text_bytes.items(), strict=True):
        if total.tokens < overall.tokens and total.tokens and size:
            metrics[f"eval_loss/{source}"] = total.loss()
            metrics[f"eval_bits_per_byte/{source}"] = total.bits_per_byte(size)
    return metrics
