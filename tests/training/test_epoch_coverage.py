"""Tests that an epoch serves every token of the store once, for any number of tasks, ranks and workers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from stores import make_tokenizer

from krill.config.paths import CONF_DIR
from krill.config.schema import FilesDataConfig
from krill.data.packing import pack
from krill.data.prepare import prepare_store, prepare_task_parts
from krill.data.store import Store
from krill.sources import files
from krill.training.batch_shape import BatchShape
from krill.training.batches import RowBatchSampler, RowCollator, build_dataloader


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store from five parts by three tasks, in many shards; documents have a few to hundreds of tokens."""
    folder = tmp_path_factory.mktemp("epoch")
    tokenizer = make_tokenizer(folder / "tokenizer")
    lines = (
        json.dumps({"text": f"document {number} " + "text of words. " * (number * 7 % 41)})
        for number in range(300)
    )
    (folder / "a.jsonl").write_text("\n".join(lines))
    rules = yaml.safe_load((CONF_DIR / "data/_rules.yaml").read_text(encoding="utf-8"))
    section = {
        "name": "x",
        "source": "files",
        "paths": [str(folder / "a.jsonl")],
        "text_column": "text",
        "min_chars": 0,
    }
    data = FilesDataConfig(**{**rules, **section, "num_tasks": 3, "workers": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "compute_part_bytes", lambda total: total // 5)
        for shard in range(3):
            prepare_task_parts(data.model_copy(update={"task": shard}), tokenizer, folder / "store")
        prepare_store(data, tokenizer, folder / "store", shard_tokens=3000)
    return Store.open(folder / "store")


@pytest.mark.parametrize("packing", ["wrapped", "best_fit"])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (3, 0), (1, 2)])
def test_every_token_is_served_once(store: Store, packing: str, ranks: int, workers: int) -> None:
    rows = pack(store.train, 64, packing)
    assert len(store.train.shards) > 5
    shape = BatchShape(2, 1, world_size=ranks)
    steps = -(-len(rows) // shape.rows_per_step)
    collator = RowCollator("sdpa", torch.device("cpu"))
    served = np.zeros(store.vocab_size, np.int64)
    padding = 0
    for rank in range(ranks):
        positions = RowBatchSampler(len(rows), 0, steps, shape, len(rows), lambda: 0, rank)
        for batch in build_dataloader(rows, positions, collator, workers):
            served += np.bincount(batch["input_ids"].flatten().numpy(), minlength=store.vocab_size)
            padding += batch["input_ids"].numel()
    served[store.pad_id] -= padding - store.train.tokens
    stored = np.bincount(store.train.read(0, store.train.tokens), minlength=store.vocab_size)
    np.testing.assert_array_equal(served, stored)
