"""What a run amounts to before it begins: batch, steps, device, and the lines that say so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from krill.config.schema import Batch, TrainConfig
from krill.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """How rows are spread over steps, forward passes and ranks."""

    micro_batch_size: int
    accumulation: int
    ranks: int = 1

    @property
    def rows_per_step(self) -> int:
        return self.micro_batch_size * self.accumulation * self.ranks


def shape(batch: Batch, sequence_len: int, ranks: int = 1) -> Shape:
    """Rows per forward pass and passes per step; from batch.tokens when that is set.

    Raises UsageError when batch.tokens is no whole number of rows for every rank.
    """
    if batch.tokens is None:
        return Shape(batch.micro_batch_size, batch.gradient_accumulation_steps or 1, ranks)
    unit = sequence_len * ranks
    rows, rest = divmod(batch.tokens, unit)
    if rest or not rows:
        nearest = sorted({max(1, rows) * unit, (rows + 1) * unit})
        raise UsageError(
            f"batch.tokens={batch.tokens} is no multiple of sequence_len × processes = {unit}; "
            + " or ".join(f"write batch.tokens={value}" for value in nearest)
        )
    micro = max(size for size in range(1, min(rows, batch.micro_batch_size) + 1) if rows % size == 0)
    return Shape(micro, rows // micro, ranks)


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    steps: int
    last: int | None
    """Rows in all, when epochs says so; the last step is then filled up with empty rows."""


def length(config: TrainConfig, rows: int, rows_per_step: int) -> Length:
    """Steps of the run over `rows` training rows."""
    if config.steps is not None:
        return Length(config.steps, None)
    assert config.epochs is not None
    last = max(1, round(config.epochs * rows))
    return Length(math.ceil(last / rows_per_step), last)


def device_name(asked: str) -> str:
    """cuda or cpu. UsageError when CUDA is asked for and not there."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device=cuda: no usable CUDA device on this machine; write device=auto or device=cpu"
        )
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def precision(asked: str, device: str) -> str:
    """bf16 or fp32, for hardware.precision on `device`."""
    import torch

    if asked == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return asked


def plan(config: TrainConfig, root: Path) -> list[str]:
    """What `krill-train` would do, a line each; nothing is written (dry_run=true)."""
    from krill.data.obtain import store_folder, tokenizer_folder
    from krill.data.store import Store
    from krill.models.build import count_parameters
    from krill.sources.registry import check
    from krill.training.launcher import check_launcher

    check(config.data)
    check_launcher()
    tokenizer = tokenizer_folder(config, root)
    store = store_folder(config, root)
    batch = shape(config.batch, config.sequence_len)
    tokens_per_step = batch.rows_per_step * config.sequence_len
    vocab_size = _vocab_size(config, tokenizer)
    parameters = count_parameters(config.model, vocab_size)
    lines = [
        f"name        {config.name}",
        f"model       {config.model.name}: {parameters:,} parameters, vocabulary {vocab_size}",
        f"tokenizer   {'reuse' if tokenizer.is_dir() else 'train'} {tokenizer}",
        f"tokens      {'reuse' if store.is_dir() else 'prepare'} {store}",
        f"batch       {batch.rows_per_step} rows of {config.sequence_len} = {tokens_per_step:,} tokens a step",
        f"device      {device_name(config.device)}",
        f"optimizer   {config.optimizer.name}, lr {config.lr:g}, {config.scheduler.name}",
    ]
    if config.steps is not None:
        lines.append(f"steps       {config.steps:,}: {config.steps * tokens_per_step:,} tokens")
    elif store.is_dir():
        rows = math.ceil(Store.open(store).split("train").tokens / config.sequence_len)
        steps = length(config, rows, batch.rows_per_step).steps
        lines.append(f"steps       about {steps:,} for {config.epochs:g} epochs")
    else:
        lines.append(f"steps       what {config.epochs:g} epochs are, known when the tokens are prepared")
    if config.branch is not None:
        from krill.training.branch import branch_of
        from krill.training.branch import check as check_branch

        branch = branch_of(config.branch)
        check_branch(branch, config)
        lines.append(f"branch      goes on from step {branch.step} of {branch.run}")
    place = Path(config.output) if config.output else root / "runs" / config.name
    lines.append(f"folder      {place}")
    return lines


def _vocab_size(config: TrainConfig, folder: Path) -> int:
    from krill.tokenizer.folder import load_tokenizer
    from krill.tokenizer.recipe import size_of

    return load_tokenizer(folder).vocab_size if folder.is_dir() else size_of(config.tokenizer)
