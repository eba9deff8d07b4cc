"""What a run will cost, told before it begins: FLOPs, time, memory, disk (dry_run=true)."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import torch

from krill.config.schema import WSD, CustomModel, TrainConfig
from krill.models.build import skeleton
from krill.models.cost import training_flops
from krill.training import memory
from krill.training.memory import in_bytes, saved_bytes
from krill.training.peak import peak_flops
from krill.training.plan import device_name, precision, ranks_of, shape_of

SHARE = 0.4
"""Of the device's peak that a run is assumed to use: PaLM reports 0.46 (Chowdhery et al. 2022), the built-in run
reaches 0.4 to 0.6 on a CPU. Very small models on a GPU stay far below."""


def lines(config: TrainConfig, vocab_size: int, steps: int | None, attended: float | None) -> list[str]:
    """The costs for a person to read, a line each.

    Args:
        config: the run; the cost of a model of a person's own is not known.
        vocab_size: the tokenizer's.
        steps: optimizer steps; None: not known yet.
        attended: tokens that one attends to, as `attended_in` counts them; None: as if one document filled a row.
    """
    if isinstance(config.model, CustomModel):
        return ["cost        not known beforehand of a model of your own"]
    told = [*memory.lines(config, vocab_size), _disk(config, vocab_size, steps)]
    if steps is None:
        return told
    return [*_computation(config, vocab_size, steps, attended), *told]


def _computation(config: TrainConfig, vocab_size: int, steps: int, attended: float | None) -> list[str]:
    device = device_name(config.device)
    peak = peak_flops(
        device,
        precision(config.hardware.precision, device),
        config.hardware.threads or torch.get_num_threads(),
    )
    tokens = steps * shape_of(config).rows_per_step * config.sequence_len
    flops = training_flops(skeleton(config.model, vocab_size), config.sequence_len, attended)
    most = "" if attended is not None else ", at most: short documents take less"
    time = _duration(tokens * flops / (SHARE * peak * ranks_of(config)))
    return [
        f"cost        {tokens * flops:.3g} FLOP: {tokens:,} tokens of {flops:.3g}{most}",
        f"time        about {time} at {100 * SHARE:.0f} % of {peak / 1e12:.3g} TFLOP/s, validations not counted",
    ]


def _disk(config: TrainConfig, vocab_size: int, steps: int | None) -> str:
    """Checkpoints that are kept and one that is being saved, and the model."""
    weights, state = saved_bytes(config, vocab_size)
    one = weights + state
    count = config.keep_checkpoints + config.keep_best + isinstance(config.scheduler, WSD) + 1
    if steps is not None:
        count = min(count, -(-steps // config.save_every))
    size = in_bytes(count * one + weights)
    return f"disk        at most {size}: checkpoints {count} × {in_bytes(one)}, the model {in_bytes(weights)}"


def attended_in(ends: np.ndarray, sequence_len: int) -> float:
    """Tokens that one attends to on average, itself included, where documents that end at `ends` (uint64
    (documents,)) are cut into rows of `sequence_len`."""
    whole, rest = np.divmod(np.diff(ends.astype(np.float64), prepend=0.0), sequence_len)
    pairs = whole * (sequence_len * (sequence_len + 1) / 2) + rest * (rest + 1) / 2
    return float(pairs.sum() / ends[-1])


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
