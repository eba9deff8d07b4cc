"""The final model is evaluated where that takes little of the time; krill-evaluate finds the results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compositions import load_config

from krill.cli import app, evaluate
from krill.data.store import Store
from krill.evaluation import cost
from krill.evaluation.bundled import PAIR_TASKS, build_pair_task
from krill.evaluation.model_evaluation import ModelEvaluation
from krill.evaluation.results import read_results
from krill.evaluation.token_scorer import TokenScorer
from krill.inference.load import ModelFiles
from krill.training import final_evaluation

FEW_ITEMS = ("evaluation.limit=1", "evaluation.text_tokens=300")


def evaluate_run(run: Path, *arguments: str) -> int:
    return app.main(
        "evaluate", evaluate.run_task, [str(run), *arguments], "model", evaluate.prepare_arguments, True
    )


@pytest.fixture
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a short training be evaluated."""
    monkeypatch.setattr(final_evaluation, "MIN_TOKENS", 0)
    monkeypatch.setattr(final_evaluation, "TIME_SHARE", 1e6)


@pytest.fixture
def no_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a model is loaded to evaluate it."""
    monkeypatch.setattr(ModelFiles, "load", None)


@pytest.mark.usefixtures("any_length")
def test_the_bundled_tasks_of_the_text_are_evaluated_and_found_by_the_command(
    krill_train: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert krill_train(*FEW_ITEMS) == 0
    (run,) = krill_train.runs()
    log = capsys.readouterr().err
    tasks = ["english_pairs", "korean_pairs", "text"]
    assert [result.task for result in read_results(run)] == tasks
    for task in tasks:
        assert f"evaluation  {task} " in log
    monkeypatch.setattr(ModelFiles, "load", None)
    assert evaluate_run(run, f"tasks=[{','.join(tasks)}]", *FEW_ITEMS) == 0
    assert capsys.readouterr().err.count(" found ") == 3


@pytest.mark.usefixtures("no_scoring")
def test_a_short_training_is_not_evaluated(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train("steps=2") == 0
    (run,) = krill_train.runs()
    log = capsys.readouterr().err
    command = f"krill-evaluate {run.relative_to(krill_train.outputs)}"
    assert f"evaluation  skipped: it would take more than 5 % of the time of the training; {command}" in log
    assert not (run / "evaluations").exists()


@pytest.mark.usefixtures("no_scoring", "any_length")
def test_it_can_be_turned_off(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train("steps=2", "evaluation.tasks=text", "evaluation.at_end=false") == 0
    assert "evaluation" not in capsys.readouterr().err


@pytest.mark.parametrize("override", ["evaluation.tasks=text", "evaluation.at_end=true"])
def test_what_is_asked_for_is_evaluated_whatever_it_takes(krill_train: Any, override: str) -> None:
    assert krill_train("steps=2", *FEW_ITEMS, override) == 0
    (run,) = krill_train.runs()
    assert "text" in [result.task for result in read_results(run)]


@pytest.mark.parametrize(
    ("seconds", "limits"), [(1e6, [None]), (8.0, [100]), (1e-3, [])], ids=["all", "fewer", "none"]
)
def test_fewer_items_are_evaluated_where_all_would_take_too_long(
    prepared_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    limits: list[int | None],
) -> None:
    """46 phenomena of 300 pairs with about 20 tokens in both sentences, of 10 µs each, and 0.6 ms for each pair."""
    monkeypatch.setattr(final_evaluation, "measure_seconds_per_token", lambda *_: 1e-5)
    monkeypatch.setattr(
        ModelEvaluation, "subject", SimpleNamespace(scorer=None, tokenizer=prepared_data.tokenizer)
    )
    evaluation = ModelEvaluation(
        load_config().evaluation, SimpleNamespace(tokenizer=prepared_data.tokenizer), Store.open(prepared_data.store),
        tmp_path, torch.device("cpu"), "auto",
    )  # type: ignore[arg-type]  # fmt: skip
    fitting = final_evaluation._find_fitting_limit(evaluation, seconds)
    assert [fitting.config.limit] == limits if fitting else limits == []


@pytest.mark.parametrize("task", PAIR_TASKS)
def test_the_size_of_the_minimal_pairs_is_known_without_them(task: str) -> None:
    choices = [item.choices for item in build_pair_task(task).items]
    characters = sum(len(choice) for both in choices for choice in both)
    tokens, items = cost.count_tokens_and_items(task, cost.TextSize(0, 0), load_config().evaluation)
    assert items == len(choices)
    assert tokens == pytest.approx(characters / 2, rel=0.01)


@pytest.mark.usefixtures("any_length")
def test_a_failure_loses_nothing(
    reference_run: Callable[..., Path], krill_train: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(TokenScorer, "_score_batch", fail)
    assert krill_train(*FEW_ITEMS) == 0
    (run,) = krill_train.runs()
    model = "model/model.safetensors"
    assert (run / model).read_bytes() == (reference_run() / model).read_bytes()
    assert (run / "loss.png").exists()
    assert "evaluation  failed: " in capsys.readouterr().err
