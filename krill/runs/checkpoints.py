"""Checkpoints appear whole or not at all, and the oldest go.

checkpoints/checkpoint-100/     weights, optimizer, schedule, RNG, trainer state
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


def found(folder: Path) -> list[Path]:
    """The checkpoints of a run's checkpoints/ folder, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=step)


def step(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A hidden folder to save into; what stands in it when the block ends gets its final name."""
    partial = folder / PARTIAL
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    for checkpoint in partial.iterdir():
        _sync(checkpoint)
        final = folder / checkpoint.name
        if final.exists():
            shutil.rmtree(final)
        os.replace(checkpoint, final)
    partial.rmdir()


def _sync(folder: Path) -> None:
    """Bring every file of `folder` to the disk, so that a power cut cannot leave an empty one behind."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def rotate(folder: Path, keep: int, spared: int | None = None) -> None:
    """Delete all but the newest `keep`, and that of the step `spared`."""
    for checkpoint in found(folder)[:-keep]:
        if step(checkpoint) != spared:
            shutil.rmtree(checkpoint)
