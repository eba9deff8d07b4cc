"""Where a command puts its result: folders are named by the signature of what is in them."""

from __future__ import annotations

from typing import Any

from krill.config import custom_code
from krill.config.schema import PretrainedModelConfig, Section, TrainConfig
from krill.config.signature import compute_signature
from krill.errors import UsageError
from krill.training.batch_shape import resolve_batch_shape


def compute_identity(command: str, config: Section) -> str:
    """Signature of what `command` makes of `config`; text counts by its content, wherever it lies."""
    return IdentityCache(command)(config)


class IdentityCache:
    """`compute_identity` of many configurations: text that they share is looked at once."""

    def __init__(self, command: str):
        self.command = command
        self._text_signatures: dict[str, str] = {}

    def __call__(self, config: Section) -> str:
        if not isinstance(config, TrainConfig):
            return compute_signature(self.command, 1, config)
        if self.command == "train" and config.data.task is not None:
            raise UsageError(
                "data.task= is one of the jobs of krill-preprocess; training reads all: leave it out"
            )
        key = config.data.model_dump_json() + config.tokenizer.model_dump_json()
        if key not in self._text_signatures:
            self._text_signatures[key] = _compute_text_signature(self.command, config)
        return _combine_signatures(self.command, config, self._text_signatures[key])


def _compute_text_signature(command: str, config: TrainConfig) -> str:
    """The part of the identity that the text decides: signature of the tokens, or of the tokenizer."""
    from krill.data.cache import compute_tokenizer_signature, compute_tokens_signature
    from krill.sources.registry import check_source

    check_source(config.data)
    return compute_tokenizer_signature(config) if command == "tokenizer" else compute_tokens_signature(config)


def _combine_signatures(command: str, config: TrainConfig, tokens: str) -> str:
    if command == "tokenizer":
        return tokens
    if command == "train":
        judged = [config.eval_every] if config.stop.target_loss or config.stop.patience else []
        rows = resolve_batch_shape(config).rows_per_step
        return compute_signature(
            command,
            2,
            config,
            rows,
            tokens,
            _hash_custom_code(config),
            *_get_branch_identity(config),
            *judged,
        )
    shard = config.data.task
    return tokens if shard is None else compute_signature(command, 1, tokens, config.data.num_tasks, shard)


def _hash_custom_code(config: TrainConfig) -> list[str]:
    """What the person's own model and optimizer are, where they are their own; the weights of model.from."""
    sections = (config.model, config.optimizer)
    code = [
        custom_code.hash_custom_function(section.build) for section in sections if hasattr(section, "build")
    ]
    if not isinstance(config.model, PretrainedModelConfig):
        return code
    from krill.models.pretrained import hash_model

    return [*code, *hash_model(config.model.from_)]


def _get_branch_identity(config: TrainConfig) -> list[Any]:
    """What a run that branches off another goes on from."""
    if config.branch is None:
        return []
    from krill.training.checkpoint.branch import resolve_branch

    return resolve_branch(config.branch).signature_inputs
