"""Several models in one table: who is first, what differs by chance, and what is not compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from task_results import make_choices_result, make_text_result

from krill.evaluation.compare import BOOTSTRAP, MCNEMAR, SEEDS, compare_results
from krill.evaluation.comparison_json import comparison_to_json
from krill.evaluation.comparison_table import format_comparison
from krill.evaluation.configurations import build_configurations
from krill.evaluation.evaluated_model import EvaluatedModel, read_points
from krill.evaluation.ranking import Ranking, rank_configurations
from krill.evaluation.results import TaskResult, write_results
from krill.runs.record import write_status
from krill.tables import measure_width

DOCUMENTS = 100


def make_model(name: str, seed: int | None, results: Sequence[TaskResult], lr: str = "1") -> EvaluatedModel:
    return EvaluatedModel(
        path=f"runs/{name}", results={result.task: result for result in results}, run=Path("runs", name),
        name=name if seed is None else "run", seed=seed, overrides=(f"lr={lr}",), configuration=f"lr {lr}",
    )  # fmt: skip


def make_seeds(
    lr: str, mean: float, spread: float, count: int, random: np.random.Generator
) -> list[EvaluatedModel]:
    """Returns models of one configuration, whose bits per byte vary by `spread` over seeds, and little by item."""
    items = np.linspace(-0.5, 0.5, DOCUMENTS)
    return [
        make_model(
            f"{lr}-{seed}", seed,
            [make_text_result(mean + items + random.normal(0, spread) + random.normal(0, 0.01, DOCUMENTS))], lr,
        )
        for seed in range(count)
    ]  # fmt: skip


def rank(models: Sequence[EvaluatedModel], pool_seeds: bool = True) -> Ranking:
    return rank_configurations(build_configurations(models, pool_seeds))


def list_significant(ranking: Ranking, task: str = "text") -> list[str]:
    return [
        ranking.rows[index].label
        for (index, compared), one in ranking.comparisons.items()
        if compared == task and one.is_significant
    ]


def test_the_best_model_is_first_and_others_are_compared_with_it_item_by_item() -> None:
    items = np.linspace(0, 2, DOCUMENTS)
    right = np.arange(DOCUMENTS) % 2
    worse_pairs = np.where(np.arange(DOCUMENTS) < 30, 0, right)  # 15 fewer
    models = [
        make_model("worse", None, [make_text_result(items + 1.1), make_choices_result(worse_pairs)]),
        make_model("best", None, [make_text_result(items + 1.0), make_choices_result(right)]),
        make_model("close", None, [make_text_result(items[::-1] + 1.001), make_choices_result(1 - right)]),
    ]
    ranking = rank(models)
    assert [row.label for row in ranking.rows] == ["best", "close", "worse"]
    assert list_significant(ranking) == ["worse"]
    assert list_significant(ranking, "english_pairs") == ["worse"]
    assert {one.comparison.test for one in ranking.comparisons.values()} == {MCNEMAR, BOOTSTRAP}
    assert ranking.num_pairs == 6
    lines = format_comparison(ranking, 80)
    assert lines[0].split() == ["#", "model", "text", "english_pairs"]
    assert lines[1].split() == ["1", "best", "2.000", "50.0", "%"]
    assert lines[3].split() == ["3", "worse", "2.100", "*", "35.0", "%", "*"]
    assert lines[4].split() == ["chance", "50.0", "%"]


def test_what_was_cut_or_is_contaminated_is_named_below_the_table_with_the_models() -> None:
    shares = {"contaminated": 1, "contaminated_share": 0.25}

    def build(name: str, seed: int | None, lr: str, on: float, **notes: int) -> EvaluatedModel:
        scores = {"score_on_contaminated": on, "score_without_contaminated": 0.5}
        pairs = make_choices_result([1, 0, 1, 1]).model_copy(update={"notes": shares | scores | notes})
        cloze = make_choices_result([1, 0], "cloze", "words").model_copy(update={"notes": {"truncated": 2}})
        return make_model(name, seed, [pairs, cloze], lr)

    models = [build("a", 0, "1", 1.0), build("b", 1, "1", 0.8), build("c", 0, "2", 0.5, truncated=3)]
    lines = format_comparison(rank(models), None)
    cut = "items are longer than the context of the model, and were cut at their beginnings"
    line = "english_pairs, lr={}: 1 of 4 items (25.0 %) are in the training text; accuracy 50.0 % without them, {} on"
    assert [line for line in lines if "items are" in line or "in the training" in line] == [
        f"{line.format(1, '90.0 %')} them",
        f"english_pairs, lr=2: 3 {cut}",
        f"{line.format(2, '50.0 %')} them",
        f"cloze: 2 {cut}",
    ]
    single = rank(models, pool_seeds=False)
    assert sum("on them" in line for line in format_comparison(single, None)) == 3


def test_runs_with_other_held_out_text_are_ranked_apart_and_the_table_names_what_it_does_not_compare() -> (
    None
):
    def build(name: str, bits: float, text: str) -> EvaluatedModel:
        results = [make_text_result(np.full(DOCUMENTS, bits), text), make_choices_result([1, 0, 1, 1])]
        return make_model(name, None, [*results, make_choices_result([1, 0], "cloze", f"words of {text}")])

    ranking = rank([build("a", 2.0, "english"), build("b", 1.0, "korean"), build("c", 1.5, "english")])
    assert [[row.label for row in ranked.rows] for ranked in ranking.sets] == [["c", "a"], ["b"]]
    assert {(ranking.rows[index].label, task) for index, task in ranking.comparisons} == {
        ("a", "text"), ("a", "english_pairs"), ("b", "english_pairs"), ("a", "cloze"),
    }  # fmt: skip
    lines = format_comparison(ranking, 100)
    assert lines[0] == f"text: {DOCUMENTS} items, english"
    assert f"text: {DOCUMENTS} items, korean" in lines
    assert "cloze: other items, which are not compared: c, a | b" in lines


def test_without_bits_per_byte_of_all_a_task_that_all_have_decides() -> None:
    models = [
        make_model("a", None, [make_text_result([1.0, 1.0]), make_choices_result([1, 0, 0, 0])]),
        make_model("b", None, [make_choices_result([1, 1, 1, 0])]),
    ]
    assert [row.label for row in rank(models).rows] == ["b", "a"]
    assert "text, b: no result" in format_comparison(rank(models), None)


def test_a_line_below_the_table_names_a_few_models() -> None:
    one, other = make_choices_result([1, 0]), make_choices_result([1, 0], "cloze", "words")
    models = [make_model(f"run{index}", None, [one, *([] if index else [other])]) for index in range(9)]
    lines = format_comparison(rank(models), None)
    assert "cloze, run1, run2, run3, run4, run5 and 3 more: no result" in lines


def test_seeds_of_one_configuration_are_one_row() -> None:
    random = np.random.default_rng(1)
    models = [*make_seeds("1", 2.0, 0.02, 7, random), *make_seeds("2", 1.8, 0.02, 3, random)]
    ranking = rank(models)
    assert [(row.label, len(row.models)) for row in ranking.rows] == [("lr=2", 3), ("lr=1", 7)]
    assert list_significant(ranking) == ["lr=1"]
    assert [one.comparison.test for one in ranking.comparisons.values()] == [SEEDS]
    lines = format_comparison(ranking, 80)
    assert lines[0].split() == ["#", "model", "seeds", "text"]
    assert "1.8" in lines[1]
    assert "±" in lines[1]
    value = comparison_to_json(ranking)["sets"][0]["rows"][1]
    assert value["scores"]["text"]["seeds"]["count"] == len(value["models"]) == 7
    assert value["scores"]["text"]["seeds"]["item_share"] < 0.05


def test_a_difference_that_seeds_make_as_well_is_not_significant() -> None:
    """Item by item every single run differs from the others; over seeds the configurations do not."""
    random = np.random.default_rng(2)
    models = [*make_seeds("1", 2.0, 0.05, 4, random), *make_seeds("2", 2.01, 0.05, 4, random)]
    assert list_significant(rank(models)) == []
    single = rank(models, pool_seeds=False)
    assert len(list_significant(single)) == 7
    assert {row.label for row in single.rows} == {f"lr={lr} seed={seed}" for lr in "12" for seed in range(4)}


def test_one_run_is_compared_with_several_seeds() -> None:
    random = np.random.default_rng(3)
    several = make_seeds("1", 2.0, 0.05, 7, random)
    assert list_significant(rank([*several, *make_seeds("2", 1.95, 0, 1, random)])) == []
    assert list_significant(rank([*several, *make_seeds("2", 1.5, 0, 1, random)])) == ["lr=1"]


def test_other_items_or_unknown_ones_are_not_compared() -> None:
    one, other = make_choices_result([1, 0]), make_choices_result([1, 0], items_hash="other")
    assert compare_results([one], [other]) is None
    assert compare_results([one], [one.model_copy(update={"outcomes": {}})]) is None


def test_a_mean_of_tasks_is_not_compared_by_items_that_have_another_mean() -> None:
    """Of a group of two tasks with 2 and 8 items, the first model is better by item, the second one by task."""
    results = []
    for name, correct in (("one", [0, 0, *[1] * 6, 0, 0]), ("other", [1, 1, 0, 0, *[0.5] * 6])):
        values = np.array(correct, float)
        value = (values[:2].mean() + values[2:].mean()) / 2
        score = make_choices_result([1]).main_score.model_copy(update={"metric": "acc", "value": value})
        update = {"kind": "lm_eval", "scores": (score,), "outcomes": {"acc": values.tolist()}}
        results.append(make_choices_result(values, "group").model_copy(update=update))
        assert results[-1].compute_item_scores() is None, name
    assert compare_results(results[:1], results[1:]) is None
    lines = format_comparison(
        rank([make_model(str(index), None, [one]) for index, one in enumerate(results)]), None
    )
    assert "group: the models are not compared, its score is not a mean over items" in lines
    score = results[0].main_score.model_copy(update={"value": 0.6})
    assert results[0].model_copy(update={"scores": (score,)}).compute_item_scores() is not None


def test_the_same_weights_count_once_and_parts_of_an_evaluation_are_joined() -> None:
    text, pairs = make_text_result([1.0, 2.0]), make_choices_result([1, 0])
    parts = [result.model_copy(update={"weights": "w"}) for result in (text, pairs)]
    (row,) = build_configurations([make_model("a", 0, [part]) for part in parts])
    assert (row.tasks, len(row.models)) == (["text", "english_pairs"], 1)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_terminal(width: int) -> None:
    results = [
        make_choices_result([1, 0, 1], task, task) for task in map("a_long_task_name_{}".format, range(9))
    ]
    models = [make_model(f"a name of a run that is long {index}", None, results) for index in range(2)]
    lines = format_comparison(rank(models), width)
    assert max(map(measure_width, lines)) <= width
    assert all(sum(task in line.split() for line in lines) == 1 for task in models[0].results)


def test_a_model_is_read_with_what_its_run_recorded(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    runs = []
    for seed, lr in ((0, 1.0), (1, 1.0), (0, 2.0)):
        run = tmp_path / f"{seed}-{lr}"
        (run / "model").mkdir(parents=True)
        overrides = [f"seed={seed}", f"lr={lr}", "eval_every=5", "sweep.max_parallel=1"][: 3 + seed]
        status = {"state": "finished", "signature": "s", "name": f"run {seed}", "overrides": overrides}
        write_status(run, status)
        config = {"seed": seed, "lr": lr, "name": f"run {seed}", "output": str(run), "log_every": seed + 1}
        (run / "config.yaml").write_text(json.dumps(config))
        runs.append(run / "model")
    models = [
        EvaluatedModel.read(str(run), [make_choices_result([seed, 1])]) for seed, run in enumerate(runs)
    ]
    rows = build_configurations(
        [*models, EvaluatedModel.read(str(tmp_path / "plain"), [make_choices_result([1])])]
    )
    assert [(len(row.models), row.first.seed) for row in rows] == [(2, 0), (1, 0), (1, None)]
    assert [row.label.split()[-1] for row in rows[:2]] == ["lr=1.0", "lr=2.0"]
    assert rows[2].label.endswith("plain")


@pytest.mark.parametrize(("limits", "rows"), [((None, None), 1), ((None, 5), 2)])
def test_presets_that_differ_in_tasks_alone_are_one_row(
    tmp_path: Path, limits: tuple[int | None, int | None], rows: int
) -> None:
    points = []
    for task, limit in zip(("korean_pairs", "english_pairs"), limits, strict=True):
        folder = tmp_path / task
        update = {"weights": "w", "signature": task}
        write_results(folder, [make_choices_result([1, 0], task, task).model_copy(update=update)])
        config = {"model": {"path": "nowhere"}, "evaluation": {"tasks": [task], "limit": limit}}
        (folder / "config.yaml").write_text(json.dumps(config))
        points.append((folder, [f"evaluation={task.partition('_')[0]}", "model.path=nowhere"]))
    table = build_configurations(read_points(points))
    assert len(table) == rows
    if rows == 1:
        assert (set(table[0].tasks), table[0].label) == ({"korean_pairs", "english_pairs"}, "nowhere")


def test_the_table_names_what_it_is_ordered_by_and_corrects_only_several_comparisons() -> None:
    pairs = make_choices_result([1, 0, 1, 1])
    models = [
        make_model("text and pairs", None, [make_text_result([1.0, 2.0]), pairs]),
        make_model("pairs", None, [pairs]),
    ]
    lines = format_comparison(rank(models), None)
    assert "order: by english_pairs; not all models have text" in lines
    assert not any("Holm" in line for line in lines)
    models = [make_model(name, None, [make_text_result([1.0, 2.0]), pairs]) for name in "ab"]
    lines = format_comparison(rank(models), None)
    assert not any(line.startswith("order") for line in lines)
    assert any("Holm's correction for 2 comparisons" in line for line in lines)
