"""Sections `optimizer` and `scheduler`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from krill.config.schema.base import Fraction, PositiveShare, Rate, RateOrZero, Section, Share


class _BaseOptimizerConfig(Section):
    lr: Rate
    """Learning rate on the AdamW scale; follows the top-level lr."""
    weight_decay: RateOrZero
    """Decoupled weight decay of matrices, on the AdamW scale."""
    betas: tuple[Fraction, Fraction]
    """AdamW's decay rates of the first and second moment."""
    eps: Rate
    """AdamW's epsilon."""
    max_grad_norm: RateOrZero
    """Global norm that gradients are clipped to; 0: no clipping."""
    z_loss: RateOrZero
    """Weight of the z-loss, the square of log Σ exp logits of each token, which keeps logits from drifting; in the
    gradient, not in the loss that is shown."""


class _GroupRates(Section):
    lr_embeddings: Rate
    """Learning rate of the embeddings, and of a head tied to them, as a multiple of lr."""
    lr_head: Rate
    """Learning rate of an output head that is not tied to the embeddings, as a multiple of lr."""
    lr_vectors: Rate
    """Learning rate of the vectors (norms and biases), as a multiple of lr."""
    weight_decay_embeddings: RateOrZero
    """Weight decay of the embeddings and the output head, as a multiple of weight_decay."""


class AdamWConfig(_BaseOptimizerConfig, _GroupRates):
    """AdamW on every parameter."""

    name: Literal["adamw"]
    """Name of the optimizer."""


class MuonConfig(_BaseOptimizerConfig, _GroupRates):
    """Muon on the hidden matrices, AdamW on embeddings, output head and vectors."""

    name: Literal["muon_moonlight", "muon_keller", "muon_pto", "muon_krill"]
    """Name of the optimizer: one implementation, four conventions."""
    eps_before_correction: bool
    """Add AdamW's eps before the bias correction of the second moment, as Moonlight's script does, not
    after."""
    scale: Literal["rms", "spectral"]
    """Factor of the orthogonal update of an r × c matrix: rms 0.2·√max(r, c), spectral √max(1, r/c)."""
    muon_lr: Rate
    """Learning rate of the matrices; derived from lr so that updates are equally large at both scales."""
    muon_weight_decay: RateOrZero
    """Decoupled weight decay of the matrices; derived so that muon_lr × muon_weight_decay = lr ×
    weight_decay."""
    momentum: Fraction
    """Decay rate of the momentum."""
    nesterov: bool
    """Use Nesterov momentum."""
    cautious: bool
    """Apply weight decay only where update and weight have the same sign (Chen et al. 2025)."""
    normuon: bool
    """Normalize the update of each neuron by a second moment per row, NorMuon (Li et al. 2025)."""
    ns_steps: Annotated[int, Field(ge=1, le=20)]
    """Number of Newton–Schulz iterations."""
    ns_coefficients: Literal["keller", "polar_express"]
    """Coefficients of the Newton–Schulz iteration."""
    ns_dtype: Literal["auto", "bf16", "fp32"]
    """Data type of the Newton–Schulz iteration. auto: bf16 on CUDA devices, otherwise fp32."""
    adamw_modules: list[str]
    """Modules whose matrices AdamW trains instead, by last part or pattern of their names: router,
    *.mlp.*."""

    @model_validator(mode="after")
    def _check_ns_steps(self) -> MuonConfig:
        if self.ns_coefficients == "polar_express" and self.ns_steps < 5:
            raise ValueError(
                "optimizer.ns_coefficients=polar_express needs at least 5 steps to bring singular values near 1; "
                f"set optimizer.ns_steps=5 (it is {self.ns_steps}) or optimizer.ns_coefficients=keller"
            )
        return self


class CustomOptimizerConfig(_BaseOptimizerConfig):
    """A custom optimizer: a function that builds a torch.optim.Optimizer."""

    name: Literal["custom"]
    """Name of the optimizer."""
    build: str
    """file.py:function or package.module:function; it is called with the model and the keys of this section
    and returns a torch.optim.Optimizer."""
    options: dict[str, Any]
    """Additional keyword arguments of the function."""


OptimizerConfig = Annotated[AdamWConfig | MuonConfig | CustomOptimizerConfig, Field(discriminator="name")]


class _BaseSchedulerConfig(Section):
    warmup: Fraction
    """Fraction of the steps in which the learning rate rises linearly from zero."""


class ConstantSchedulerConfig(_BaseSchedulerConfig):
    """Warm-up, then constant."""

    name: Literal["constant"]
    """Name of the schedule."""


class CosineSchedulerConfig(_BaseSchedulerConfig):
    """Warm-up, then cosine decay to min_ratio."""

    name: Literal["cosine"]
    """Name of the schedule."""
    min_ratio: Share
    """Final learning rate as a fraction of its peak."""


class WSDSchedulerConfig(_BaseSchedulerConfig):
    """Warm-up, stable phase, decay (WSD)."""

    name: Literal["wsd"]
    """Name of the schedule."""
    decay: PositiveShare
    """Fraction of the steps, at the end, in which the learning rate decays."""
    decay_shape: Literal["linear", "sqrt"]
    """Shape of the decay: linear, or 1 − √progress (sqrt)."""
    min_ratio: Share
    """Final learning rate as a fraction of its peak."""

    @model_validator(mode="after")
    def _check_phases(self) -> WSDSchedulerConfig:
        if self.warmup + self.decay > 1 + 1e-9:
            raise ValueError(
                f"scheduler.warmup={self.warmup:g} and scheduler.decay={self.decay:g} are fractions of the run and "
                f"together more than 1; use scheduler.decay={max(0.0, 1 - self.warmup):g} or less"
            )
        return self


SchedulerConfig = Annotated[
    ConstantSchedulerConfig | CosineSchedulerConfig | WSDSchedulerConfig, Field(discriminator="name")
]
