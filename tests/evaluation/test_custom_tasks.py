"""Tasks of the user: a YAML with a JSONL file, or a Python function; one line for each mistake."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models import make_small_model

from krill.errors import UsageError
from krill.evaluation.custom_tasks import CustomTaskSource
from krill.evaluation.evaluate import evaluate_task, find_evaluator, find_evaluators
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.rank_share import RankShare
from krill.evaluation.subject import Subject
from krill.evaluation.task import Item, Task
from krill.tokenizer.artifact import TokenizerFolder

SETTINGS = EvaluationSettings(None, 1, 0)
HEADER = "name: capitals\nlanguage: en\nitems: items.jsonl\n"
ITEM = {"context": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}
WriteTask = Callable[..., str]


@pytest.fixture
def write_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteTask:
    """write_task([items or lines], header) writes capitals.yaml and items.jsonl; returns the name of the YAML."""
    monkeypatch.chdir(tmp_path)

    def write(records: list[Any], header: str = HEADER) -> str:
        lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
        Path("items.jsonl").write_bytes(b"\n".join(lines))
        Path("capitals.yaml").write_text(header, encoding="utf-8")
        return "capitals.yaml"

    return write


def read(name: str) -> Task:
    return CustomTaskSource(name)._task


def test_items_have_an_index_or_a_text_as_answer_and_any_keys(write_task: WriteTask) -> None:
    header = HEADER + "fields:\n  context: question\n  phenomenon: continent\n"
    task = read(
        write_task(
            [
                {
                    "question": "프랑스의 수도는",
                    "choices": [" 파리", " 로마"],
                    "answer": 1,
                    "continent": "유럽",
                },
                {
                    "question": "Peru:",
                    "choices": [" Lima", " Quito"],
                    "answer": " Lima",
                    "continent": "America",
                },
            ],
            header,
        )
    )
    assert task.items == (
        Item("프랑스의 수도는", (" 파리", " 로마"), 1, "유럽"),
        Item("Peru:", (" Lima", " Quito"), 0, "America"),
    )
    assert (task.name, task.language) == ("capitals", "en")


def test_what_occurs_twice_is_scored_once_and_counted(
    write_task: WriteTask, tokenizer: TokenizerFolder
) -> None:
    other = {"choices": ["It is so.", "It are so."], "answer": 0}
    name = write_task([b"\xef\xbb\xbf" + json.dumps(ITEM).encode(), other, b"", ITEM, ITEM])
    subject = Subject("tiny", make_small_model(tokenizer).eval(), tokenizer, None)
    result = evaluate_task(find_evaluator(name), subject, SETTINGS)
    assert (result.task, result.main_score.items, result.notes["duplicates"]) == ("capitals", 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": None}, "items.jsonl:2: 'choices' is not a list but null"),
        ({"choices": ["one"]}, "items.jsonl:2: 'choices' has 1 choices; write at least two"),
        ({"choices": ["a", "b", "a"]}, "'choices' has 'a' twice"),
        ({"choices": ["a", 2]}, "'choices' has a value of type int; a choice is text"),
        ({"choices": ["a", ""]}, "'choices' has an empty choice"),
        ({"answer": 2}, "items.jsonl:2: 'answer' is 2, but there are 2 choices; write 0 to 1"),
        ({"answer": -1}, "'answer' is -1"),
        ({"answer": True}, "'answer' is true or false; write the index"),
        ({"answer": "Paris"}, "'answer' is 'Paris', which is not one of the choices"),
        ({"context": 3}, "'context' is not text"),
        ({"context": "\ud800"}, "'context' has half of a surrogate pair"),
        ({"phenomenon": "a\nb"}, "'phenomenon' is 'a\\nb'; write a name for the table, on one line"),
    ],
)
def test_a_wrong_item_is_named_by_line_and_field(
    write_task: WriteTask, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        read(write_task([ITEM, ITEM | change]))
    assert message in str(error.value)


def test_files_that_cannot_be_read(write_task: WriteTask) -> None:
    without = {key: value for key, value in ITEM.items() if key != "answer"}
    for records, message in (
        ([ITEM, without], "items.jsonl:2: no 'answer' (it has context, choices); add it"),
        ([b'{"context":'], "items.jsonl:1: is not JSON"),
        ([[1, 2]], "items.jsonl:1: is not an object but a list"),
        ([ITEM, "옛".encode("cp949")], "items.jsonl:2: is not UTF-8; convert it"),
        ([], "items.jsonl: has no items"),
        ([b"{"] * 9, "items.jsonl: 4 more errors"),
        ([b'{"answer": 0, "answer": 1}'], "items.jsonl:1: has 'answer' twice; write each key once"),
    ):
        with pytest.raises(UsageError) as error:
            read(write_task(records))
        assert message in str(error.value)
    with pytest.raises(UsageError, match=r"items\.jsonl:1: no 'question'"):
        read(write_task([ITEM], HEADER + "fields: {context: question}\n"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("name: a\nlanguage: en\n", "capitals.yaml: items is not set; add the line items: …"),
        (HEADER + "langage: en\n", "capitals.yaml:4: no such key 'langage'. Did you mean language?"),
        (HEADER + "fields: {question: q}\n", "capitals.yaml:4: no such key 'fields.question'"),
        (HEADER.replace("en", "English"), "capitals.yaml:2: language: English: write a code of ISO 639"),
        (HEADER.replace("items.", "other."), "capitals.yaml: items: no such file other.jsonl"),
        ("name: [\n", "capitals.yaml:2:"),
        ("\ufeff" + HEADER, "capitals.yaml:1: is saved with a BOM"),
        ("- a\n", "capitals.yaml: is not a mapping"),
        (HEADER.replace("capitals", "cloze"), "its name is cloze, which krill has a task of"),
        (HEADER.replace("capitals", "a/b"), "its name is a/b; use a name without /"),
        (HEADER.replace("capitals", r'"a\e[31mb"'), "on one line"),
    ],
)
def test_a_wrong_description_is_named_by_line_and_key(
    write_task: WriteTask, header: str, message: str
) -> None:
    with pytest.raises(UsageError) as error:
        find_evaluator(write_task([ITEM], header))
    assert message in str(error.value)


def test_two_tasks_of_one_name_are_not_evaluated_together(write_task: WriteTask, tmp_path: Path) -> None:
    name = write_task([ITEM])
    Path("other.yaml").write_text(HEADER)
    with pytest.raises(
        UsageError, match=r"tasks=other\.yaml: its name is capitals, as that of capitals\.yaml"
    ):
        find_evaluators([name, "english_pairs", "other.yaml"])


def test_names_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in (
        ("mine.yaml", "tasks=mine.yaml: no such file"),
        ("mine.jsonl", "is not a task but its items"),
        ("mine.py", "mine.py: no such file"),
    ):
        with pytest.raises(UsageError) as error:
            find_evaluator(name)
        assert message in str(error.value)


def make_task(arguments: str) -> str:
    """Returns the code of a function that returns a Task, with other arguments than its items."""
    name, language, description, *notes = arguments.split(", ")
    items = "(Item('a', ('b', 'c'), 0),)"
    return f"def build_items():\n    return Task({', '.join([name, language, description, items, *notes])})\n"


def write_code(folder: Path, body: str) -> str:
    file = folder / "numbers_task.py"
    file.write_text(f"from krill.evaluation.task import Item, Task\n\n{body}", encoding="utf-8")
    return str(file)


def test_a_function_returns_items(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    name = write_code(
        tmp_path,
        'def build_items():\n    """Numbers in order."""\n'
        '    yield {"context": "1 2", "choices": [" 3", " 9"], "answer": " 3"}\n'
        '    yield Item("4 5", (" 6", " 1"), 0)\n\n'
        'def build_task():\n    return Task("zahlen", "de", "", [Item("eins", (" zwei", " drei"), 0)] * 2)\n',
    )
    task = read(name)
    assert (task.name, task.language, task.description) == ("numbers_task", "en", "Numbers in order.")
    assert task.items[0] == Item("1 2", (" 3", " 9"), 0)
    task = read(f"{name}:build_task")
    assert (task.name, task.language, len(task.items), task.notes["duplicates"]) == ("zahlen", "de", 1, 1)
    subject = Subject("tiny", make_small_model(tokenizer).eval(), tokenizer, None)
    evaluator = find_evaluator(name)
    assert evaluate_task(evaluator, subject, EvaluationSettings(1, 1, 0)).main_score.items == 1
    before = evaluator.identify(SETTINGS)
    Path(name).write_text(Path(name).read_text() + "# a comment\n")
    assert find_evaluator(name).identify(SETTINGS) != before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def other():\n    return []\n", "has no function 'build_items'"),
        ("def build_items():\n    return {}\n", "returned dict; return a list of items, or a Task"),
        ("def build_items():\n    return []\n", "build_items: has no items"),
        ("def build_items():\n    yield 1 / 0\n", "numbers_task.py:4: fails: ZeroDivisionError"),
        ("def build_items():\n    return [{}]\n", "build_items: item 0: no 'choices' (it has no keys)"),
        ("def build_items():\n    raise SystemExit(3)\n", "numbers_task.py:4: fails: SystemExit: 3"),
        (make_task("5, 'en', ''"), "name of its Task is 5; it must be a text"),
        (make_task("'a', None, ''"), "language of its Task is None; it must be a code of ISO 639"),
        (make_task("'a', 'en', '', notes={'x': []}"), "notes of its Task is {'x': []}"),
        (make_task("'z' * 61, 'en', ''"), "use 1 to 60 characters"),
    ],
)
def test_a_function_that_returns_something_else(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        find_evaluator(write_code(tmp_path, body))
    assert message in str(error.value)


def test_a_function_draws_the_same_items_and_prints_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_code(
        tmp_path,
        "import random\n\ndef build_items():\n    print('drawing')\n"
        "    yield {'context': str(random.random()), 'choices': ['a', 'b'], 'answer': 0}\n",
    )
    random.seed(5)
    state = random.getstate()
    assert read(name) == read(name)
    assert random.getstate() == state
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "drawing\n" * 2)


def test_ranks_with_other_items_are_an_error(write_task: WriteTask, tokenizer: TokenizerFolder) -> None:
    evaluator = find_evaluator(write_task([ITEM]))
    share = RankShare(0, 2, lambda value: [value, "the signature of rank 1"])
    subject = Subject("tiny", make_small_model(tokenizer).eval(), tokenizer, None, share=share)
    with pytest.raises(UsageError, match="capitals: its items differ between the ranks"):
        evaluate_task(evaluator, subject, SETTINGS)


def test_items_without_a_phenomenon_have_no_row_beside_that_of_the_task(
    write_task: WriteTask, tokenizer: TokenizerFolder
) -> None:
    evaluator = find_evaluator(write_task([ITEM, {**ITEM, "context": "It is", "phenomenon": "other"}]))
    subject = Subject("tiny", make_small_model(tokenizer).eval(), tokenizer, None)
    scores = evaluate_task(evaluator, subject, SETTINGS).scores
    assert [(score.name, score.items) for score in scores[::2]] == [("", 2), ("other", 1)]
