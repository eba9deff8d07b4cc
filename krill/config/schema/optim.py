"""Sections `optimizer` and `scheduler`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from krill.config.schema.base import Fraction, Section


class _BaseOptimizerConfig(Section):
    lr: PositiveFloat
    """Learning rate on the AdamW scale; follows the top-level lr."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay of matrices, on the AdamW scale."""
    betas: tuple[Fraction, Fraction]
    """AdamW's decay rates of the first and second moment."""
    eps: PositiveFloat
    """AdamW's epsilon."""
    max_grad_norm: NonNegativeFloat
    """Gradients are clipped to this global norm; 0: not clipped."""


class AdamWConfig(_BaseOptimizerConfig):
    """AdamW on every parameter."""

    name: Literal["adamw"]
    """The optimizer."""


class MuonConfig(_BaseOptimizerConfig):
    """Muon on the hidden matrices, AdamW on embeddings, head and vectors."""

    name: Literal["muon_moonlight", "muon_keller", "muon_pto"]
    """The optimizer: one core, three conventions."""
    eps_before_correction: bool
    """AdamW adds eps before the bias correction of the second moment, as Moonlight's script does, not after."""
    scale: Literal["rms", "spectral"]
    """Size of the orthogonal update of an r × c matrix: rms 0.2·√max(r, c), spectral √max(1, r/c)."""
    muon_lr: PositiveFloat
    """Learning rate of the matrices; derived from lr so that both scales move them alike."""
    muon_weight_decay: NonNegativeFloat
    """Decoupled weight decay of the matrices; derived so that muon_lr × it equals lr × weight_decay."""
    momentum: Fraction
    """Decay rate of the momentum."""
    nesterov: bool
    """Look ahead along the momentum."""
    cautious: bool
    """Decay a weight of a matrix only where its update has the same sign (Chen et al. 2025)."""
    normuon: bool
    """Move all neurons of a matrix about equally far, by a second moment for each row (Li et al. 2025)."""
    ns_steps: Annotated[int, Field(ge=1, le=20)]
    """Newton–Schulz iterations."""
    ns_coefficients: Literal["keller", "polar_express"]
    """Coefficients of the Newton–Schulz iteration."""
    ns_dtype: Literal["auto", "bf16", "fp32"]
    """Arithmetic of the Newton–Schulz iteration. auto: bf16 on CUDA devices, else fp32."""
    adamw_modules: list[str]
    """Modules whose matrices AdamW trains all the same: last words or patterns of their names, router, *.mlp.*."""

    @model_validator(mode="after")
    def _check_ns_steps(self) -> MuonConfig:
        if self.ns_coefficients == "polar_express" and self.ns_steps < 5:
            raise ValueError(
                f"optimizer.ns_coefficients=polar_express takes at least 5 steps, before which singular values "
                f"are not near 1; write optimizer.ns_steps=5 (it is {self.ns_steps}), or "
                f"optimizer.ns_coefficients=keller"
            )
        return self


class CustomOptimizerConfig(_BaseOptimizerConfig):
    """A person's own optimizer."""

    name: Literal["custom"]
    """The optimizer."""
    build: str
    """file.py:function or package.module:function; called with the model and the keys of this section,
    returns a torch.optim.Optimizer."""
    options: dict[str, Any]
    """Further keyword arguments of the function."""


OptimizerConfig = Annotated[AdamWConfig | MuonConfig | CustomOptimizerConfig, Field(discriminator="name")]


class _BaseSchedulerConfig(Section):
    warmup: Fraction
    """Share of the steps in which the rate rises linearly from zero."""


class ConstantSchedulerConfig(_BaseSchedulerConfig):
    """Warm-up, then constant."""

    name: Literal["constant"]
    """The schedule."""


class CosineSchedulerConfig(_BaseSchedulerConfig):
    """Warm-up, then half a cosine down to min_ratio."""

    name: Literal["cosine"]
    """The schedule."""
    min_ratio: Annotated[float, Field(ge=0.0, le=1.0)]
    """Where the rate ends, as a share of its peak."""


class WSDSchedulerConfig(_BaseSchedulerConfig):
    """Warm-up, stable, decay."""

    name: Literal["wsd"]
    """The schedule."""
    decay: Annotated[float, Field(gt=0.0, le=1.0)]
    """Share of the steps in which the rate falls, at the end."""
    decay_shape: Literal["linear", "sqrt"]
    """linear, or 1 − √progress."""
    min_ratio: Annotated[float, Field(ge=0.0, le=1.0)]
    """Where the rate ends, as a share of its peak."""


SchedulerConfig = Annotated[
    ConstantSchedulerConfig | CosineSchedulerConfig | WSDSchedulerConfig, Field(discriminator="name")
]
