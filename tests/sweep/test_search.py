"""What a search draws: the same whenever it is asked, and better where it learns."""

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


def made(how: str, trials: int | None = 40, seed: int = 0, words: Sequence[str] = SPACE) -> Search:
    typed = OverridesParser.create().parse_overrides(list(words))
    return build_search(SimpleNamespace(search=how, trials=trials), seed, typed)


def drawn(how: str, trials: int | None = 40, seed: int = 0, words: Sequence[str] = SPACE) -> SampledSearch:
    search = made(how, trials, seed, words)
    assert isinstance(search, SampledSearch)
    return search


def loss(overrides: Sequence[str]) -> float:
    values = dict(word.split("=") for word in overrides)
    far = (math.log10(float(values["lr"])) + 2.5) ** 2 + (int(values["model.depth"]) - 7) ** 2 / 10
    return far + (values["optimizer"] == "adamw")


def searched(search: Search, at_once: int = 1, until: int = 1000) -> list[float | None]:
    """Losses of the points, in their order; a batch after `until` of them is asked for and not told of."""
    losses: list[float | None] = []
    while batch := search.ask(at_once):
        losses += map(loss, batch)
        if len(losses) > until:
            break
        search.tell(losses[-len(batch) :])
    return losses


def test_each_point_lies_in_the_space_and_keeps_what_is_fixed():
    search = drawn("random")
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


def test_the_seed_decides_and_neighbours_share_nothing():
    assert drawn("random").ask(1) == drawn("random").ask(1)
    one, other = drawn("random", seed=0).ask(1), drawn("random", seed=1).ask(1)
    assert not {tuple(point) for point in one} & {tuple(point) for point in other}


def test_more_trials_only_add_points():
    assert drawn("random", 30).ask(1)[:20] == drawn("random", 20).ask(1)


def test_it_learns():
    better = 0
    for seed in range(5):
        tpe, random = searched(drawn("tpe", seed=seed)), searched(drawn("random", seed=seed))
        better += sum(map(float, tpe[20:])) < sum(map(float, random[20:]))
    assert better == 5


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("until", [5, 10, 17, 30])
def test_stopped_anywhere_it_goes_on_as_if_it_had_not_been(at_once: int, until: int):
    whole = drawn("tpe")
    searched(whole, at_once)
    stopped = drawn("tpe")
    searched(stopped, at_once, until)
    assert len(stopped.history) < 40

    later = drawn("tpe")
    later.restore_history(stopped.history)
    searched(later, at_once)

    assert later.history == whole.history


def test_points_outside_the_space_are_not_taken_up():
    old = drawn("random")
    old.ask(1)
    narrower = drawn(
        "tpe", words=[SPACE[0], SPACE[1], "model.depth=int(interval(1,6))", "optimizer=muon,sgd"]
    )
    narrower.restore_history(old.history)
    kept = narrower.ask(1)
    assert 0 < len(kept) < 40
    assert all(point[3] == "optimizer=muon" and int(point[2].partition("=")[2]) <= 6 for point in kept)
    other = drawn("tpe", words=["lr=interval(0,1)"])
    other.restore_history([*old.history, ["lr"], [], ["lr=high"]])
    assert len(other.ask(1)) == 10


def test_points_that_fail_teach_nothing_and_end_nothing():
    search = drawn("tpe", 15)
    while batch := search.ask(1):
        search.tell([None if index % 2 else math.nan for index in range(len(batch))])
    assert len(search.history) == 15


def test_the_ends_of_the_space_are_looked_at_where_points_come_later():
    ends = drawn("tpe").boundary_points()
    assert ["steps=7", "lr=1e-05", "model.depth=12", "optimizer=adamw"] in ends
    assert ["steps=7", "lr=1.0", "model.depth=1", "optimizer=adamw"] in ends
    assert ["steps=7", "lr=1e-05", "model.depth=1", "optimizer=muon"] in ends
    assert not drawn("random").boundary_points()


@pytest.mark.parametrize(
    ("how", "trials", "words", "said"),
    [
        ("grid", None, SPACE, "sweep.search=random sweep.trials=20"),
        ("grid", 5, ["lr=1,2"], "a grid has all combinations"),
        ("tpe", None, SPACE, "sweep.trials=20"),
        ("random", 0, SPACE, "sweep.trials=20"),
        ("random", 5, ["lr=1"], "no space to search"),
        ("random", 5, ["lr=tag(log,interval(0,1))"], "lr=tag(log,interval(0,1)): "),
        ("random", 5, ["lr=interval(2,1)"], "lr=interval(2,1): "),
        ("grid", None, ["sweep.max_parallel=1,2"], "one for the whole sweep"),
    ],
)
def test_what_does_not_go_together_is_refused(how: str, trials: int | None, words: Sequence[str], said: str):
    with pytest.raises(UsageError) as refused:
        made(how, trials, words=words)
    assert said in str(refused.value)


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'krill\[search\]'"):
        made("random", 5)
