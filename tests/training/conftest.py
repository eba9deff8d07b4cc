"""Fixtures: a small text, prepared once per session, and runs of a tiny model on it."""

from __future__ import annotations

import json
import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compositions import compose
from console import get_preloaded_environment

from krill.cli import app
from krill.cli.train import run_task
from krill.config.overrides import quote_override
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.data.cache import get_or_prepare_store, get_or_train_tokenizer
from krill.data.inputs import RunInputs
from krill.data.packing import Rows, pack
from krill.runs.json_lines import read_metrics
from krill.runs.plots import plot_losses
from krill.runs.record import read_status
from krill.tokenizer.artifact import TokenizerFolder
from krill.training.run import run_training

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "then",
    "강아지가",
    "여우를",
    "따라",
    "뛰어간다",
    "again",
    "while",
    "고양이는",
    "잔다",
]


@pytest.fixture(autouse=True, scope="session")
def _one_plot() -> Iterator[None]:
    """Draw the losses of the first run alone, for all runs of this process: a plot is a tenth of a small training."""
    drawn: list[bytes] = []

    def plot(folder: Path, *baselines: float | None) -> Path:
        drawn[:] = drawn or [plot_losses(folder, *baselines).read_bytes()]
        (folder / "loss.png").write_bytes(drawn[0])
        return folder / "loss.png"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("krill.runs.plots.plot_losses", plot)
        yield


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 short documents, English and Korean, of very different lengths."""
    rng = random.Random(0)
    documents = [" ".join(rng.choices(WORDS, k=rng.randint(2, 20))) + f" {n}" for n in range(60)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the tokenizer and the tokens that all tests share."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def overrides(texts: Path) -> list[str]:
    """Overrides of every run of these tests."""
    return [
        "model=llama_pico", "sequence_len=64", "batch.micro_batch_size=2", "data=files", f"data.paths=[{texts}]",
        "data.min_chars=0", "data.validation_fraction=0.2", "tokenizer.vocab_size=320", "hardware.threads=1",
        "device=cpu", "log_every=1", "eval_every=100", "save_every=2", "steps=4", "rule=off",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def make_config(overrides: list[str]) -> Callable[..., TrainConfig]:
    """make_config("lr=1"): returns the validated configuration of a run."""

    def make(*more: str) -> TrainConfig:
        combined = [*overrides, *more]
        if any(override.startswith("epochs=") for override in more):
            combined += ["steps=null"]
        return validate_config(TrainConfig, compose("train", *map(quote_override, combined)))

    return make


@dataclass(frozen=True)
class PreparedData:
    store: Path
    tokenizer: TokenizerFolder


@pytest.fixture(scope="session")
def prepared_data(make_config: Callable[..., TrainConfig], outputs: Path) -> PreparedData:
    """Tokenizer and token store of the text."""
    config = make_config()
    inputs = RunInputs(config.data, config.tokenizer, outputs)
    tokenizer = get_or_train_tokenizer(inputs)
    return PreparedData(get_or_prepare_store(config, inputs, tokenizer), tokenizer)


@pytest.fixture
def train_in(prepared_data: PreparedData, tmp_path: Path) -> Callable[[TrainConfig, str], Path]:
    """train_in(config, "a"): trains in the folder a of tmp_path; returns the folder."""

    def run(config: TrainConfig, name: str = "run") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        run_training(config, folder, store=prepared_data.store, tokenizer=prepared_data.tokenizer.folder)
        return folder

    return run


@dataclass(frozen=True)
class TrainCommand:
    """Calls krill-train in this process, with all runs in one outputs folder."""

    outputs: Path
    overrides: list[str]
    monkeypatch: pytest.MonkeyPatch
    seen: dict[Path, int] = field(default_factory=dict)
    """Run folder → number of runs before it; the names of two runs that start in the same second do not say that."""

    def __call__(self, *more: str) -> int:
        self.monkeypatch.setattr(sys, "argv", ["krill-train"])
        try:
            return app.main("train", run_task, [*self.overrides, *more])
        finally:
            for folder in self.outputs.glob("runs/*/*"):
                self.seen.setdefault(folder, len(self.seen))

    def runs(self, name: str = "llama_pico") -> list[Path]:
        """Returns the folders of the runs of a name, the oldest first."""
        folders = (self.outputs / "runs" / name).glob("*")
        return sorted(folders, key=lambda folder: self.seen.get(folder, len(self.seen)))

    def states(self, name: str = "llama_pico") -> list[str]:
        return [(read_status(run) or {}).get("state", "none") for run in self.runs(name)]


@pytest.fixture
def krill_train(
    prepared_data: PreparedData,
    outputs: Path,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TrainCommand:
    """krill_train("lr=1"): runs krill-train on the shared text, without any run before; returns the exit code."""
    for kind in ("tokenizers", "data"):
        (tmp_path / kind).symlink_to(outputs / kind)
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path))
    for name, value in get_preloaded_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return TrainCommand(tmp_path, overrides, monkeypatch)


@pytest.fixture(scope="session")
def reference_run(
    prepared_data: PreparedData,
    outputs: Path,
    overrides: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """reference_run("lr=1"): the folder of an uninterrupted run, trained once per session. For reading only."""
    folder = tmp_path_factory.mktemp("references")
    for kind in ("tokenizers", "data"):
        (folder / kind).symlink_to(outputs / kind)
    runs: dict[tuple[str, ...], Path] = {}

    def train(*more: str) -> Path:
        if more not in runs:
            runs[more] = folder / f"run-{len(runs)}"
            with pytest.MonkeyPatch.context() as patch, _restored_logging():
                patch.setenv("KRILL_OUTPUTS", str(folder))
                for name, value in get_preloaded_environment().items():
                    patch.setenv(name, value)
                patch.chdir(folder)
                assert TrainCommand(folder, overrides, patch)(*more, f"output={runs[more]}") == 0
        return runs[more]

    return train


@contextmanager
def _restored_logging() -> Iterator[None]:
    log = logging.getLogger("krill")
    before = log.level, log.propagate, list(log.handlers)
    try:
        yield
    finally:
        log.level, log.propagate, log.handlers = before


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run side by side on few cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def read_losses() -> Callable[[Path], list[float]]:
    """read_losses(run): returns the training losses of a run, then its validation losses."""

    def read(folder: Path) -> list[float]:
        lines = read_metrics(folder)
        return [line[key] for key in ("loss", "eval_loss") for line in lines if key in line]

    return read


class RandomDocuments:
    """Documents of random ids in memory, with the layout of a store's split: bos 0, eos 1, pad 2."""

    pad_id = 2

    def __init__(self, lengths: Sequence[int], vocab_size: int = 50):
        rng = np.random.default_rng(0)
        documents = [np.array([0, *rng.integers(3, vocab_size, length - 2), 1]) for length in lengths]
        self.ends = np.cumsum([len(document) for document in documents]).astype(np.uint64)
        self._tokens = np.concatenate(documents)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._tokens[start:stop]


@pytest.fixture
def make_rows() -> Callable[..., Rows]:
    """make_rows([9, 20], 64): returns documents of those lengths, packed into rows of 64 tokens."""

    def make(lengths: Sequence[int], sequence_len: int, strategy: Any = "best_fit") -> Rows:
        return pack(RandomDocuments(lengths), sequence_len, strategy)

    return make
