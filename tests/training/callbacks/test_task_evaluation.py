"""Tasks evaluated during a training: the scores of krill-evaluate, and a training that does not notice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from faults import train_and_kill
from small_models import make_small_model
from stores import make_byte_tokenizer
from trainings import assert_same_result, list_checkpoint_steps, read_metrics_without_clock, score_model

from krill.evaluation.results import Score, TaskResult
from krill.evaluation.token_scorer import TokenScorer
from krill.runs.json_lines import read_evaluations
from krill.runs.record import read_status
from krill.training.callbacks.task_evaluation import TaskEvaluation
from krill.training.compute.evaluation_mode import evaluation_mode
from krill.training.metrics.throughput import ThroughputMeter
from krill.training.metrics.trackers import Trackers

EVALUATED = (
    "evaluation.tasks=[text,english_pairs]", "evaluation.limit=1", "evaluation.text_tokens=300",
    "evaluation.every=2",
)  # fmt: skip
FOLLOWED = (
    "evaluation.tasks=english_pairs", "evaluation.every=1", "best_metric=english_pairs/accuracy", "steps=6",
    "save_every=1", "keep_checkpoints=1", "evaluation.at_end=false",
)  # fmt: skip


def read_scores(run: Path) -> dict[int, dict[str, float]]:
    """Returns the scores of each step, which has one line."""
    lines = read_evaluations(run)
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: {key: value for key, value in line.items() if "/" in key} for line in lines}


def before_each_batch(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Calls `act` with the number of each batch that is scored, from 1."""
    original, count = TokenScorer._score_batch, 0

    def score(self: TokenScorer, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        act(count)
        return original(self, *arguments)

    monkeypatch.setattr(TokenScorer, "_score_batch", score)


@pytest.fixture(scope="module")
def evaluated_run(reference_run: Callable[..., Path]) -> Path:
    return reference_run(*EVALUATED)


def test_the_scores_are_those_of_the_checkpoints(evaluated_run: Path) -> None:
    scores = read_scores(evaluated_run)
    assert list(scores) == [2, 4]
    for step, values in scores.items():
        assert {"text/bits_per_byte", "english_pairs/accuracy", "english_pairs/accuracy/many_much"} < set(
            values
        )
        expected = score_model(
            evaluated_run, evaluated_run / f"checkpoints/checkpoint-{step}", *EVALUATED[:3]
        )
        assert values == pytest.approx(expected, abs=1e-6)
    assert (evaluated_run / "scores.png").exists()
    assert "% of the time of the training" in (evaluated_run / "log.txt").read_text()


def test_the_training_does_not_notice(evaluated_run: Path, reference_run: Callable[..., Path]) -> None:
    plain = reference_run()
    for file in ("model/model.safetensors", "checkpoints/checkpoint-4/optimizer.pt"):
        assert (evaluated_run / file).read_bytes() == (plain / file).read_bytes()
    lines = [line for line in read_metrics_without_clock(evaluated_run) if "text/bits_per_byte" not in line]
    assert lines == read_metrics_without_clock(plain)


def test_throughput_is_measured_without_evaluations(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[bool] = []
    original = ThroughputMeter.pause

    @contextmanager
    def pause(self: ThroughputMeter) -> Iterator[None]:
        paused.append(True)
        with original(self):
            yield
        paused.append(False)

    def assert_paused(count: int) -> None:
        assert paused[-1]

    monkeypatch.setattr(ThroughputMeter, "pause", pause)
    before_each_batch(monkeypatch, assert_paused)
    assert krill_train(*EVALUATED, "evaluation.tasks=text", "steps=2") == 0


def test_trackers_get_the_scores_under_their_names() -> None:
    sent: list[tuple[int, Any]] = []
    trackers = Trackers([], SimpleNamespace())  # type: ignore[arg-type]
    trackers.open_trackers = [SimpleNamespace(log=lambda step, metrics: sent.append((step, metrics)))]  # type: ignore[list-item]
    logs = {"english_pairs/accuracy": 0.5, "evaluation_seconds": 1.0}
    state: Any = SimpleNamespace(global_step=7)
    trackers.on_log(state, state, state, logs)
    assert sent == [(7, logs)]


def test_an_interrupted_evaluation_is_repeated_once(
    krill_train: Any, evaluated_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(count: int) -> None:
        if count == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        before_each_batch(patch, interrupt)
        assert krill_train(*EVALUATED, "evaluation.max_batch_tokens=128") == 75
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [2]
    assert read_scores(run) == {}
    assert krill_train(*EVALUATED) == 0
    assert read_scores(run) == read_scores(evaluated_run)
    assert_same_result(run, evaluated_run, has_same_trainer_state=False)


def test_an_evaluation_that_is_interrupted_at_the_last_step_is_not_left_out(
    krill_train: Any, evaluated_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TaskEvaluation._score_tasks

    def interrupt(self: TaskEvaluation) -> list[TaskResult]:
        if self.trainer.state.global_step == self.trainer.state.max_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(TaskEvaluation, "_score_tasks", interrupt)
        assert krill_train(*EVALUATED) == 75
    (run,) = krill_train.runs()
    assert krill_train(*EVALUATED) == 0
    assert read_scores(run) == read_scores(evaluated_run)
    assert_same_result(run, evaluated_run, has_same_trainer_state=False)


@pytest.mark.slow
def test_a_killed_run_evaluates_each_step_once(krill_train: Any, evaluated_run: Path) -> None:
    train_and_kill(krill_train, 4, "saving", *EVALUATED)  # after the evaluation of this step
    assert krill_train(*EVALUATED) == 0
    (run,) = krill_train.runs()
    assert read_scores(run) == read_scores(evaluated_run)
    assert_same_result(run, evaluated_run)


def test_a_failed_evaluation_ends_nothing(
    krill_train: Any,
    reference_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(count: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    before_each_batch(monkeypatch, fail)
    assert krill_train(*EVALUATED) == 0
    (run,) = krill_train.runs()
    plain = reference_run()
    assert (run / "model/model.safetensors").read_bytes() == (plain / "model/model.safetensors").read_bytes()
    assert read_scores(run) == {}
    lines = [line for line in capsys.readouterr().err.splitlines() if "evaluation  failed" in line]
    assert [line.partition(":")[0] for line in lines] == [
        "evaluation  failed at step 2", "evaluation  failed at step 4", "evaluation  failed",
    ]  # fmt: skip
    assert f"krill-evaluate {run.relative_to(krill_train.outputs)}" in lines[-1]


def test_a_task_without_its_text_is_reported(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train(*EVALUATED, "data.validation_fraction=0", "steps=2") == 0
    assert "evaluation  failed at step 2: text: the run of " in capsys.readouterr().err


@pytest.fixture
def chosen_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the steps of a run the accuracies 0.4, 0.7, 0.6, 0.7, …"""
    values = iter([0.4, 0.7, 0.6, 0.7, 0.5, 0.5])

    def evaluate(*_: Any) -> TaskResult:
        score = Score(name="", metric="accuracy", value=next(values), items=1)
        return TaskResult(
            task="english_pairs", kind="choices", language="en", version=1, items_hash="", scores=(score,)
        )

    monkeypatch.setattr("krill.evaluation.evaluate.evaluate_task", evaluate)


@pytest.mark.usefixtures("chosen_scores")
def test_the_checkpoint_with_the_best_score_is_kept(krill_train: Any) -> None:
    assert krill_train(*FOLLOWED) == 0
    (run,) = krill_train.runs()
    best = {"step": 2, "english_pairs/accuracy": 0.7, "checkpoint": "checkpoints/checkpoint-2"}
    assert (read_status(run) or {})["best"] == best
    assert list_checkpoint_steps(run) == [2, 6]


@pytest.mark.usefixtures("chosen_scores")
@pytest.mark.parametrize(
    ("override", "step", "reason"),
    [
        ("stop.target=0.7", 2, "english_pairs/accuracy 0.7000 has reached stop.target=0.7"),
        ("stop.patience=2", 4, "the last 2 values of english_pairs/accuracy were not above 0.7000 (stop.patience=2)"),
    ],
)  # fmt: skip
def test_a_run_ends_by_a_score(
    krill_train: Any, capsys: pytest.CaptureFixture[str], override: str, step: int, reason: str
) -> None:
    assert krill_train(*FOLLOWED, override, "save_every=100") == 0
    (run,) = krill_train.runs()
    status = read_status(run) or {}
    assert (status["metrics"]["step"], status["metrics"]["stopped_by"]) == (step, reason)
    assert list_checkpoint_steps(run) == [step]
    assert capsys.readouterr().err.count(f"stopping    at step {step} of 6: {reason}") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["best_metric=english_pairs/accuracy"], "set evaluation.every, a number of steps"),
        (["stop.target=1"], "for the validation loss set stop.target_loss"),
        (
            ["best_metric=english_pairs/acuracy", "evaluation.every=1"],
            "best_metric=english_pairs/acuracy: no such score; Did you mean english_pairs/accuracy? Available: ",
        ),
        (["best_metric=cloze/accuracy", *EVALUATED], "no such score; Available: eval_loss, text/bits_per_byte"),
        (["evaluation.tasks=english_pair"], "no such task; Did you mean english_pairs?"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_anything_is_made(
    krill_train: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert krill_train(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert krill_train.runs() == []


def test_a_model_with_autocast_is_evaluated_in_fp32(tmp_path: Path) -> None:
    """accelerate wraps the forward function of a model that trains in bf16."""
    model = make_small_model(make_byte_tokenizer(tmp_path / "bytes"))
    model.set_attn_implementation("eager")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        model.train()
        model._original_forward = model.forward
        model.forward = MethodType(torch.autocast("cpu", torch.bfloat16)(model.forward.__func__), model)
        model.forward = MethodType(convert_outputs_to_fp32(model.forward.__func__), model)
        wrapped, state = model.forward, torch.random.get_rng_state()
        with evaluation_mode(model):
            actual = model(input_ids=ids).logits
            assert model.config._attn_implementation == "sdpa"
            torch.rand(1)
        rounded = model(input_ids=ids).logits
    torch.testing.assert_close(actual, expected)
    assert (rounded - expected).abs().max() > 1e-3
    assert model.forward is wrapped
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert torch.equal(torch.random.get_rng_state(), state)
