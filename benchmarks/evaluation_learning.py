"""Question: do the bundled tasks tell a longer training from a shorter one?

    english   the default run of krill-train, and one 8 times as long
    korean    the same model on the Korean text of --korean, in rows of 128 tokens

Each pair of runs is compared item by item: bits per byte of held-out text by a paired bootstrap, the accuracy of
minimal pairs and cloze by McNemar's test, and each phenomenon with p-values that hold for all of them together
(Holm). Runs that are finished in --folder are not repeated. Prints a table and writes
results/evaluation_learning.json, or the file of --result.

    python benchmarks/evaluation_learning.py --korean ko.parquet         (3 hours on two cores)
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from krill.evaluation.bundled import build_pair_task
from krill.evaluation.compare import compare_results
from krill.evaluation.results import TaskResult, read_results
from krill.evaluation.statistics import compare_accuracies, correct_p_values
from krill.runs.record import read_versions

SIGNIFICANT = 0.05
SETTING = ("optimizer=muon_moonlight", "rule=off")


def train(folder: Path, name: str, steps: int, arguments: list[str]) -> Path:
    """Trains a run of `steps` steps, unless it is finished, and returns its folder."""
    run = folder / name
    intervals = [f"eval_every={min(steps, 1000)}", f"save_every={min(steps, 500)}"]
    run_krill("train", f"name={name}", f"steps={steps}", f"output={run}", *SETTING, *intervals, *arguments)
    return run


def run_krill(command: str, *arguments: str) -> None:
    """Runs a command of krill; its output goes to the terminal."""
    subprocess.run([sys.executable, "-m", "krill", command, *arguments], check=True)


def evaluate(run: Path, tasks: list[str]) -> dict[str, TaskResult]:
    """Returns the results of a run by task."""
    run_krill("evaluate", f"model={run}", f"tasks=[{','.join(tasks)}]")
    return {result.task: result for result in read_results(run) if result.task in tasks}


def compare(shorter: TaskResult, longer: TaskResult) -> dict[str, Any]:
    """Returns the scores of two runs on a task, and the p-value of their difference."""
    comparison = compare_results([shorter], [longer])
    assert comparison is not None, "the items are not the same"
    p = comparison.p_value
    one, other = shorter.main_score, longer.main_score
    return {
        "task": shorter.task, "metric": one.metric, "items": one.items,
        "shorter": describe(shorter), "longer": describe(longer), "p": p,
        "longer_is_better": (other.value > one.value) == one.higher_is_better and p < SIGNIFICANT,
    } | ({"phenomena": compare_phenomena(shorter, longer)} if shorter.task.endswith("_pairs") else {})  # fmt: skip


def describe(result: TaskResult) -> dict[str, float | None]:
    """Returns the score of a task with its interval, and what n-gram models score."""
    score = result.main_score
    values = {
        "score": score.value, "low": score.low, "high": score.high, "unigram": score.unigram,
        "trigram": score.trigram,
    }  # fmt: skip
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def compare_phenomena(shorter: TaskResult, longer: TaskResult) -> list[dict[str, Any]]:
    """Returns the accuracies on each phenomenon, with the p-values of all differences together."""
    labels = np.array([item.phenomenon for item in build_pair_task(shorter.task).items])
    names = list(dict.fromkeys(labels.tolist()))
    one, other = shorter.get_outcomes("correct"), longer.get_outcomes("correct")
    p_values = correct_p_values(
        [compare_accuracies(one[labels == name], other[labels == name]) for name in names]
    )
    trigram = {score.name: score.trigram for score in longer.scores if score.metric == "accuracy"}
    return [
        {
            "phenomenon": name, "shorter": round(float(one[labels == name].mean()), 3),
            "longer": round(float(other[labels == name].mean()), 3), "trigram": round(trigram[name] or 0, 3),
            "p": p,
        }
        for name, p in zip(names, p_values, strict=True)
    ]  # fmt: skip


def print_table(language: str, rows: list[dict[str, Any]]) -> None:
    """Prints the comparison of two runs."""
    for row in rows:
        verdict = "longer is better" if row["longer_is_better"] else "no significant gain"
        print(
            f"{language:8} {row['task']:14} {row['shorter']['score']:.4f} -> {row['longer']['score']:.4f}  "
            f"p {row['p']:.1e}  {verdict}"
        )
        for part in row.get("phenomena", ()):
            print(
                f"    {part['phenomenon']:28} {part['shorter']:.3f} -> {part['longer']:.3f}  "
                f"trigram {part['trigram']:.3f}  p {part['p']:.1e}"
            )


def main() -> None:
    """Runs the measurement, prints its tables and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--korean", type=Path, help="a file of Korean text; without it only English")
    parser.add_argument("--folder", type=Path, default=Path("outputs/evaluation_learning"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--times", type=int, default=8, help="how much longer the longer run is")
    parser.add_argument(
        "--result", type=Path, default=Path(__file__).parent / "results" / "evaluation_learning.json"
    )
    arguments = parser.parse_args()
    languages = {"english": ["data=python_docs"]}
    if arguments.korean:
        languages["korean"] = [
            "data=files",
            f"data.paths=[{arguments.korean.absolute()}]",
            "sequence_len=128",
        ]
    report: dict[str, Any] = {
        "date": date.today().isoformat(), "processor": platform.processor() or platform.machine(),
        "versions": read_versions("krill", "torch", "transformers"),
        "steps": [arguments.steps, arguments.steps * arguments.times],
    }  # fmt: skip
    for language, data in languages.items():
        tasks = ["text", f"{language}_pairs", "cloze"]
        results = [
            evaluate(train(arguments.folder, f"{language}_{steps}", steps, data), tasks)
            for steps in report["steps"]
        ]
        report[language] = [compare(results[0][task], results[1][task]) for task in tasks]
        print_table(language, report[language])
    arguments.result.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
