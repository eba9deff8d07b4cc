"""Tests validation metrics against known answers: loss, bits per byte, baselines."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trainings import build_setup
from transformers import AutoModelForCausalLM

from krill.config.schema import TrainConfig
from krill.data.packing import IGNORE_INDEX, Rows, pack_windows
from krill.data.store import Store
from krill.models.build import build_model
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training.batches import RowCollator, build_dataloader
from krill.training.metrics.evaluate import (
    ValidationTotals,
    compute_baselines,
    compute_bits_per_byte,
    evaluate_batches,
    merge_validation_totals,
)
from krill.training.setup import RunSetup, compute_validation_baselines, count_text_bytes

COLLATOR = RowCollator("varlen", torch.device("cpu"))


def evaluate_rows(model: torch.nn.Module, rows: Rows, size: int, eos_id: int = 1) -> ValidationTotals:
    """Returns the totals of `rows` in batches of `size`."""
    batches = [list(range(first, min(first + size, len(rows)))) for first in range(0, len(rows), size)]
    return merge_validation_totals(
        evaluate_batches(model, build_dataloader(rows, batches, COLLATOR, 0), eos_id)
    )


@pytest.fixture
def model(make_config: Callable[..., TrainConfig]) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(make_config("model.initializer_range=0.5").model, 50, 0, 1, 2, "varlen")


class UniformModel(torch.nn.Module):
    """Returns equal logits for all tokens."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.full((*input_ids.shape, self.vocab_size), 3.5))


def test_totals_do_not_depend_on_the_batch_size(
    model: torch.nn.Module, make_rows: Callable[..., Rows]
) -> None:
    rows = make_rows([20, 9, 60, 64, 5, 40, 13, 4, 33], 64)
    one, two, all_at_once = (evaluate_rows(model, rows, size) for size in (1, 2, len(rows)))
    assert one.tokens == two.tokens == all_at_once.tokens == rows.targets
    for other in (two, all_at_once):
        assert other.nats == pytest.approx(one.nats, rel=1e-6)
        assert other.text_nats == pytest.approx(one.text_nats, rel=1e-6)


def test_the_loss_of_one_document_is_its_mean_cross_entropy(
    model: torch.nn.Module, make_rows: Callable[..., Rows]
) -> None:
    rows = make_rows([23], 64)
    ids = torch.from_numpy(rows.get_row(0).input_ids[:23])
    nats = F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
    totals = evaluate_rows(model, rows, 1)
    assert totals.tokens == 22
    assert totals.loss() == pytest.approx(nats.mean().item(), rel=1e-5)
    assert totals.text_nats == pytest.approx(nats[:-1].sum().item(), rel=1e-5)  # eos is not text


def test_equal_logits_have_a_loss_of_ln_v(make_rows: Callable[..., Rows]) -> None:
    rows = make_rows([23, 40, 10], 64)
    totals = evaluate_rows(UniformModel(50), rows, 2)
    assert totals.loss() == pytest.approx(math.log(50), rel=1e-6)
    text_tokens = rows.targets - 3  # one eos each
    assert totals.bits_per_byte(200) == pytest.approx(text_tokens * math.log2(50) / 200, rel=1e-6)


def test_one_bit_per_byte_is_ln_2_nats() -> None:
    assert compute_bits_per_byte(10 * math.log(2), 10) == pytest.approx(1.0)


def test_the_mode_of_the_model_is_restored(model: torch.nn.Module, make_rows: Callable[..., Rows]) -> None:
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    for training in (True, False):
        model.train(training)
        evaluate_rows(model, make_rows([20], 64), 1)
        assert model.training is training
    assert modes == [False, False]


def test_windows_count_each_token_of_a_long_document_once(
    model: torch.nn.Module, make_rows: Callable[..., Rows]
) -> None:
    stream = make_rows([150, 30], 64).stream
    assert evaluate_rows(model, pack_windows(stream, 64), 2).tokens == 149 + 29


def test_baselines_of_known_counts() -> None:
    baselines = compute_baselines(torch.tensor([7, 7, 3, 5]), vocab_size=8)
    assert baselines.uniform == pytest.approx(math.log(8))
    assert baselines.unigram == pytest.approx(1.5 * math.log(2))  # shares 1/2, 1/4, 1/4


def test_unigram_baseline_of_a_single_token_is_zero() -> None:
    assert compute_baselines(torch.tensor([4, 4, 4]), 8).unigram == 0.0


def test_baselines_are_computed_from_the_validation_targets(
    make_config: Callable[..., TrainConfig], prepared_data: Any, tmp_path: Any
) -> None:
    setup = build_setup(make_config(), tmp_path, prepared_data.store, prepared_data.tokenizer.folder)
    split = Store.open(prepared_data.store).validation
    ids = torch.from_numpy(split.read(0, split.tokens).astype("int64"))
    expected = compute_baselines(ids[ids != prepared_data.tokenizer.bos_id], 320)
    baselines = compute_validation_baselines(setup)
    assert baselines is not None
    assert baselines.unigram == pytest.approx(expected.unigram, rel=1e-12)
    assert baselines.uniform == pytest.approx(math.log(320))
    assert IGNORE_INDEX not in ids


def test_each_source_has_its_own_metrics(krill_train: Any, tmp_path: Path, texts: Path) -> None:
    """Compares the metrics of one of two files with the exported model's losses on its validation text."""
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(json.dumps({"text": f"0123456789 {n * 7919} 9876543210"}) + "\n" for n in range(60))
    )
    overrides = ["steps=2", f"data.paths=[{texts},{other}]", "sequence_len=32", "batch.micro_batch_size=3"]
    assert krill_train(*overrides) == 0
    (run,) = krill_train.runs()
    line = [line for line in read_metrics(run) if "eval_loss" in line][-1]
    assert line["eval_loss/texts.jsonl"] != pytest.approx(line["eval_loss/other.jsonl"], rel=1e-3)

    store = Store.open(Path((read_status(run) or {})["data"]["folder"]))
    windows = pack_windows(store.validation, 32)
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    nats, tokens, size = (
        0.0,
        0,
        store.manifest["splits"]["validation"]["by_source"]["other.jsonl"]["text_bytes"],
    )
    text_nats = 0.0
    for start, length in zip(windows.starts.tolist(), windows.lengths.tolist(), strict=True):
        document = int((store.validation.ends <= start).sum())
        if store.sources[store.validation.sources[document]] != "other.jsonl":
            continue
        ids = torch.from_numpy(store.validation.read(start, start + length).astype("int64"))
        with torch.no_grad():
            losses = F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
        nats += float(losses.sum())
        text_nats += float(losses[ids[1:] != store.eos_id].sum())
        tokens += length - 1
    assert tokens
    assert line["eval_loss/other.jsonl"] == pytest.approx(nats / tokens, rel=1e-5)
    assert line["eval_bits_per_byte/other.jsonl"] == pytest.approx(
        compute_bits_per_byte(text_nats, size), rel=1e-5
    )


def test_eval_tokens_limits_a_validation_to_the_same_documents(
    make_config: Callable[..., TrainConfig], train_in: Any, tmp_path: Path, prepared_data: Any, caplog: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def setup_with(*overrides: str) -> RunSetup:
        config = make_config("sequence_len=16", *overrides)
        return build_setup(config, tmp_path, prepared_data.store, prepared_data.tokenizer.folder)

    whole, half = setup_with(), setup_with("eval_tokens=150")
    split = half.store.validation
    assert whole.validation_documents is None is setup_with("eval_tokens=99999").validation_documents
    documents = half.validation_documents
    assert documents is not None
    assert half.validation_rows is not None
    lengths = np.diff(split.ends.astype(int), prepend=0)[documents]
    assert 150 <= half.validation_rows.targets == (lengths - 1).sum() < 150 + lengths.max()
    assert (setup_with("eval_tokens=150", "seed=7").validation_documents == documents).all()
    all_documents = replace(whole, validation_documents=np.arange(split.documents))
    assert count_text_bytes(all_documents) == count_text_bytes(whole)

    monkeypatch.setattr(logging.getLogger("krill"), "propagate", True)
    with caplog.at_level(logging.INFO, "krill"):
        run = train_in(make_config("sequence_len=16", "eval_tokens=150", "steps=2", "eval_every=1"))
    targets = half.validation_rows.targets
    assert f"{targets} predicted per validation (eval_tokens)" in caplog.text
    assert [line["eval_tokens"] for line in read_metrics(run) if "eval_loss" in line] == [targets] * 2
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    total = evaluate_rows(model, half.validation_rows, 2, half.tokenizer.eos_id)
    line = read_metrics(run)[-1]
    assert line["eval_loss"] == pytest.approx(total.loss(), rel=1e-5)
    size = sum(count_text_bytes(half).values())
    assert line["eval_bits_per_byte"] == pytest.approx(total.bits_per_byte(size), rel=1e-5)


def test_a_single_source_has_no_metrics_of_its_own(krill_train: Any) -> None:
    assert krill_train("steps=2") == 0
    assert not [
        key for line in read_metrics(krill_train.runs()[0]) for key in line if key.startswith("eval_loss/")
    ]
