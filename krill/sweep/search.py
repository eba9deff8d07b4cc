"""Which points a sweep has: every combination of what was typed, or some that Optuna draws from that space.

A search keeps no database. What it tried is in sweep.json, how that ended in the points' folders, and each draw
depends on these, the seed and its number only: a search that was interrupted goes on as if it had not been.

Akiba et al. 2019, Optuna (arXiv:1907.10902); tpe: Bergstra et al. 2011, Algorithms for hyper-parameter optimization.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import IntervalSweep, Override

from krill.errors import UsageError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SIGNIFICANT_DIGITS = 4
"""Of a number that is drawn: more would be noise in names and tables."""

TPE_STARTUP_TRIALS = 10
"""Points that tpe draws at random before it has something to learn from; Optuna's own default."""


class Search(Protocol):
    """Tells which points come next."""

    is_adaptive: bool
    """Whether how points end decides which come next."""
    history: list[list[str]]
    """Of each point so far what was drawn, for a later search to go on from."""

    def ask(self, at_once: int) -> list[list[str]]:
        """Overrides of the points that come next, `at_once` of them where it matters; none: that was all."""

    def tell(self, losses: Sequence[float | None]) -> None:
        """How those ended: the loss of each, in nats per token; None: it has none."""

    def boundary_points(self) -> list[list[str]]:
        """Points that are no part of the search, in which what is wrong in later ones shows early."""

    def describe(self, first: int) -> str:
        """What a person is told of it, where so many points come first."""


def build_search(settings: Any, seed: Any, typed: Sequence[Override]) -> Search:
    """The search that `settings`, the section sweep of a configuration, asks for over what was `typed`.

    Raises UsageError for what does not go together.
    """
    for override in typed:
        if override.is_sweep_override() and override.key_or_group.partition(".")[0] == "sweep":
            raise UsageError(f"{override.input_line}: {override.key_or_group} is one for the whole sweep")
    # What is no section, or lacks a key, is told of by the validation of the points.
    how, trials = getattr(settings, "search", "grid"), getattr(settings, "trials", None)
    if how == "grid":
        return GridSearch(typed, trials)
    if how not in SAMPLERS:
        raise UsageError(f"sweep.search={how}: there are grid, {', '.join(SAMPLERS)}")
    if not isinstance(trials, int) or trials < 1:
        raise UsageError(f"sweep.search={how}: say how many points, as with sweep.trials=20")
    if not find_spec("optuna"):
        raise UsageError(f"sweep.search={how} needs optuna: pip install 'krill[search]'")
    space = [Dimension(override) for override in typed if override.is_sweep_override()]
    if not space:
        raise UsageError(
            f"sweep.search={how} has no space to search: write 'lr=tag(log,interval(1e-4,1e-2))' "
            "or lr=1e-3,3e-3"
        )
    fixed = GridSearch([override for override in typed if not override.is_sweep_override()], None).ask(1)[0]
    return SampledSearch(how, trials, seed if isinstance(seed, int) and seed >= 0 else 0, space, fixed)


class GridSearch:
    """Every combination."""

    def __init__(self, typed: Sequence[Override], trials: int | None):
        if trials is not None:
            raise UsageError("sweep.trials= is for sweep.search=random or tpe; a grid has all combinations")
        for override in typed:
            if isinstance(override.value(), IntervalSweep):
                raise UsageError(
                    f"{override.input_line}: an interval has no points of its own: add "
                    "sweep.search=random sweep.trials=20, or tpe"
                )
        self.is_adaptive = False
        self.history: list[list[str]] = []
        self._points = [list(point) for point in BasicSweeper.split_arguments(list(typed), None)[0]]

    def ask(self, at_once: int) -> list[list[str]]:
        """All of them, the first time."""
        points, self._points = self._points, []
        return points

    def tell(self, losses: Sequence[float | None]) -> None:
        """Changes nothing."""

    def boundary_points(self) -> list[list[str]]:
        """None: all points are looked at before the first."""
        return []

    def describe(self, first: int) -> str:
        """How many there are."""
        return f"{first} points"


class Dimension:
    """One key of the space: an interval, or choices."""

    def __init__(self, override: Override):
        """Raises UsageError for an interval that is none, or that cannot be logarithmic."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        self.key = override.get_key_element()
        self.choices: list[str] = []
        value = override.value()
        if not isinstance(value, IntervalSweep):
            self.choices = list(override.sweep_string_iterator())
            self.distribution: BaseDistribution = CategoricalDistribution(self.choices)
            return
        self.low, self.high, log = value.start or 0, value.end or 0, "log" in value.tags
        self.is_integer = isinstance(self.low, int) and isinstance(self.high, int)
        try:
            if self.is_integer:
                self.distribution = IntDistribution(int(self.low), int(self.high), log=log)
            else:
                self.distribution = FloatDistribution(self.low, self.high, log=log)
        except ValueError as error:
            raise UsageError(f"{override.input_line}: {error}") from error

    def format_override(self, value: Any) -> str:
        """The override that sets it."""
        if not self.choices and not self.is_integer:
            value = min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.low), self.high)
        return f"{self.key}={value}"

    def parse_override(self, word: str) -> Any:
        """What a word sets it to; None: nothing in the space."""
        key, _, text = word.partition("=")
        if key != self.key:
            return None
        if self.choices:
            return text if text in self.choices else None
        try:
            value = int(text) if self.is_integer else float(text)
        except ValueError:
            return None
        return value if self.low <= value <= self.high else None

    def boundary_overrides(self) -> list[str]:
        """Words for its bounds, or for each choice."""
        return [self.format_override(value) for value in self.choices or (self.low, self.high)]


class SampledSearch:
    """So many points, each drawn when those before have been told of."""

    def __init__(self, how: str, trials: int, seed: int, space: Sequence[Dimension], fixed: Sequence[str]):
        self.sampler_name, self.trials, self.seed, self.space, self.fixed_overrides = (
            how,
            trials,
            seed,
            space,
            fixed,
        )
        self.is_adaptive = how != "random"
        self.history: list[list[str]] = []
        self._pending_points: list[list[str]] = []
        self._losses: list[float | None] = []
        self._distributions = {dimension.key: dimension.distribution for dimension in space}

    def restore_history(self, tried: Iterable[Sequence[str]]) -> None:
        """Begin with the points of an earlier search, as far as they lie in this space."""
        self._pending_points = [list(words) for words in tried if self._parse_values(words) is not None][
            : self.trials
        ]

    def ask(self, at_once: int) -> list[list[str]]:
        """Those that were tried before, then new ones: all that are left, or as many as run at once where the next
        are to learn from them."""
        begun = len(self.history)
        self.history += self._pending_points
        up_to = (
            len(self._pending_points) or max(TPE_STARTUP_TRIALS, begun + at_once)
            if self.is_adaptive
            else self.trials
        )
        self._pending_points = []
        while len(self.history) < min(up_to, self.trials):
            self.history.append(self._sample_point())
        return [[*self.fixed_overrides, *words] for words in self.history[begun:]]

    def tell(self, losses: Sequence[float | None]) -> None:
        """What the next draws learn from."""
        self._losses += losses

    def boundary_points(self) -> list[list[str]]:
        """Points at the ends of the space, one key at a time, where not all are drawn at once."""
        if not self.is_adaptive:
            return []
        first = [dimension.boundary_overrides()[0] for dimension in self.space]
        return [
            [*self.fixed_overrides, *first[:index], word, *first[index + 1 :]]
            for index, dimension in enumerate(self.space)
            for word in dimension.boundary_overrides()
        ]

    def describe(self, first: int) -> str:
        """How many there are, and how many of them are known."""
        known = f", the first {first} now" if first < self.trials else ""
        return f"{self.trials} points, drawn by {self.sampler_name}{known}"

    def _sample_point(self) -> list[str]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = np.random.SeedSequence([self.seed, len(self.history)]).generate_state(1)[0]
        study = optuna.create_study(sampler=SAMPLERS[self.sampler_name](int(seed)))
        if self.is_adaptive:
            study.add_trials([self._build_optuna_trial(index) for index in range(len(self.history))])
        drawn = study.ask(self._distributions).params
        return [dimension.format_override(drawn[dimension.key]) for dimension in self.space]

    def _build_optuna_trial(self, index: int) -> FrozenTrial:
        """A point of before, as Optuna knows it: with a loss, failed, or still running."""
        from optuna.trial import TrialState, create_trial

        loss = self._losses[index] if index < len(self._losses) else None
        known = loss is not None and math.isfinite(loss)
        state = TrialState.COMPLETE if known else TrialState.FAIL
        return create_trial(
            state=state if index < len(self._losses) else TrialState.RUNNING,
            value=loss if known else None,
            params=self._parse_values(self.history[index]),
            distributions=self._distributions,
        )

    def _parse_values(self, words: Sequence[str]) -> dict[str, Any] | None:
        """What words set, by key; None: not a point of this space."""
        if len(words) != len(self.space):
            return None
        found = {
            dimension.key: dimension.parse_override(word)
            for dimension, word in zip(self.space, words, strict=True)
        }
        return None if None in found.values() else found


def _build_random_sampler(seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _build_tpe_sampler(seed: int) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=TPE_STARTUP_TRIALS)


SAMPLERS = {"random": _build_random_sampler, "tpe": _build_tpe_sampler}
"""What sweep.search= may be, beside grid."""
