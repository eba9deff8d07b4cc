"""The configuration of a sweep, which all commands that take -m share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from krill.config.schema.base import Processes, Section


class SweepConfig(Section):
    """How a sweep (-m) chooses and runs its points."""

    max_parallel: Literal["auto"] | Processes
    """Maximum number of points that run at once. auto: on this machine one per GPU, or on a CPU one
    per core and 4 GiB of free memory (one preparation at a time); on SLURM no limit."""
    on_failure: Literal["continue", "stop"]
    """Whether points that have not started still run after one has failed."""
    search: Literal["grid", "random", "tpe"]
    """How points are chosen: grid, every combination; random, trials points sampled at random from the same
    space; tpe, trials points sampled where earlier points had a low validation loss."""
    trials: Annotated[int, Field(gt=0, le=10**6)] | None
    """Number of points of a random or tpe search; null for a grid."""
