"""Which of several results of a task is the one of a run."""

from __future__ import annotations

import os
from pathlib import Path

from task_results import make_choices_result

from krill.evaluation.results import read_results, write_result
from krill.runs.scores import EVALUATIONS_FOLDER, read_scores


def test_the_final_model_then_most_items_then_the_newest_result_is_the_one_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / EVALUATIONS_FOLDER
    folder.mkdir()
    values = [
        ("model", [1, 1, 0]),
        ("model", [1, 0, 0]),
        ("model", [0]),
        ("checkpoints/checkpoint-2", [0] * 9),
    ]
    for index, (weights_folder, correct) in enumerate(values):
        result = make_choices_result(correct).model_copy(
            update={"weights_folder": weights_folder, "weights": weights_folder, "signature": str(index)}
        )
        write_result(folder / f"{index}.json", result)
        os.utime(folder / f"{index}.json", (index, index))
    assert [result.signature for result in read_results(tmp_path)] == ["1"]
    assert [score.value for score in read_scores(tmp_path)] == [1 / 3]
    assert [result.signature for result in read_results(tmp_path, "checkpoints/checkpoint-2")] == ["3"]
