"""The plan of one run: everything that its configuration says about what it will need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from krill.config.schema import MuonConfig, PlanOptionsConfig, TrainConfig, WSDSchedulerConfig
from krill.config.signature import compute_signature
from krill.device_table import Device
from krill.evaluation.cost import TextSize
from krill.plan.architecture import FP32_BYTES, Architecture
from krill.plan.calibration import Utilization, estimate_utilization
from krill.plan.describe import describe_architecture
from krill.plan.evaluation import estimate_evaluation_seconds
from krill.plan.flops import TokenFlops, compute_token_flops, compute_update_flops
from krill.plan.machine import Machine
from krill.plan.memory import MemoryPlan, compute_checkpoint_bytes, plan_memory
from krill.plan.setting import ComputeSetting, build_compute_setting
from krill.plan.step_time import (
    PRICES,
    STEP_MOMENTS,
    UPDATE_SPEED_SHARE,
    StepEstimate,
    StepSeconds,
    StepWork,
    estimate_step,
)
from krill.plan.text import TrainingText
from krill.training.batch_shape import compute_training_length

MAX_USEFUL_EPOCHS = 4
"""Epochs up to which repeated tokens are worth about as much as new ones (Muennighoff et al. 2023)."""

REPEAT_HALF_LIFE = 15.4
"""R*_D of Muennighoff et al. 2023: the repetitions after which a repeated token is worth 1/e of a new one."""

WRITE_BYTES_PER_SECOND = 1.0e9
"""The speed at which checkpoints are written, hashed and synced (assumed; benchmarks/results/saving.json)."""

STARTUP_SECONDS = {"cpu": 10.0, "cuda": 20.0}
"""Imports, reading the tokens and building the model (assumed)."""

COMPILE_SECONDS = 90.0
"""The first step of a compiled run (assumed; one to two minutes)."""

TOKENIZER_BYTES_PER_ENTRY = 60
"""Bytes of a tokenizer's files for each entry of its vocabulary."""


@dataclass(frozen=True)
class TimePlan:
    """Seconds by part: steps, optimizer, validation, evaluation, saving, startup."""

    parts: dict[str, float]
    utilization: Utilization

    @property
    def total(self) -> float:
        """The expected time."""
        return sum(self.parts.values())

    @property
    def shortest(self) -> float:
        """The shortest time that is expected."""
        return self.total * self.utilization.fastest

    @property
    def longest(self) -> float:
        """The longest time that is expected."""
        return self.total * self.utilization.slowest


@dataclass(frozen=True)
class RunPlan:
    """The plan of `config` on `setting.device`."""

    config: TrainConfig
    vocab_size: int
    architecture: Architecture
    setting: ComputeSetting
    text: TrainingText | None
    options: PlanOptionsConfig
    first_step: int = 0
    """The step after which the run starts, for a branch."""
    machine: Machine | None = None
    """The machine whose measurements count; None: the device is not that of this machine."""

    @cached_property
    def steps(self) -> int | None:
        """The optimizer steps; None: known once the tokens are prepared."""
        if self.config.steps is None and self.text is None:
            return None
        rows = 0
        if self.text is not None:
            rows = math.ceil(self.text.tokens / self.config.sequence_len / (1 - self.padding))
        steps = compute_training_length(self.config, rows, self.setting.batch.rows_per_step).steps
        return max(0, steps - self.first_step)

    @property
    def padding(self) -> float:
        """The share of the positions of all rows that are padding; 0 where it is not known."""
        if self.text is None or self.config.packing != "best_fit":
            return 0.0
        return self.text.best_fit_padding or 0.0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step over all ranks, padding included."""
        return self.setting.batch.rows_per_step * self.config.sequence_len

    @property
    def tokens(self) -> int | None:
        """Tokens that the run trains on."""
        return None if self.steps is None else self.steps * self.tokens_per_step

    @property
    def epochs(self) -> float | None:
        """Passes over the training tokens."""
        if self.config.epochs is not None:
            return self.config.epochs
        return self.tokens / self.text.tokens if self.tokens is not None and self.text else None

    @property
    def tokens_per_parameter(self) -> float | None:
        """Tokens trained on for each parameter."""
        return None if self.tokens is None else self.tokens / self.architecture.parameters

    @property
    def useful_tokens(self) -> float | None:
        """New tokens that would be worth as much as the repeated ones (Muennighoff et al. 2023, equation 5)."""
        if self.epochs is None or self.text is None or self.tokens is None or self.epochs <= 1:
            return self.tokens
        repetitions = self.epochs - 1
        worth = REPEAT_HALF_LIFE * (1 - math.exp(-repetitions / REPEAT_HALF_LIFE))
        return self.text.tokens * (1 + worth)

    @cached_property
    def token_flops(self) -> TokenFlops:
        """FLOPs of one token."""
        attended = self.text.attended if self.text else None
        return compute_token_flops(self.architecture, self.config.sequence_len, attended)

    @property
    def flops(self) -> float | None:
        """FLOPs of the model over the whole run."""
        return None if self.tokens is None else self.tokens * self.token_flops.total

    @cached_property
    def memory(self) -> MemoryPlan:
        """Bytes on one rank, corrected by what was measured for this configuration."""
        return _correct_memory(self.computed_memory, self._find_memory_difference())

    @cached_property
    def computed_memory(self) -> MemoryPlan:
        """Bytes on one rank by the formulas alone."""
        return plan_memory(self.config, self.architecture, self.setting, tokens=self.tokens)

    def _find_memory_difference(self) -> int:
        """Returns the bytes by which measured peaks exceed the computed ones; those of other sizes only add some."""
        batch = self.setting.batch
        peaks = [
            peak
            for one in (self.machine.measurements if self.machine else ())
            if one.configuration == self.configuration
            for peak in one.peaks
        ]
        size = (batch.micro_batch_size, batch.accumulation_steps > 1)
        same = [peak for peak in peaks if (peak.rows, peak.is_accumulating) == size]
        differences = [peak.measured - peak.planned for peak in same or peaks]
        return max(differences if same else [0, *differences])

    @property
    def fits(self) -> bool:
        """Whether a rank has the memory."""
        return self.memory.total <= self.setting.memory_per_rank

    @cached_property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint, over all ranks."""
        return sum(compute_checkpoint_bytes(self.config.optimizer, self.architecture))

    @property
    def checkpoints(self) -> int:
        """The most checkpoints that exist at once: those kept, and the one that is being written."""
        config = self.config
        is_wsd = isinstance(config.scheduler, WSDSchedulerConfig)  # it keeps the end of its stable phase
        count = config.keep_checkpoints + config.keep_best + is_wsd + 1
        return count if self.steps is None else min(count, -(-self.steps // config.save_every))

    @cached_property
    def disk(self) -> dict[str, int]:
        """Bytes on disk at most: checkpoints, the model, its tokenizer, and the tokens if they are known."""
        size = 2 if self.config.export_dtype == "bf16" else FP32_BYTES
        parts = {
            "checkpoints": self.checkpoints * self.checkpoint_bytes,
            "model": size * self.architecture.parameters,
            "tokenizer": TOKENIZER_BYTES_PER_ENTRY * self.vocab_size,
        }
        if self.text is not None:
            parts["tokens"] = self.text.tokens * (2 if self.vocab_size <= 2**16 else 4)
        return parts

    @cached_property
    def recomputation(self) -> float:
        """The passes through the layers, in units of one forward and backward pass."""
        return 4 / 3 if self.setting.gradient_checkpointing else 1.0

    @cached_property
    def work(self) -> StepWork:
        """What a rank computes in a step."""
        attention, activations, logits = PRICES[self.setting.device.kind]
        each, again, batch = self.token_flops, self.recomputation, self.setting.batch
        tokens = batch.micro_batch_size * self.config.sequence_len
        saved = self.architecture.compute_saved_bytes(
            batch.micro_batch_size,
            self.config.sequence_len,
            self.setting.activation_precision,
            self.setting.device.kind,
        )
        moved = (self.architecture.layers * saved.layer + saved.outside) / tokens
        layers = each.dense + attention * each.attention + activations * moved
        ranks = self.setting.world_size if isinstance(self.config.optimizer, MuonConfig) else 1
        return StepWork(
            parameters=self.architecture.parameters,
            layers=self.architecture.layers,
            tokens=max(1, tokens // self.setting.context_parallel),
            passes=batch.accumulation_steps,
            per_token=again * layers + each.head + logits * FP32_BYTES * self.architecture.vocab_size,
            update_flops=compute_update_flops(self.config.optimizer, self.architecture) / ranks,
            update_bytes=self._count_update_bytes(),
        )

    def _count_update_bytes(self) -> int:
        """Returns the bytes that a rank's optimizer step moves."""
        state = compute_checkpoint_bytes(self.config.optimizer, self.architecture)[1]
        moved = 3 * FP32_BYTES * self.architecture.parameters + 2 * state
        sharers = 1 if self.setting.device.kind == "cuda" else self.setting.ranks_per_node
        return round(moved * sharers / self.setting.shard_size)

    @cached_property
    def configuration(self) -> str:
        """Identity of what determines the time of a step, without the batch."""
        numbers = {
            "lr", "lr_embeddings", "lr_head", "lr_vectors", "weight_decay", "weight_decay_embeddings", "betas", "eps",
            "max_grad_norm", "z_loss", "muon_lr", "muon_weight_decay", "momentum",
        }  # fmt: skip
        return compute_signature(
            self.group, self.config.model, self.vocab_size, self.config.sequence_len, self.config.packing,
            self.config.optimizer.model_dump(mode="json", exclude=numbers), self.setting.loss,
            self.setting.gradient_checkpointing,
        )  # fmt: skip

    @cached_property
    def group(self) -> str:
        """Within what measurements of several sizes are interpolated: device, precision, compilation, ranks."""
        setting = self.setting
        compiled = "compiled" if setting.is_compiled(self.steps) else "eager"
        threads = f"{setting.threads} threads, " if setting.device.kind == "cpu" else ""
        return (
            f"{setting.device.kind}, {threads}{setting.precision}, {compiled}, {setting.attention}, "
            f"{setting.world_size} ranks, {self.config.hardware.sharding}, {setting.context_parallel} parts"
        )

    @cached_property
    def estimate(self) -> StepEstimate | None:
        """The time of a step by measurements on this machine; None: there are none, or plan.mfu is given."""
        if self.machine is None or self.options.mfu is not None:
            return None
        calibration = self.machine.get_calibration(
            self.group, self.setting.device.kind, self.setting.device.bandwidth
        )
        return estimate_step(self.work, self.configuration, calibration) if calibration else None

    @cached_property
    def step_seconds(self) -> StepSeconds:
        """The time of a step, measured or by the MFU."""
        if self.estimate is not None:
            return self.estimate.seconds
        each, speed = self.token_flops, self._assumed.mfu * self.setting.peak_flops
        flops = self.recomputation * (each.dense + each.attention) + each.head
        update = self.work.update_bytes / self.setting.device.bandwidth
        update += self.work.update_flops / (UPDATE_SPEED_SHARE[self.setting.device.kind] * speed)
        return StepSeconds(per_token=flops / speed, per_pass=0.0, per_step=0.0, optimizer=update)

    @cached_property
    def _assumed(self) -> Utilization:
        """The MFU that is committed, or given."""
        kind, is_compiled = self.setting.device.kind, self.setting.is_compiled(self.steps)
        return estimate_utilization(kind, is_compiled, self.architecture.parameters, self.options.mfu)

    @cached_property
    def utilization(self) -> Utilization:
        """The MFU of the passes: measured on this machine, or assumed."""
        if self.estimate is None:
            return self._assumed
        passes = self.work.tokens * self.step_seconds.per_token + self.step_seconds.per_pass
        mfu = self.work.tokens * self.token_flops.total / passes / self.setting.peak_flops
        one = self.estimate
        source = f"from {one.runs} {'run' if one.runs == 1 else 'runs'} on this machine"
        return Utilization(mfu, one.fastest, one.slowest, one.status, source, is_local=True)

    @cached_property
    def time(self) -> TimePlan | None:
        """Seconds of the run; None: the number of steps is not known."""
        if self.steps is None:
            return None
        config, setting, each, work = self.config, self.setting, self.step_seconds, self.work
        is_compiled = setting.is_compiled(self.steps)
        passes = work.passes * (each.per_pass + work.tokens * each.per_token)
        parts = {"steps": self.steps * (passes + each.per_step), "optimizer": self.steps * each.optimizer}
        parts["validation"] = self._estimate_validation_seconds()
        parts["evaluation"] = estimate_evaluation_seconds(
            config, self.steps, self.steps * self.tokens_per_step, parts["steps"], self._forward_seconds,
            self._text_size,
        )  # fmt: skip
        saves = -(-self.steps // config.save_every)
        written = self.checkpoint_bytes / WRITE_BYTES_PER_SECOND
        parts["saving"] = (0 if config.save_in_background else saves) * written
        startup = self.estimate.startup if self.estimate else None
        if startup is None:
            startup = STARTUP_SECONDS[setting.device.kind] + (COMPILE_SECONDS if is_compiled else 0.0)
        parts["startup"] = startup
        return TimePlan(parts, self.utilization)

    def _estimate_validation_seconds(self) -> float:
        """Returns the seconds of all validations: forward passes, a third of both passes; 0: size unknown."""
        assert self.steps is not None
        if self.text is None:
            return 0.0
        assert self._text_size is not None
        held_out = self._text_size.validation
        if self.config.eval_tokens is not None:
            held_out = min(held_out, self.config.eval_tokens)
        validations = -(-self.steps // self.config.eval_every)
        return validations * held_out * self._forward_seconds / self.setting.batch.world_size

    @property
    def _forward_seconds(self) -> float:
        """Seconds of a token in a forward pass alone."""
        each = self.step_seconds
        return (each.per_token + each.per_pass / self.work.tokens) / (3 * self.recomputation)

    @property
    def _text_size(self) -> TextSize | None:
        """The tokens of both splits; None: not known."""
        if self.text is None:
            return None
        fraction = self.config.data.validation_fraction
        return TextSize(self.text.tokens, round(self.text.tokens * fraction / max(1e-9, 1 - fraction)))

    @property
    def price(self) -> float | None:
        """What all devices cost for the expected time."""
        if self.options.price_per_hour is None or self.time is None:
            return None
        return self.time.total / 3600 * self.num_devices * self.options.price_per_hour

    @property
    def energy(self) -> float | None:
        """Kilowatt-hours of all devices at the limit of their boards."""
        if self.setting.device.power is None or self.time is None:
            return None
        return self.time.total / 3600 * self.num_devices * self.setting.device.power / 1000

    @property
    def num_devices(self) -> int:
        """The devices of the run: one per rank, or the machines of a run on CPUs."""
        is_cpu = self.setting.device.kind == "cpu"
        return self.setting.world_size // (self.setting.ranks_per_node if is_cpu else 1)

    def to_json(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        time = self.time
        return {
            "name": self.config.name,
            "model": self.config.model.name,
            "device": self.setting.device.name,
            "devices": self.num_devices,
            "ranks": self.setting.world_size,
            "precision": self.setting.precision,
            "loss": self.setting.loss,
            "compiled": self.setting.is_compiled(self.steps),
            "vocabulary": self.vocab_size,
            "parameters": self.architecture.count_parameters(),
            "steps": self.steps,
            "lr": self.config.lr,
            "tokens_per_step": self.tokens_per_step,
            "tokens": self.tokens,
            "epochs": self.epochs,
            "padding": self.padding,
            "tokens_per_parameter": self.tokens_per_parameter,
            "flops": self.flops,
            "flops_per_token": {
                "dense": self.token_flops.dense,
                "attention": self.token_flops.attention,
                "head": self.token_flops.head,
            },
            "memory": {
                "total": self.memory.total,
                "available": self.setting.memory_per_rank,
                "fits": self.fits,
                "peak": self.memory.peak_moment,
                "moments": self.memory.moments,
            },
            "disk": self.disk | {"total": sum(self.disk.values())},
            "seconds": time
            and {
                **time.parts,
                "total": time.total,
                "shortest": time.shortest,
                "longest": time.longest,
                "mfu": time.utilization.mfu,
                "status": time.utilization.status,
                "source": time.utilization.source,
            },
            "price": self.price,
            "kilowatt_hours": self.energy,
        }


def _correct_memory(memory: MemoryPlan, difference: int) -> MemoryPlan:
    """Returns `memory` with `difference` in its context; moments that were not measured do not get less."""
    if not difference:
        return memory
    moments = {
        name: parts
        | {"context": max(0, parts["context"] + (difference if name in STEP_MOMENTS else max(0, difference)))}
        for name, parts in memory.moments.items()
    }
    return MemoryPlan(moments)


NO_OPTIONS = PlanOptionsConfig(
    device=None, count=None, devices=None, price_per_hour=None, mfu=None, measure=False
)
"""The options of the plan that krill-train makes of itself."""


def build_run_plan(
    config: TrainConfig,
    vocab_size: int,
    device: Device,
    text: TrainingText | None = None,
    options: PlanOptionsConfig = NO_OPTIONS,
    first_step: int = 0,
    machine: Machine | None = None,
) -> RunPlan:
    """Returns the plan of `config`; figures are computed when they are read.

    Args:
        config: The run; hardware.processes is a number.
        vocab_size: Entries of the tokenizer.
        device: What each rank computes on.
        text: The training tokens, if they are known.
        options: Section plan of krill-plan.
        first_step: The step at which a branch starts.
        machine: This machine, if `device` is its own.

    Raises:
        UsageError: the device lacks the precision, the batch does not divide, or the model cannot be described.
    """
    setting = build_compute_setting(config, device)
    architecture = describe_architecture(config.model, vocab_size)
    return RunPlan(config, architecture.vocab_size, architecture, setting, text, options, first_step, machine)
