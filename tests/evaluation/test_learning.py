"""Longer training scores better, and the statistics say so; in full: benchmarks/evaluation_learning.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import make_small_model
from stores import make_tokenizer

from krill.data.encoding import Encoder
from krill.evaluation.bundled import build_pair_task
from krill.evaluation.choices import encode_task, score_task
from krill.evaluation.statistics import compare_accuracies
from krill.evaluation.task import Task
from krill.evaluation.token_scorer import TokenScorer

STEPS, SHORT_STEPS, ROWS = 60, 5, 16


def split_task(name: str, phenomena: set[str]) -> tuple[Task, list[str]]:
    """Returns every third item of some phenomena, and the right sentences of the others, to train on."""
    task = build_pair_task(name)
    items = [item for item in task.items if item.phenomenon in phenomena]
    tested = Task(name, task.language, task.description, tuple(items[::3]))
    seen = {choice for item in tested.items for choice in item.choices}
    sentences = [item.choices[item.answer] for index, item in enumerate(items) if index % 3]
    return tested, [sentence for sentence in sentences if sentence not in seen]


def train(model: Any, rows: Sequence[Sequence[int]], steps: int, pad_id: int) -> None:
    random, optimizer = np.random.default_rng(0), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = [rows[index] for index in random.integers(len(rows), size=ROWS)]
        ids = torch.full((ROWS, max(map(len, batch))), pad_id)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        model(input_ids=ids, labels=torch.where(ids == pad_id, -100, ids)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("name", "phenomena"),
    [
        ("english_pairs", {"article_a_an", "governed_preposition", "determiner_noun"}),
        ("korean_pairs", {"subject_particle", "object_particle", "topic_particle"}),
    ],
)
def test_longer_training_is_significantly_better(name: str, phenomena: set[str], tmp_path: Path) -> None:
    task, sentences = split_task(name, phenomena)
    tokenizer = make_tokenizer(tmp_path / "tokenizer", texts=sentences, vocab_size=600)
    encoder = Encoder(tokenizer)
    rows = [encoder.encode([sentence]).tokens.tolist() for sentence in sentences]
    correct = []
    for steps in (SHORT_STEPS, STEPS):
        model = make_small_model(tokenizer, initializer_range=0.05)
        train(model, rows, steps, tokenizer.pad_id)
        scorer = TokenScorer(model, tokenizer.vocab_size)
        correct.append(score_task(scorer, encode_task(task, encoder, 64)).correct)
    shorter, longer = correct
    assert longer.mean() > shorter.mean()
    assert compare_accuracies(shorter, longer) < 1e-3
