"""Scores in the lines of a training: their names, and the same form as in the tables."""

from __future__ import annotations

import pytest
from task_results import make_choices_result

from krill.errors import UsageError
from krill.evaluation.evaluate import find_evaluators
from krill.evaluation.results import Score
from krill.evaluation.score_metrics import (
    check_best_metric,
    describe_result,
    format_metric,
    list_main_metrics,
    list_metrics,
)
from krill.evaluation.score_table import format_scores


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("english_pairs/accuracy", 0.5128, "english_pairs 51.3 %"),
        ("text/bits_per_byte", 2.6071, "text 2.607 bits per byte"),
        ("kobest/acc", 0.5128, "kobest 51.3 % acc"),
        ("arc_easy/acc_norm/part", 0.25, "arc_easy 25.0 % acc norm"),
        ("kobest/f1", 0.5128, "kobest 0.513 f1"),
    ],
)
def test_accuracies_are_percentages_whoever_names_them(name: str, value: float, expected: str) -> None:
    assert format_metric(name, value) == expected


def test_an_accuracy_of_lm_eval_has_one_form_in_lines_and_tables() -> None:
    score = Score(name="", metric="acc", value=0.625, low=0.5, high=0.75, items=8, chance=0.25)
    result = make_choices_result([1, 0], "kobest").model_copy(update={"kind": "lm_eval", "scores": (score,)})
    assert describe_result(result) == "kobest 62.5 % acc (50.0 % to 75.0 %, chance 25.0 %)"
    assert format_scores([result], None)[1].split() == (
        ["kobest", "acc", "62.5", "%", "50.0", "%", "to", "75.0", "%", "8", "25.0", "%"]
    )


def test_accuracies_per_byte_of_phenomena_are_not_displayed() -> None:
    scores = tuple(
        Score(name=name, metric=metric, value=0.5, items=2)
        for name in ("", "articles")
        for metric in ("accuracy", "accuracy_per_byte")
    )
    result = make_choices_result([1, 0]).model_copy(update={"scores": scores})
    metrics = list_metrics([result])
    assert list(metrics) == [
        "english_pairs/accuracy", "english_pairs/accuracy_per_byte", "english_pairs/accuracy/articles",
    ]  # fmt: skip
    assert list(list_main_metrics(metrics)) == ["english_pairs/accuracy"]
    assert len(format_scores([result], None)) == 1 + len(metrics)


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_table_keeps_the_metrics_apart(width: int) -> None:
    scores = tuple(
        Score(name=name, metric=metric, value=0.5, low=0.4, high=0.6, items=300, chance=0.5, trigram=0.7)
        for name in ("", "agreement_across_clause")
        for metric in ("accuracy", "accuracy_per_byte")
    )
    lines = format_scores([make_choices_result([1, 0]).model_copy(update={"scores": scores})], width)
    assert max(map(len, lines)) <= width
    starts = [line.split()[:2] for line in lines[1:] if line.startswith("english_pairs")]
    assert [name for _, name in starts[:2]] == ["accuracy", "accuracy"]
    assert sum("byte" in line for line in lines) == 1
    assert starts[2][1].startswith("agreement_")


def test_a_metric_that_is_not_recorded_cannot_be_the_best_one() -> None:
    evaluators = list(find_evaluators(["text", "english_pairs"]).values())
    for name in ("eval_loss", "text/bits_per_byte/books", "english_pairs/accuracy/many_much"):
        check_best_metric(name, evaluators)
    for name in ("cloze/accuracy", "english_pairs/accuracy_per_byte/many_much"):
        with pytest.raises(UsageError, match=f"best_metric={name}: no such score"):
            check_best_metric(name, evaluators)
