"""The minimal pairs are the same ones in every version of krill, so that scores can be compared."""

from __future__ import annotations

import pytest

from krill.evaluation.bundled import PAIR_TASKS, build_pair_task
from krill.evaluation.minimal_pairs.phenomenon import PAIRS

HASHES = {
    ("korean_pairs", 1): "dd660c24cd56abbb05d210ffe9dcf799a3d4b6382a11f1fdbe6dbf6730e689ab",
    ("english_pairs", 1): "1068ef814f6af3b6616ff2bcd94ac9be9a235f27e2a02214b72e59da3eea5644",
}
"""Task and its version → the hash of its items. Other items need another version (`krill.evaluation.task.Task`)."""


@pytest.mark.parametrize("name", PAIR_TASKS)
def test_the_items_of_a_version_do_not_change(name: str) -> None:
    task = build_pair_task(name)
    assert task.item_hash == HASHES[name, task.version]
    assert len(task.items) == PAIRS * len(PAIR_TASKS[name])
    assert sum(item.answer for item in task.items) == len(task.items) / 2


@pytest.mark.parametrize("name", PAIR_TASKS)
def test_a_limit_takes_the_first_items_of_each_phenomenon(name: str) -> None:
    assert build_pair_task(name, 3).items == build_pair_task(name).select(3).items
