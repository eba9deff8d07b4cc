"""What the tests of whole commands share: a small setting, and what a run wrote of itself."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

SMALL = (
    "model=llama_pico",
    "sequence_len=64",
    "batch.micro_batch_size=2",
    "tokenizer.vocab_size=600",
    "data.validation_fraction=0.1",
    "steps=4",
    "eval_every=4",
)

Command = Callable[..., subprocess.CompletedProcess[str]]


def status(folder: Path) -> dict[str, object]:
    """status.json of a run's folder."""
    return json.loads((folder / "status.json").read_text(encoding="utf-8"))


def rows(folder: Path) -> list[dict[str, str]]:
    """The table that a sweep in `folder` ended with."""
    with open(folder / "table.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))
