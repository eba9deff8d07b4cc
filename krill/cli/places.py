"""Where a command puts its result: folders are named by the signature of what is in them."""

from __future__ import annotations

from typing import Any

from krill.config import own_code
from krill.config.schema import Pretrained, Section, TrainConfig
from krill.config.signature import signature
from krill.errors import UsageError
from krill.training.plan import shape_of


def identity(command: str, config: Section) -> str:
    """Signature of what `command` makes of `config`; text counts by its content, wherever it lies."""
    return Identities(command)(config)


class Identities:
    """`identity` of many configurations: text that they share is looked at once."""

    def __init__(self, command: str):
        self.command = command
        self._text: dict[str, str] = {}

    def __call__(self, config: Section) -> str:
        if not isinstance(config, TrainConfig):
            return signature(self.command, 1, config)
        if self.command == "train" and config.data.shard is not None:
            raise UsageError(
                "data.shard= is one of the jobs of krill-preprocess; training reads all: leave it out"
            )
        key = config.data.model_dump_json() + config.tokenizer.model_dump_json()
        if key not in self._text:
            self._text[key] = _of_text(self.command, config)
        return _identity(self.command, config, self._text[key])


def _of_text(command: str, config: TrainConfig) -> str:
    """The part of the identity that the text decides: signature of the tokens, or of the tokenizer."""
    from krill.data.obtain import tokenizer_signature, tokens_signature
    from krill.sources.registry import check

    check(config.data)
    return tokenizer_signature(config) if command == "tokenizer" else tokens_signature(config)


def _identity(command: str, config: TrainConfig, tokens: str) -> str:
    if command == "tokenizer":
        return tokens
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
