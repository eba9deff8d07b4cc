"""Keys of the evaluation are part of the identity of a run that ends by a score, and of no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from compositions import load_config

from krill.launch.identity import compute_identity

FOLLOWED = ("evaluation.every=5", "best_metric=text/bits_per_byte")
CHANGES = [
    "evaluation.every=7", "evaluation.limit=3", "evaluation.tasks=text", "best_metric=english_pairs/accuracy",
]  # fmt: skip


def compute(*overrides: str) -> str:
    inputs: Any = SimpleNamespace(store_signature="store", tokenizer_settings={})
    return compute_identity("train", load_config("hardware.processes=1", *overrides), inputs)


@pytest.mark.parametrize("change", CHANGES)
def test_an_evaluation_counts_where_a_score_ends_the_run(change: str) -> None:
    assert compute(*FOLLOWED, change) == compute(*FOLLOWED) == compute()
    assert compute(*FOLLOWED, "stop.patience=2", change) != compute(*FOLLOWED, "stop.patience=2")


def test_what_does_not_change_a_score_does_not_count() -> None:
    stopping = (*FOLLOWED, "stop.target=1")
    assert compute(*stopping) != compute(*FOLLOWED, "stop.target=2")
    for change in ("evaluation.at_end=false", "evaluation.max_batch_tokens=99"):
        assert compute(*stopping, change) == compute(*stopping)
