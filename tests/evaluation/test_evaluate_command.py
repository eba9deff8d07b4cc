"""krill-evaluate as a user runs it: a table, results that are found again, one line for each mistake."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models import make_small_model
from stores import write_store

from krill.cli import app, evaluate
from krill.data.store import Store
from krill.evaluation import lm_eval_tasks
from krill.evaluation.evaluate import evaluate_task, find_evaluator
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.results import read_results
from krill.evaluation.subject import Subject
from krill.inference.token_scores import score_tokens
from krill.runs.record import write_status
from krill.tokenizer.artifact import TokenizerFolder

RunEvaluate = Callable[..., tuple[int, list[str], list[str]]]
SENTENCES = [f"{start} garden was quiet. All of them saw the {end}." for start in ("The", "A") for end in
             ("garden", "house", "river", "mountain", "window", "letter")]  # fmt: skip


@pytest.fixture(scope="module")
def store(tokenizer: TokenizerFolder, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """English and Korean documents, the longest of which are more than twice as long as the context of the model."""
    text = [("books", " ".join(SENTENCES)), ("notes", "a b"), ("notes", "조용한 정원이었다. " * 4)]
    return write_store(tmp_path_factory.mktemp("stores") / "store", tokenizer, text, text)


@pytest.fixture(scope="module")
def run(
    model: Any, tokenizer: TokenizerFolder, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    model.save_pretrained(folder / "model")
    tokenizer.copy_to(folder / "model", 64)
    write_status(
        folder,
        {
            "state": "finished",
            "signature": "r" * 64,
            "data": {"folder": str(store.folder), "signature": store.signature},
        },
    )
    return folder


@pytest.fixture(autouse=True)
def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides lm-eval, whose index of tasks takes seconds to read."""
    monkeypatch.setattr(lm_eval_tasks, "is_installed", lambda: False)


@pytest.fixture
def run_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunEvaluate:
    """run_evaluate("model=…", …) returns the exit code and the lines of standard output and error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, list[str], list[str]]:
        code = app.main("evaluate", evaluate.run_task, arguments, "model", evaluate._prepare_arguments)
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return call


def test_a_run_is_evaluated_once(run: Path, run_evaluate: RunEvaluate) -> None:
    code, out, err = run_evaluate(str(run), "limit=2")
    assert code == 0
    assert out[0].split()[:3] == ["task", "part", "metric"]
    assert {line.split()[0] for line in out[1:-1]} == {"text", "korean_pairs", "english_pairs", "cloze"}
    assert out[-1].endswith("run/evaluations")
    assert not any("found" in line for line in err)
    results = read_results(run)
    assert [result.task for result in results] == ["cloze", "english_pairs", "korean_pairs", "text"]
    pairs = results[1].main_score
    assert (pairs.items, pairs.chance) == (52, 0.5)
    assert pairs.unigram is not None
    code, again, err = run_evaluate(str(run), "limit=2")
    assert again == out
    assert sum("found" in line for line in err) == 4
    code, out, err = run_evaluate(str(run), "limit=2", "tasks=text", "again=true", "format=json")
    assert not any("found" in line for line in err)
    assert json.loads("\n".join(out[:-1]))[0]["scores"][0]["metric"] == "bits_per_byte"


def test_an_edited_result_is_not_believed(run: Path, run_evaluate: RunEvaluate) -> None:
    _, out, _ = run_evaluate(str(run), "tasks=text", "evaluation.overlap=0.25")
    for file in (run / "evaluations").glob("text-*.json"):
        file.write_text(file.read_text().replace('"value": ', '"value": 1'))
    assert run_evaluate(str(run), "tasks=text", "evaluation.overlap=0.25")[1] == out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks=english_pair"], "tasks=english_pair: no such task; Did you mean english_pairs?"),
        (
            ["tasks=[text,glue]"],
            "tasks=glue: no such task; Available: text, korean_pairs, english_pairs, cloze",
        ),
        (["limit=0"], "evaluation.limit"),
        (["model=nothing_here"], "nothing_here"),
    ],
)
def test_mistakes(run: Path, run_evaluate: RunEvaluate, arguments: list[str], message: str) -> None:
    model = [] if any(argument.startswith("model=") for argument in arguments) else [f"model={run}"]
    code, out, err = run_evaluate(*model, *arguments)
    assert (code, out) == (2, [])
    assert message in "\n".join(err)
    assert "Traceback" not in "\n".join(err)


@pytest.mark.parametrize("argument", ["tasks=korean", "evaluation=korean"])
def test_a_preset_is_an_option_of_the_group_and_needs_the_extra(
    run: Path, run_evaluate: RunEvaluate, argument: str
) -> None:
    code, out, err = run_evaluate(f"model={run}", argument)
    assert (code, out) == (2, [])
    assert "tasks=kobest: no such task" in err[-1]
    assert "pip install" in err[-1]
    assert "[eval]" in err[-1]


def test_presets_can_be_swept_and_lists_are_tasks() -> None:
    presets = {"korean", "english"}
    assert evaluate._choose_preset("evaluation.tasks=korean,english", presets) == "evaluation=korean,english"
    for override in ("evaluation.tasks=[korean]", "evaluation.tasks=text", "evaluation.limit=korean"):
        assert evaluate._choose_preset(override, presets) == override


def test_without_its_tokens_a_model_is_evaluated_on_what_krill_brings(
    run: Path, run_evaluate: RunEvaluate, tmp_path: Path
) -> None:
    model = tmp_path / "alone"
    (run / "model").rename(model)
    try:
        code, out, err = run_evaluate(f"model={model}", "limit=1")
        assert (code, out[-1]) == (0, "outputs/evaluations")
        assert {line.split()[0] for line in out[1:-1]} == {"korean_pairs", "english_pairs"}
        assert "tokens      not here" in "\n".join(err)
        code, _, err = run_evaluate(f"model={model}", "tasks=text")
        assert code == 2
        assert "leave this task out of tasks=" in err[-1]
    finally:
        model.rename(run / "model")


def test_bits_per_byte_are_those_of_each_document(
    model: Any, tokenizer: TokenizerFolder, store: Store
) -> None:
    subject = Subject("tiny", model, tokenizer, store)
    result = evaluate_task(find_evaluator("text"), subject, EvaluationSettings(None, 10**6, 0.5))
    assert [(score.name, score.items) for score in result.scores] == [
        ("", 3), ("books", 1), ("notes", 2), ("en", 2), ("ko", 1),
    ]  # fmt: skip
    assert result.get_outcomes("bytes").sum() == store.validation.text_bytes
    ids = subject.read_held_out_texts(10**6)[1].ids
    nats = -sum(score.logprob for score in score_tokens(model, list(ids)))
    assert result.get_outcomes("nats")[1] == pytest.approx(nats, abs=1e-5)
    assert result.main_score.value == pytest.approx(
        result.get_outcomes("nats").sum() / math.log(2) / store.validation.text_bytes
    )


def test_a_model_without_knowledge_solves_half_of_the_pairs(tokenizer: TokenizerFolder) -> None:
    untrained = make_small_model(tokenizer).eval()
    settings = EvaluationSettings(20, 1, 0)
    subject = Subject("tiny", untrained, tokenizer, None)
    result = evaluate_task(find_evaluator("english_pairs"), subject, settings)
    score = result.main_score
    assert score.items == 520
    assert score.low is not None
    assert score.high is not None
    assert score.low - 0.02 < 0.5 < score.high + 0.02
