"""krill-evaluate on several ranks: the numbers of one process, and one line when a rank is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from console import get_preloaded_environment
from stores import write_store

from krill.cli import app, evaluate
from krill.evaluation.results import TaskResult, read_results
from krill.launch import evaluation_ranks
from krill.launch.supervise import ProcessGroup
from krill.runs.record import write_status
from krill.tokenizer.artifact import TokenizerFolder

TEXT = [
    ("books", f"Line {number} of a text is here, and {number * 7} words follow it.") for number in range(20)
]


@pytest.fixture
def run(model: Any, tokenizer: TokenizerFolder, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    store = write_store(tmp_path / "store", tokenizer, TEXT, TEXT)
    folder = tmp_path / "run"
    model.save_pretrained(folder / "model")
    tokenizer.copy_to(folder / "model", 64)
    data = {"folder": str(store.folder), "signature": store.signature}
    write_status(folder, {"state": "finished", "signature": "r" * 64, "data": data})
    return folder


def read_by_task(folder: Path) -> dict[str, TaskResult]:
    return {result.task: result for result in read_results(folder)}


RunEvaluate = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def run_evaluate(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> RunEvaluate:
    """run_evaluate("tasks=…") returns the exit code and the lines of standard output and error."""
    monkeypatch.chdir(tmp_path)
    for name, value in get_preloaded_environment().items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> tuple[int, list[str], list[str]]:
        words = [str(run), *arguments]
        code = app.main("evaluate", evaluate.run_task, words, "model", evaluate.prepare_arguments, True)
        output = capfd.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return call


def test_two_ranks_have_the_numbers_of_one_process(run_evaluate: RunEvaluate, tmp_path: Path) -> None:
    arguments = ("tasks=[text,english_pairs]", "limit=2", "contamination=true")
    code, one, _ = run_evaluate(*arguments, "output=one")
    assert code == 0
    code, two, err = run_evaluate(*arguments, "output=two", "hardware.processes=2")
    assert code == 0, err
    assert (two[:-1], two[-1]) == (one[:-1], "two/evaluations")
    assert sum(line.startswith("english_pairs  ") for line in err) == 1  # rank 0 logs for all
    results = read_by_task(tmp_path / "one"), read_by_task(tmp_path / "two")
    assert results[0].keys() == results[1].keys() == {"text", "english_pairs"}
    for task, expected in results[0].items():
        result = results[1][task]
        assert (result.signature, result.notes) == (expected.signature, expected.notes)
        for name, values in expected.outcomes.items():
            assert np.allclose(result.get_outcomes(name), values, rtol=0, atol=1e-6)
    _, again, err = run_evaluate(*arguments, "output=two", "hardware.processes=2")
    assert again == two
    assert sum(" found " in line for line in err) == 2


def test_a_killed_rank_ends_the_command_with_one_line(
    run: Path, run_evaluate: RunEvaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killer(ProcessGroup):
        """Kills rank 1 as soon as it runs."""

        def start(self, number: int, *arguments: Any) -> None:
            super().start(number, *arguments)
            if number == 1:
                os.kill(self._running[1].pid, signal.SIGKILL)

    monkeypatch.setattr(evaluation_ranks, "ProcessGroup", Killer)
    code, out, err = run_evaluate("tasks=text", "hardware.processes=2")
    assert (code, out) == (1, [])
    assert [line for line in err if "error" in line.lower()] == [
        "krill-evaluate: error: rank 1 was killed by SIGKILL; the results so far are kept, run the same command to "
        "evaluate the rest"
    ]
    assert "Traceback" not in "".join(err)
    assert list(run.rglob("text-*.json")) == []
