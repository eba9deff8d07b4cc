"""The evaluations of a run in its plan: their time, and the memory of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from allocations import measure_moments
from compositions import load_config
from planned_models import CPU, make_gated, make_gpt2, make_setting
from torch.profiler import record_function

import krill.inference.token_scores
from krill.config.schema import ModelConfig
from krill.evaluation.token_scorer import TokenScorer
from krill.evaluation.token_sequence import TokenSequence
from krill.models.build import build_model
from krill.plan import memory as plan_memory_module
from krill.plan.describe import describe_architecture
from krill.plan.memory import plan_memory
from krill.plan.run_plan import RunPlan, TimePlan, build_run_plan
from krill.plan.text import TrainingText


def plan(*overrides: str) -> RunPlan:
    text = TrainingText(10**7, 100.0, "a test", is_exact=True)
    return build_run_plan(load_config("steps=1000", "batch.tokens=null", *overrides), 4096, CPU, text)


def plan_time(*overrides: str) -> TimePlan:
    time = plan(*overrides).time
    assert time is not None
    return time


def test_what_is_not_asked_for_takes_a_twentieth_of_the_training() -> None:
    parts, longer = plan_time("steps=2000").parts, plan_time("steps=100000").parts
    assert 0 < parts["evaluation"] <= 0.05 * parts["steps"]
    assert parts["evaluation"] < longer["evaluation"] < 0.05 * longer["steps"]
    assert longer["evaluation"] == pytest.approx(plan_time("steps=200000").parts["evaluation"])


def test_a_run_without_an_evaluation_plans_none() -> None:
    for overrides in (["evaluation.at_end=false"], ["steps=10"]):
        assert plan_time(*overrides).parts["evaluation"] == 0
        assert "evaluation" not in plan(*overrides).memory.moments


def test_what_is_asked_for_takes_what_it_takes() -> None:
    once = plan_time("steps=10", "evaluation.at_end=true").parts["evaluation"]
    assert once > plan_time("steps=10").parts["steps"]
    limited = plan_time("steps=10", "evaluation.at_end=true", "evaluation.limit=25").parts["evaluation"]
    assert limited < once / 2
    text = plan_time("steps=10", "evaluation.tasks=[text]").parts["evaluation"]
    mfu = plan().utilization.mfu
    assert text == pytest.approx(400_000 * plan().token_flops.total / 3 / (mfu * 1e11), rel=0.1)


def test_evaluations_during_the_training_add_up() -> None:
    each, ten = (
        plan_time(f"evaluation.every={every}", "evaluation.tasks=[text]").parts["evaluation"]
        for every in (1000, 100)
    )
    assert ten == pytest.approx(10 * each)
    pairs = [
        plan_time(f"evaluation.every={every}", "evaluation.tasks=[english_pairs]").parts["evaluation"]
        for every in (1000, 500, 250)
    ]
    # the items are prepared once
    assert pairs[2] - pairs[1] == pytest.approx(2 * (pairs[1] - pairs[0]))
    assert pairs[0] > pairs[1] - pairs[0]


def test_the_final_model_is_loaded_in_place_of_the_optimizer_state() -> None:
    at_end, during = (
        plan(f"evaluation.{key}").memory.moments["evaluation"] for key in ("at_end=true", "every=10")
    )
    weights = 4 * plan().architecture.parameters
    assert (at_end["weights"], during["weights"]) == (2 * weights, weights)
    assert "optimizer" not in at_end
    assert during["optimizer"] > 0


def test_pieces_of_logits_are_those_of_the_scorer() -> None:
    assert plan_memory_module.SCORED_LOGITS == krill.inference.token_scores.CHUNK_ELEMENTS


@pytest.mark.parametrize("vocabulary", [90, 1000])
@pytest.mark.parametrize(
    "config",
    [
        make_gated("llama", hidden_size=96, intermediate_size=256, head_dim=16),
        make_gated("qwen3", hidden_size=96, intermediate_size=256, head_dim=16),
        make_gpt2(n_embd=96),
    ],
)
def test_the_memory_of_a_batch_is_that_of_the_scorer(
    config: ModelConfig, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_memory_module, "EVALUATION_DATA_BYTES", 0)
    model: Any = build_model(config, vocabulary, 0, 1, 2, "sdpa")
    scorer = TokenScorer(model.eval(), vocabulary, max_batch_tokens=2048)
    ids = np.random.default_rng(0).integers(3, vocabulary, size=(64, 128)).tolist()
    questions = [[TokenSequence(tuple(row), 127)] for row in ids]

    def evaluate() -> None:
        with record_function("mark evaluation"):
            scorer.score(questions)

    evaluate()
    measured = measure_moments(evaluate)["evaluation"]
    run = load_config("evaluation.every=1", "evaluation.max_batch_tokens=2048")
    architecture = describe_architecture(config, vocabulary)
    parts = plan_memory(run, architecture, make_setting()).moments["evaluation"]
    planned = parts["activations"] + parts.get("logits", 0)
    assert 0.95 < planned / measured < 1.35
