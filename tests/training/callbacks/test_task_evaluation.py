"""Tasks evaluated during a training: the scores of krill-evaluate, and a training that does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trainings import read_metrics_without_clock

from krill.cli import app, evaluate
from krill.evaluation.results import read_results
from krill.evaluation.score_metrics import list_metrics
from krill.runs.json_lines import read_evaluations

EVALUATED = (
    "evaluation.tasks=[text,english_pairs]", "evaluation.limit=2", "evaluation.text_tokens=2000",
    "evaluation.every=2",
)  # fmt: skip


def evaluate_checkpoint(checkpoint: Path, output: Path) -> dict[str, float]:
    """Returns the scores that krill-evaluate gives a checkpoint of a run with EVALUATED."""
    arguments = [str(checkpoint), f"output={output}", *EVALUATED[:3]]
    assert app.main("evaluate", evaluate.run_task, arguments, "model", evaluate.prepare_arguments) == 0
    return list_metrics(read_results(output))


def test_the_scores_are_those_of_the_command_and_the_training_does_not_notice(
    krill_train: Any, tmp_path: Path
) -> None:
    assert krill_train("name=plain") == 0
    assert krill_train(*EVALUATED, "name=evaluated") == 0
    plain, run = (krill_train.runs(name)[0] for name in ("plain", "evaluated"))
    lines = read_evaluations(run)
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        expected = evaluate_checkpoint(
            run / f"checkpoints/checkpoint-{line['step']}", tmp_path / str(line["step"])
        )
        assert {"english_pairs/accuracy", "english_pairs/accuracy_per_byte", "text/bits_per_byte"} <= set(
            expected
        )
        assert {key: value for key, value in line.items() if "/" in key} == pytest.approx(expected, abs=1e-6)
    for file in ("model/model.safetensors", "checkpoints/checkpoint-4/optimizer.pt"):
        assert (run / file).read_bytes() == (plain / file).read_bytes()
    without = [
        line for line in read_metrics_without_clock(run) if line not in read_metrics_without_clock(plain)
    ]
    assert [line["step"] for line in without] == [2, 4]
