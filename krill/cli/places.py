"""Where a command puts its result: folders are named by the signature of what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from krill.config import own_code
from krill.config.schema import Pretrained, Section, TrainConfig
from krill.config.signature import signature
from krill.errors import UsageError
from krill.training.plan import shape_of


def identity(command: str, config: Section) -> str:
    """Signature of what `command` makes of `config`; text counts by its content, wherever it lies."""
    if not isinstance(config, TrainConfig):
        return signature(command, 1, config)
    from krill.data.obtain import tokenizer_signature, tokens_signature
    from krill.sources.registry import check

    if command == "train" and config.data.shard is not None:
        raise UsageError(
            "data.shard= is one of the jobs of krill-preprocess; training reads all: leave it out"
        )
    check(config.data)
    if command == "tokenizer":
        return tokenizer_signature(config)
    tokens = tokens_signature(config)
    if command == "train":
        judged = [config.eval_every] if config.stop.target_loss or config.stop.patience else []
        rows = shape_of(config).rows_per_step
        return signature(command, 2, config, rows, tokens, _own_code(config), *_branch(config), *judged)
    shard = config.data.shard
    return tokens if shard is None else signature(command, 1, tokens, config.data.shards, shard)


def _own_code(config: TrainConfig) -> list[str]:
    """What the person's own model and optimizer are, where they are their own; the weights of model.from."""
    sections = (config.model, config.optimizer)
    code = [own_code.digest(section.build) for section in sections if hasattr(section, "build")]
    if not isinstance(config.model, Pretrained):
        return code
    from krill.models.pretrained import digest

    return [*code, *digest(config.model.from_)]


def _branch(config: TrainConfig) -> list[Any]:
    """What a run that branches off another goes on from."""
    if config.branch is None:
        return []
    from krill.training.branch import branch_of

    return branch_of(config.branch).identity


def point(command: str, sweep: Path, config: Section) -> Path:
    """The folder of a sweep's point; the same point of a wider grid has the same folder."""
    return sweep / identity(command, config)[:8]
