"""The Trainer of krill: transformers' loop, with krill's data order, optimizer, validation and checkpoints.

Each method that is overridden is one seam:
    create_accelerator_and_postprocess
                            FSDP2 on the CPU as well
    get_train_dataloader    rows by (seed, epoch, position); resume is the step number
    create_optimizer, create_scheduler
    compute_loss            without full logits; the compiled model, where asked for
    get_batch_samples       how long the loop waited for rows, and how many tokens they hold
    _prepare_input          to the device, and no wait until that is done
    training_step           its loss, for the guard
    _clip_grad_norm, log    what the optimizer does to each group, and the pace, in the steps that are logged; bad
                            steps are masked out, and told of in the line behind them
    evaluate                per token over all validation rows, bits per byte
    _save_checkpoint        written aside, hashed, then renamed; a validation that a signal cut is owed
    _save, _save_optimizer_and_scheduler
                            by a thread, where asked for
    _load_optimizer_and_scheduler
                            the state of a checkpoint under the options of the configuration
    _init_training_state, _run_epoch
                            save_every and the like as they are now; the loss since the last line of metrics, and
                            what the guard knows
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from krill import atomic
from krill.config.schema import WSD, TrainConfig
from krill.optim.build import build_optimizer
from krill.optim.masking import masks, skip_when
from krill.optim.schedules import build_scheduler, plateau, set_rates
from krill.runs.record import read_validations
from krill.training import ranks
from krill.training.background import Background, in_host_memory
from krill.training.batches import RowDataset
from krill.training.branch import SaveAt
from krill.training.dynamics import Dynamics
from krill.training.guard import StepGuard, advice
from krill.training.loss import Loss
from krill.training.metrics import Validation, together, validate
from krill.training.pace import Pace
from krill.training.progress import is_logged
from krill.training.saving import aside
from krill.training.sharding import shard_on_cpu
from krill.training.signals import Cut
from krill.training.skipped import Skipped

PENDING = "pending_loss.json"
"""In a checkpoint: each rank's losses since the last line of metrics, so that the next line is their mean too, and
whether the validation of its step is still to be done."""
GUARD = "guard.pt"
"""In a checkpoint: what the guard knows of the steps before."""


@dataclass(frozen=True)
class Held:
    """The validation rows, and the bytes of the text in them."""

    dataset: RowDataset
    batches: Callable[[], Any]
    """Those of this rank; each has as many batches."""
    text_bytes: dict[str, int]
    """Of each source."""
    eos_id: int


class KrillTrainer(Trainer):
    """transformers.Trainer on a token store."""

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        train_loader: Callable[[Callable[[], int]], DataLoader[Any]],
        held: Held | None,
        pace: Pace,
        loss: Loss,
        pad_id: int,
        skipped: Skipped,
        callbacks: list[Any],
    ):
        """Make it; nothing runs yet.

        `train_loader`: given a function that tells the current step, the batches from there to the end.
        """
        self.config, self.train_loader, self.held = config, train_loader, held
        self.pace, self.loss, self.pad_id, self.skipped = pace, loss, pad_id, skipped
        self.compiled: Any = None
        self.optimizer: Any
        self.lr_scheduler: Any
        self.control: Any
        self.aside: Path | None = None
        self.owed = False
        self.after_save: list[Callable[[int], None]] = []
        """Called in their order with the step of a checkpoint that is in its place."""
        self.background = Background(self.saved)
        self.dynamics: Dynamics | None = None
        scheduler, steps = config.scheduler, arguments.max_steps
        self.stable = plateau(scheduler, steps)[1] if isinstance(scheduler, WSD) else None
        super().__init__(
            model=model,
            args=arguments,
            eval_dataset=held and held.dataset,
            callbacks=[*callbacks, SaveAt(self.stable), self.background],
        )
        self.guard = StepGuard(config.guard, self.args.device)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self)

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.train_loader(lambda: self.state.global_step)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model, self.config.optimizer)
            if not masks(self.optimizer):
                skip_when(lambda: bool(self.guard.is_bad), self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = build_scheduler(
                self.config.scheduler, optimizer or self.optimizer, num_training_steps
            )
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        # Compiled is this pass only, so that names in checkpoints stay plain, and validation and generation eager.
        if self.config.hardware.compile:
            model = self.compiled = self.compiled or torch.compile(model)
        with self.loss.training():
            return super().compute_loss(model, inputs, *rest, **named)

    def get_batch_samples(self, batches_left: Any, count: int, device: torch.device) -> Any:
        began = time.perf_counter()
        alone = self.args.world_size == 1  # else the count is gathered, which is done on the device
        batches, items = super().get_batch_samples(
            batches_left, count, torch.device("cpu") if alone else device
        )
        waited = time.perf_counter() - began
        tokens = sum(int(batch["input_ids"].ne(self.pad_id).sum()) for batch in batches)
        self.pace.served(self.state.global_step, tokens, waited)
        self.loss_before = self._tr_loss.clone()
        return batches, self._prepare_input(items)

    def _prepare_input(self, data: Any) -> Any:
        # Trainer's own copy waits until the device has done all that it still had to do.
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **named)
        self.guard.add(loss)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if is_logged(self.state.global_step + 1, self.state):
            self.dynamics = Dynamics(optimizer)
        norm = super()._clip_grad_norm(model)
        is_bad = self.guard.judge(norm)
        if masks(optimizer):
            optimizer.found_inf = is_bad
        self._tr_loss.copy_(torch.where(is_bad > 0, self.loss_before, self._tr_loss))
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        bad, steps = self.guard.read(self.state.global_step) if "loss" in logs else ([], 0)
        if bad:
            good = steps - len(bad)
            logs |= {"loss": logs["loss"] * steps / good if good else math.nan, "skipped": len(bad)}
        if "loss" in logs:
            logs |= self.pace.figures(self.state.global_step, self.state.max_steps)
        if self.dynamics and "loss" in logs:
            logs |= self.dynamics.figures()
            self.dynamics = None
        super().log(logs, start_time)
        if ranks.is_first():
            self.skipped.tell(bad)
        self.guard.demand_health(bad, advice(self.config.lr))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation loss (nats per token) and bits per byte over all validation rows.

        A signal cuts it: then the state is saved without, and the run that goes on begins with it.
        """
        if self.held is None:
            return {}
        self.owed = False
        batches = (self._prepare_inputs(batch) for batch in self.held.batches())
        try:
            with self.pace.paused():
                found = validate(self.model, batches, self.held.eos_id, self.loss, len(self.held.text_bytes))
        except Cut:
            self.owed = self.control.should_save = self.control.should_training_stop = True
            return {}
        metrics = _evaluated(found, self.held.text_bytes)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's own count leaves out attention and head, and walks the model at every micro step."""
        return 0

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        groups, peaks = self.optimizer.param_groups, self.lr_scheduler.base_lrs
        options = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        # It brings what its own configuration had set: rates, decay, momentum.
        for group, asked in zip(self.optimizer.param_groups, options, strict=True):
            group.update(asked)
        self.lr_scheduler.base_lrs = peaks
        set_rates(self.lr_scheduler, self.optimizer)

    def _init_training_state(self, max_steps: int, *rest: Any) -> tuple[int, int]:
        place: tuple[int, int] = super()._init_training_state(max_steps, *rest)
        self.state.compute_steps(self.args, max_steps)  # else those of the checkpoint would stay
        return place

    def _run_epoch(self, *, resume_from_checkpoint: str | None, **rest: Any) -> None:
        if self.control.should_training_stop:  # it had ended by its validation loss
            return
        if resume_from_checkpoint:
            guard = torch.load(Path(resume_from_checkpoint) / GUARD, "cpu", weights_only=True)
            self.guard.load_state_dict(guard)  # to its own device
            pending = json.loads((Path(resume_from_checkpoint) / PENDING).read_text(encoding="utf-8"))
            sums = pending["sums"]
            same = len(sums) == ranks.count()
            self._tr_loss += sums[ranks.rank()] if same else sum(sums) / len(sums)
            self._globalstep_last_logged = pending["since"]
            if pending["validation"] and not self.is_judged():
                self.evaluate()
            if self.control.should_training_stop:  # cut again, as the checkpoint says already; or low enough
                return
        if ranks.is_first():
            self.skipped.cut(self._globalstep_last_logged)
        super()._run_epoch(resume_from_checkpoint=resume_from_checkpoint, **rest)
        self.background.settle()

    def is_judged(self) -> bool:
        """Whether the validation of this step is in the metrics, perhaps by a process that was killed since."""
        lines = ranks.from_first(lambda: read_validations(Path(self.args.output_dir).parent))
        return any(line["step"] == self.state.global_step for line in lines)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.aside or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        pending = {
            "sums": ranks.gathered(float(self._tr_loss)),
            "since": self._globalstep_last_logged,
            "validation": self.owed,
        }
        self.background.settle()
        step, in_background = self.state.global_step, self.config.save_in_background
        later = partial(self.background.start, step) if in_background else None
        with aside(Path(self.args.output_dir), later) as self.aside:
            super()._save_checkpoint(model, trial)
            if ranks.is_first():
                checkpoint = self.aside / f"checkpoint-{step}"
                atomic.write_json(checkpoint / PENDING, pending)
                torch.save(self.guard.state_dict(), checkpoint / GUARD)
        self.aside = None
        if not in_background:
            self.saved(step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.config.save_in_background and self.args.should_save:
            weights = in_host_memory(self.model.state_dict())
            self.background.add(super()._save, output_dir, weights)
        else:
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.config.save_in_background and self.args.should_save:
            folder = Path(output_dir)
            folder.mkdir(exist_ok=True)
            state = in_host_memory(self.optimizer.state_dict())
            self.background.add(torch.save, state, folder / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def saved(self, step: int) -> None:
        """Tell those who wait for it that the checkpoint of a step is in its place."""
        for tell in self.after_save:
            tell(step)


def _evaluated(found: list[Validation], text_bytes: dict[str, int]) -> dict[str, float]:
    """The figures of a validation; of several sources those of each as well, by its name."""
    whole = together(found)
    metrics = {
        "eval_loss": whole.loss(),
        "eval_bits_per_byte": whole.bits_per_byte(sum(text_bytes.values())),
    }
    for one, (source, size) in zip(found, text_bytes.items(), strict=True):
        if one.tokens < whole.tokens and one.tokens and size:
            metrics[f"eval_loss/{source}"] = one.loss()
            metrics[f"eval_bits_per_byte/{source}"] = one.bits_per_byte(size)
    return metrics
