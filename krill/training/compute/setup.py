"""How a run is computed, resolved once per process: device, precision, ranks and attention backend."""

from __future__ import annotations

from dataclasses import dataclass

from krill.config.schema import TrainConfig
from krill.models.isolation import select_isolating_backend
from krill.training.compute.backends import select_attention_backend
from krill.training.compute.device import resolve_device, resolve_precision, resolve_world_size


@dataclass(frozen=True)
class ComputeSetup:
    """The compute settings that `device`, `hardware` and the environment resolve to in this process."""

    device: str
    """cuda or cpu."""
    precision: str
    """bf16, fp8, tf32 or fp32."""
    world_size: int
    """Ranks that train together: those that were started, else those that krill is to start."""
    attention_backend: str
    """The backend that computes the model with its documents isolated."""
    backend_reason: str | None
    """Why it is that backend, where hardware.attention left the choice open."""


def resolve_compute_setup(config: TrainConfig) -> ComputeSetup:
    """Returns how `config` is computed in this process.

    Raises UsageError for a device that is not available, or when no attention backend isolates the documents.
    """
    device = resolve_device(config.device)
    precision = resolve_precision(config.hardware.precision, device)
    requested = config.hardware.attention
    preferred, reason = select_attention_backend(requested, device, precision)
    backend, objection = select_isolating_backend(config.model, requested, preferred, device)
    return ComputeSetup(
        device=device,
        precision=precision,
        world_size=resolve_world_size(config),
        attention_backend=backend,
        backend_reason=f"{preferred} {objection}" if objection else reason,
    )
