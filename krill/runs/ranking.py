"""Ranks results by validation loss, apart for each held-out set: losses of different texts are not comparable.

With several tokenizers, nats per token are not comparable either: a token of a larger vocabulary is more text. The
results of a text are then ranked by bits per byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar


class Result(Protocol):
    """The values of a run by which it is ranked; None: not known."""

    @property
    def loss(self) -> float | None: ...
    @property
    def eval_loss(self) -> float | None: ...
    @property
    def eval_bits_per_byte(self) -> float | None: ...
    @property
    def validation_set(self) -> str | None: ...
    @property
    def tokenizer(self) -> str | None: ...


ResultT = TypeVar("ResultT", bound=Result)


def rank_by_validation_set(results: Iterable[ResultT]) -> tuple[list[list[ResultT]], list[ResultT]]:
    """Returns the results of each held-out set, the best first, and those without a validation loss.

    The set with the most results comes first. Results without a validation loss are sorted by training loss.
    """
    groups: dict[str | None, list[ResultT]] = {}
    others = []
    for result in results:
        if result.eval_loss is None or math.isnan(result.eval_loss):
            others.append(result)
        else:
            groups.setdefault(result.validation_set, []).append(result)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0] or ""))
    ranked = [sorted(group, key=get_ranking_key(group)) for _, group in ordered]
    return ranked, sorted(others, key=lambda result: _sort_key(result.loss))


def get_ranking_key(results: Iterable[Result]) -> Any:
    """Returns the function that sorts results of one held-out set: by eval_loss, or by eval_bits_per_byte if they
    have several tokenizers; ties by training loss."""
    has_one_tokenizer = len({result.tokenizer for result in results}) == 1
    name = "eval_loss" if has_one_tokenizer else "eval_bits_per_byte"
    return lambda result: (_sort_key(getattr(result, name)), _sort_key(result.loss))


def get_validation_set(status: Mapping[str, Any]) -> str | None:
    """Returns the identity of a run's held-out set, for earlier versions that of its tokens; None: unknown."""
    data = status.get("data")
    data = data if isinstance(data, dict) else {}
    identity = data.get("validation_set") or data.get("signature")
    return identity if isinstance(identity, str) else None


def get_tokenizer_signature(status: Mapping[str, Any]) -> str | None:
    """Returns the signature of the tokenizer of a run; None if it is not known."""
    tokenizer = status.get("tokenizer")
    signature = tokenizer.get("signature") if isinstance(tokenizer, dict) else None
    return signature if isinstance(signature, str) else None


def _sort_key(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value
