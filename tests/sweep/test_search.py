"""Searches sample the same points whenever they run, and an adaptive one samples better points over time."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from krill.errors import UsageError
from krill.sweep.search import SampledSearch, Search, build_search

SPACE = (
    "steps=7",
    "lr=tag(log,interval(1e-5,1.0))",
    "model.depth=int(interval(1,12))",
    "optimizer=adamw,muon",
)


def make_search(
    sampler: str, trials: int | None = 40, seed: int = 0, overrides: Sequence[str] = SPACE
) -> Search:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return build_search(SimpleNamespace(search=sampler, trials=trials), seed, parsed)


def make_sampled_search(
    sampler: str, trials: int | None = 40, seed: int = 0, overrides: Sequence[str] = SPACE
) -> SampledSearch:
    search = make_search(sampler, trials, seed, overrides)
    assert isinstance(search, SampledSearch)
    return search


def loss(overrides: Sequence[str]) -> float:
    values = dict(override.split("=") for override in overrides)
    distance = (math.log10(float(values["lr"])) + 2.5) ** 2 + (int(values["model.depth"]) - 7) ** 2 / 10
    return distance + (values["optimizer"] == "adamw")


def run_search(search: Search, num_parallel: int = 1, stop_after: int = 1000) -> list[float | None]:
    """Returns the losses of the points; after `stop_after` of them the last batch is asked for, but not told."""
    losses: list[float | None] = []
    while batch := search.ask(num_parallel):
        losses += map(loss, batch)
        if len(losses) > stop_after:
            break
        search.tell(losses[-len(batch) :])
    return losses


def test_points_are_in_the_space_and_keep_the_fixed_overrides():
    search = make_sampled_search("random")
    points = search.ask(1)
    assert len(points) == 40
    for fixed, rate, depth, optimizer in points:
        assert fixed == "steps=7"
        value = float(rate.removeprefix("lr="))
        assert 1e-5 <= value <= 1.0
        assert value == float(f"{value:.4g}")
        assert depth.removeprefix("model.depth=") in map(str, range(1, 13))
        assert optimizer in ("optimizer=adamw", "optimizer=muon")
    assert len({tuple(point) for point in points}) == 40
    assert sum(float(point[1].removeprefix("lr=")) < 1e-3 for point in points) > 10  # logarithmic


def test_the_seed_determines_the_points():
    assert make_sampled_search("random").ask(1) == make_sampled_search("random").ask(1)
    first, second = make_sampled_search("random", seed=0).ask(1), make_sampled_search("random", seed=1).ask(1)
    assert not {tuple(point) for point in first} & {tuple(point) for point in second}


def test_more_trials_only_add_points():
    assert make_sampled_search("random", 30).ask(1)[:20] == make_sampled_search("random", 20).ask(1)


def test_tpe_finds_lower_losses_than_random():
    better = 0
    for seed in range(5):
        tpe = run_search(make_sampled_search("tpe", seed=seed))
        random = run_search(make_sampled_search("random", seed=seed))
        better += sum(map(float, tpe[20:])) < sum(map(float, random[20:]))
    assert better == 5


@pytest.mark.parametrize("num_parallel", [1, 3])
@pytest.mark.parametrize("stop_after", [5, 10, 17, 30])
def test_an_interrupted_search_resumes_as_if_uninterrupted(num_parallel: int, stop_after: int):
    uninterrupted = make_sampled_search("tpe")
    run_search(uninterrupted, num_parallel)
    interrupted = make_sampled_search("tpe")
    run_search(interrupted, num_parallel, stop_after)
    assert len(interrupted.history) < 40

    resumed = make_sampled_search("tpe")
    resumed.restore_history(interrupted.history)
    run_search(resumed, num_parallel)

    assert resumed.history == uninterrupted.history


def test_points_outside_the_space_are_not_restored():
    old = make_sampled_search("random")
    old.ask(1)
    narrower = make_sampled_search(
        "tpe", overrides=[SPACE[0], SPACE[1], "model.depth=int(interval(1,6))", "optimizer=muon,sgd"]
    )
    narrower.restore_history(old.history)
    restored = narrower.ask(1)
    assert 0 < len(restored) < 40
    assert all(point[3] == "optimizer=muon" and int(point[2].partition("=")[2]) <= 6 for point in restored)
    other = make_sampled_search("tpe", overrides=["lr=interval(0,1)"])
    other.restore_history([*old.history, ["lr"], [], ["lr=high"]])
    assert len(other.ask(1)) == 10


def test_points_without_a_loss_do_not_end_the_search():
    search = make_sampled_search("tpe", 15)
    while batch := search.ask(1):
        search.tell([None if index % 2 else math.nan for index in range(len(batch))])
    assert len(search.history) == 15


def test_an_adaptive_search_has_points_at_the_bounds_of_its_space():
    points = make_sampled_search("tpe").list_boundary_points()
    assert ["steps=7", "lr=1e-05", "model.depth=12", "optimizer=adamw"] in points
    assert ["steps=7", "lr=1.0", "model.depth=1", "optimizer=adamw"] in points
    assert ["steps=7", "lr=1e-05", "model.depth=1", "optimizer=muon"] in points
    assert not make_sampled_search("random").list_boundary_points()


@pytest.mark.parametrize(
    ("sampler", "trials", "overrides", "message"),
    [
        ("grid", None, SPACE, "sweep.search=random sweep.trials=20"),
        ("grid", 5, ["lr=1,2"], "a grid has all combinations"),
        ("tpe", None, SPACE, "sweep.trials=20"),
        ("random", 0, SPACE, "sweep.trials=20"),
        ("random", 5, ["lr=1"], "no space to search"),
        ("random", 5, ["lr=tag(log,interval(0,1))"], "lr=tag(log,interval(0,1)): "),
        ("random", 5, ["lr=interval(2,1)"], "lr=interval(2,1): "),
        ("grid", None, ["sweep.max_parallel=1,2"], "one value for the whole sweep"),
    ],
)
def test_settings_that_exclude_each_other_are_rejected(
    sampler: str, trials: int | None, overrides: Sequence[str], message: str
):
    with pytest.raises(UsageError) as raised:
        make_search(sampler, trials, overrides=overrides)
    assert message in str(raised.value)


def test_without_optuna_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    with pytest.raises(UsageError, match=r"pip install .*\[search\]"):
        make_search("random", 5)
