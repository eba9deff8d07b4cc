"""The points of a sweep: every combination of the swept values, or points that Optuna samples from their space.

A search has no database. The points that it tried are in sweep.json, their results in their folders, and each sample
depends on these, the seed and its index only: a search that was interrupted resumes as if it had not been.

Akiba et al. 2019, Optuna (arXiv:1907.10902); tpe: Bergstra et al. 2011, Algorithms for hyper-parameter optimization.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Glob, IntervalSweep, Override

from krill.errors import UsageError
from krill.extras import format_install_command

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SIGNIFICANT_DIGITS = 4
"""Significant digits of a sampled number; more would only clutter names and tables."""

TPE_STARTUP_TRIALS = 10
"""Points that tpe samples at random before it has results to learn from; Optuna's default."""


class Search(Protocol):
    """Proposes the points of a sweep."""

    is_adaptive: bool
    """Whether the results of points decide which points come next."""
    history: list[list[str]]
    """The sampled overrides of each point so far, from which a later search resumes."""

    def ask(self, num_parallel: int) -> list[list[str]]:
        """Returns the overrides of the next points; none when all were proposed.

        `num_parallel`: points that run at once; an adaptive search proposes as many.
        """

    def tell(self, losses: Sequence[float | None]) -> None:
        """Reports the results of the points of the last `ask`: losses in nats per token; None: the point has none."""

    def list_boundary_points(self) -> list[list[str]]:
        """Returns points at the bounds of the space, which show early the errors that later points would have."""

    def describe(self, num_first: int) -> str:
        """Returns the points in words for the log; `num_first`: how many the first batch has."""


def build_search(settings: Any, seed: Any, overrides: Sequence[Override]) -> Search:
    """Returns the search that `settings`, the section sweep of a configuration, choose over `overrides`.

    Raises UsageError for settings that exclude each other.
    """
    for override in overrides:
        if override.is_sweep_override() and override.key_or_group in ("output", "dry_run", "detach"):
            raise UsageError(
                f"{override.input_line}: {override.key_or_group} has one value for the whole sweep, each point "
                "gets a folder of its own"
            )
        if override.is_sweep_override() and override.key_or_group.partition(".")[0] == "sweep":
            raise UsageError(
                f"{override.input_line}: {override.key_or_group} has one value for the whole sweep"
            )
    # If this is not a section, or lacks a key, the validation of the points reports it.
    sampler, trials = getattr(settings, "search", "grid"), getattr(settings, "trials", None)
    if sampler == "grid":
        return GridSearch(overrides, trials)
    if sampler not in SAMPLERS:
        raise UsageError(f"sweep.search={sampler}: must be one of grid, {', '.join(SAMPLERS)}")
    if not isinstance(trials, int) or trials < 1:
        raise UsageError(f"sweep.search={sampler} needs the number of points: set it, as in sweep.trials=20")
    if not find_spec("optuna"):
        raise UsageError(f"sweep.search={sampler} needs optuna: {format_install_command('search')}")
    space = [Dimension(override) for override in overrides if override.is_sweep_override()]
    if not space:
        raise UsageError(
            f"sweep.search={sampler} has no space to search: use 'lr=tag(log,interval(1e-4,1e-2))' "
            "or lr=1e-3,3e-3"
        )
    fixed = [override for override in overrides if not override.is_sweep_override()]
    [fixed_overrides] = GridSearch(fixed, None).ask(1)
    seed = seed if isinstance(seed, int) and seed >= 0 else 0
    return SampledSearch(sampler, trials, seed, space, fixed_overrides)


class GridSearch:
    """Every combination of the swept values."""

    def __init__(self, overrides: Sequence[Override], trials: int | None):
        if trials is not None:
            raise UsageError("sweep.trials= is for sweep.search=random or tpe; a grid has all combinations")
        for override in overrides:
            if isinstance(override.value(), IntervalSweep):
                raise UsageError(
                    f"{override.input_line}: a grid cannot sweep an interval: add "
                    "sweep.search=random sweep.trials=20, or tpe"
                )
        self.is_adaptive = False
        self.history: list[list[str]] = []
        self._points = [list(point) for point in BasicSweeper.split_arguments(list(overrides), None)[0]]
        if not self._points:
            globs = " ".join(str(item.input_line) for item in overrides if isinstance(item.value(), Glob))
            raise UsageError(
                f"{globs}: no option of a config group matches; use KEY=A,B for the values of a key"
            )

    def ask(self, num_parallel: int) -> list[list[str]]:
        """Returns all points, the first time."""
        points, self._points = self._points, []
        return points

    def tell(self, losses: Sequence[float | None]) -> None:
        """Does nothing."""

    def list_boundary_points(self) -> list[list[str]]:
        """Returns none: all points are validated before the first starts."""
        return []

    def describe(self, num_first: int) -> str:
        """Returns the number of points."""
        return f"{num_first} points"


class Dimension:
    """One key of the space, with an interval or choices."""

    def __init__(self, override: Override):
        """Raises UsageError for an interval that is empty or that cannot be logarithmic."""
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
        """Returns the override that sets the key to `value`."""
        if not self.choices and not self.is_integer:
            value = min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.low), self.high)
        return f"{self.key}={value}"

    def parse_override(self, override: str) -> Any:
        """Returns the value that `override` sets; None: it sets another key, or a value outside the space."""
        key, _, text = override.partition("=")
        if key != self.key:
            return None
        if self.choices:
            return text if text in self.choices else None
        try:
            value = int(text) if self.is_integer else float(text)
        except ValueError:
            return None
        return value if self.low <= value <= self.high else None

    def list_boundary_overrides(self) -> list[str]:
        """Returns the overrides for both bounds, or for each choice."""
        return [self.format_override(value) for value in self.choices or (self.low, self.high)]


class SampledSearch:
    """A given number of points, sampled by Optuna."""

    def __init__(
        self, sampler: str, trials: int, seed: int, space: Sequence[Dimension], fixed_overrides: Sequence[str]
    ):
        self.sampler_name, self.trials, self.seed = sampler, trials, seed
        self.space, self.fixed_overrides = space, fixed_overrides
        self.is_adaptive = sampler != "random"
        self.history: list[list[str]] = []
        self._restored: list[list[str]] = []
        self._losses: list[float | None] = []
        self._distributions = {dimension.key: dimension.distribution for dimension in space}

    def restore_history(self, tried: Iterable[Sequence[str]]) -> None:
        """Starts with the points of an earlier search that are in this space."""
        valid = [list(point) for point in tried if self._parse_values(point) is not None]
        self._restored = valid[: self.trials]

    def ask(self, num_parallel: int) -> list[list[str]]:
        """Returns the restored points first; then all points, or `num_parallel` of them in an adaptive search."""
        num_asked = len(self.history)
        self.history += self._restored
        if self.is_adaptive:
            target = len(self._restored) or max(TPE_STARTUP_TRIALS, num_asked + num_parallel)
        else:
            target = self.trials
        self._restored = []
        while len(self.history) < min(target, self.trials):
            self.history.append(self._sample_point())
        return [[*self.fixed_overrides, *point] for point in self.history[num_asked:]]

    def tell(self, losses: Sequence[float | None]) -> None:
        """Records the results from which an adaptive search learns."""
        self._losses += losses

    def list_boundary_points(self) -> list[list[str]]:
        """Returns a point for each bound and choice of each key; none if all points are sampled at once."""
        if not self.is_adaptive:
            return []
        first = [dimension.list_boundary_overrides()[0] for dimension in self.space]
        return [
            [*self.fixed_overrides, *first[:index], override, *first[index + 1 :]]
            for index, dimension in enumerate(self.space)
            for override in dimension.list_boundary_overrides()
        ]

    def describe(self, num_first: int) -> str:
        """Returns the number of points, the sampler, and how many are known now."""
        known = f", the first {num_first} now" if num_first < self.trials else ""
        return f"{self.trials} points, sampled by {self.sampler_name}{known}"

    def _sample_point(self) -> list[str]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        import numpy as np

        seed = np.random.SeedSequence([self.seed, len(self.history)]).generate_state(1)[0]
        study = optuna.create_study(sampler=SAMPLERS[self.sampler_name](int(seed)))
        if self.is_adaptive:
            study.add_trials([self._build_optuna_trial(index) for index in range(len(self.history))])
        values = study.ask(self._distributions).params
        return [dimension.format_override(values[dimension.key]) for dimension in self.space]

    def _build_optuna_trial(self, index: int) -> FrozenTrial:
        """Returns an earlier point as a trial: complete with its loss, failed, or still running."""
        from optuna.trial import TrialState, create_trial

        loss = self._losses[index] if index < len(self._losses) else None
        has_loss = loss is not None and math.isfinite(loss)
        state = TrialState.COMPLETE if has_loss else TrialState.FAIL
        return create_trial(
            state=state if index < len(self._losses) else TrialState.RUNNING,
            value=loss if has_loss else None,
            params=self._parse_values(self.history[index]),
            distributions=self._distributions,
        )

    def _parse_values(self, overrides: Sequence[str]) -> dict[str, Any] | None:
        """Returns key → value; None if the overrides are not a point of this space."""
        if len(overrides) != len(self.space):
            return None
        values = {
            dimension.key: dimension.parse_override(override)
            for dimension, override in zip(self.space, overrides, strict=True)
        }
        return None if None in values.values() else values


def _build_random_sampler(seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _build_tpe_sampler(seed: int) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=TPE_STARTUP_TRIALS)


SAMPLERS = {"random": _build_random_sampler, "tpe": _build_tpe_sampler}
"""Value of sweep.search, besides grid → the function that builds its sampler from a seed."""
