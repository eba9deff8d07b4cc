"""Items that are in the training text are counted, wherever in a document they are, and scored apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import make_small_model
from stores import KOREAN, make_tokenizer, write_store

from krill.data.store import Store
from krill.evaluation import contaminated_items
from krill.evaluation.bundled import PAIR_TASKS, build_pair_task
from krill.evaluation.contaminated_items import find_contaminated_items
from krill.evaluation.evaluate import evaluate_task, find_evaluator
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.notes import format_notes
from krill.evaluation.subject import Subject
from krill.tokenizer.artifact import TokenizerFolder

LIMIT = 20
SETTINGS = EvaluationSettings(8, 10**6, 0.5, contamination=True)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """A tokenizer that joins a space with the word after it, and a line end with the punctuation before it."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "bpe")


def make_store(folder: Path, tokenizer: TokenizerFolder, task: str) -> tuple[Store, set[int]]:
    """A store with every 20th item of a task, alone or between other sentences; and the indices of the items."""
    items = build_pair_task(task, LIMIT).items
    chosen = range(7, len(items), 20)
    around = ("{}", "{} And more.", "Before. {}\nAfter.", "Before.\n\n{}\n\nAfter.", "One. {}")
    documents = [
        around[number % len(around)].format(items[index].choices[items[index].answer])
        for number, index in enumerate(chosen)
    ]
    # Beginnings, and sentences in which one word differs, are not the items.
    documents += [items[index].choices[1 - items[index].answer] for index in range(0, len(items), 20)]
    documents += [items[index].choices[items[index].answer][:-8] for index in range(3, len(items), 20)]
    text = [("books", document) for document in [*documents, KOREAN * 20]]
    return write_store(
        folder, tokenizer, text, [("books", KOREAN), ("books", "한 번도 나오지 않은 문장입니다. " * 9)]
    ), set(chosen)


@pytest.mark.parametrize("task", PAIR_TASKS)
def test_a_store_with_a_twentieth_of_the_items_is_reported_at_five_percent(
    task: str, tmp_path: Path, bpe: TokenizerFolder
) -> None:
    store, chosen = make_store(tmp_path / "store", bpe, task)
    subject = Subject("tiny", None, bpe, store)
    items = build_pair_task(task, LIMIT).items
    is_found = find_contaminated_items([item.choices[item.answer] for item in items], subject)
    assert set(is_found.nonzero()[0].tolist()) == chosen
    assert is_found.mean() == 0.05


def test_items_in_the_training_text_are_scored_apart(tmp_path: Path, bpe: TokenizerFolder) -> None:
    store, chosen = make_store(tmp_path / "store", bpe, "english_pairs")
    chosen = {index for index in chosen if index % LIMIT < 8}  # of each phenomenon, the first 8 are evaluated
    subject = Subject("tiny", make_small_model(bpe).eval(), bpe, store)
    result = evaluate_task(find_evaluator("english_pairs"), subject, SETTINGS)
    scores = result.get_outcomes("correct")
    assert result.notes["contaminated"] == len(chosen) == len(scores) / 8
    is_chosen = np.arange(len(scores)) % 8 == 7
    assert result.notes["score_on_contaminated"] == pytest.approx(scores[is_chosen].mean())
    assert result.notes["score_without_contaminated"] == pytest.approx(scores[~is_chosen].mean())
    assert format_notes([result])[-1].startswith(
        f"english_pairs: {len(chosen)} of {len(scores)} items (12.5 %) are in the training text; accuracy "
    )


def test_documents_of_the_held_out_text_are_looked_for(tmp_path: Path, bpe: TokenizerFolder) -> None:
    store, _ = make_store(tmp_path / "store", bpe, "english_pairs")
    subject = Subject("tiny", make_small_model(bpe).eval(), bpe, store)
    result = evaluate_task(find_evaluator("text"), subject, SETTINGS)
    assert (result.notes["contaminated"], result.notes["contaminated_share"]) == (1, 0.5)
    bytes_, nats = result.get_outcomes("bytes"), result.get_outcomes("nats")
    bits: Any = nats / bytes_ / 0.6931471805599453
    assert result.notes["score_on_contaminated"] == pytest.approx(bits[0])
    assert result.notes["score_without_contaminated"] == pytest.approx(bits[1])
    assert "documents (50.0 %) are in the training text; bits per byte" in format_notes([result])[-1]


def test_the_training_text_is_searched_once_for_all_evaluations_of_a_training(
    tmp_path: Path, bpe: TokenizerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = make_store(tmp_path / "store", bpe, "english_pairs")
    subject = Subject("tiny", make_small_model(bpe).eval(), bpe, store)
    evaluator = find_evaluator("text")
    notes = evaluate_task(evaluator, subject, SETTINGS).notes
    monkeypatch.setattr(contaminated_items, "find_contaminated_texts", None)
    assert evaluate_task(evaluator, subject, SETTINGS).notes == notes


def test_without_contamination_nothing_is_looked_for(tmp_path: Path, bpe: TokenizerFolder) -> None:
    store, _ = make_store(tmp_path / "store", bpe, "english_pairs")
    subject = Subject("tiny", make_small_model(bpe).eval(), bpe, store)
    evaluator = find_evaluator("english_pairs")
    result = evaluate_task(evaluator, subject, EvaluationSettings(1, 1, 0))
    assert "contaminated" not in result.notes
    assert evaluator.identify(EvaluationSettings(1, 1, 0)) != evaluator.identify(
        EvaluationSettings(1, 1, 0, contamination=True)
    )
