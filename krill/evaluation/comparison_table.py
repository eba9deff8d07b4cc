"""Several models in one table, best first, with what differs by more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from krill.evaluation.compare import BOOTSTRAP, MCNEMAR, SEEDS
from krill.evaluation.configurations import Configuration
from krill.evaluation.notes import describe_notes
from krill.evaluation.ranking import RANKING_TASK, SIGNIFICANT, RankedSet, Ranking, group_by_items
from krill.runs.scores import describe_metric, format_score_value
from krill.tables import fit_table, measure_width, wrap_text

MARK = "*"
MAX_LISTED_MODELS = 5
"""Number of models that a line below the table names."""
_MIN_LABEL_WIDTH = 24
_TEST_NAMES = {
    MCNEMAR: "McNemar's test",
    BOOTSTRAP: "paired bootstrap",
    SEEDS: "t-test over seeds and items",
}


def format_comparison(ranking: Ranking, width: int | None) -> list[str]:
    """Returns the lines of the table, what its marks mean, what was left out, and how the seeds of a row differ.

    `width`: the columns of a terminal; None: not a terminal.
    """
    lines: list[str] = []
    number = 0
    for ranked in ranking.sets:
        if len(ranking.sets) > 1:
            lines += [*([""] if lines else []), _describe_set(ranking, ranked)]
        for tasks in _split_tasks(ranking, ranked, number, width):
            lines += _format_rows(ranking, ranked, number, tasks, width)
        number += len(ranked.rows)
    lines += ["", *_wrap([*_explain(ranking), *_list_notes(ranking)], width)]
    if any(len(row.models) > 1 for row in ranking.rows):
        lines += ["", *_format_seeds(ranking, width)]
    return lines


def _format_rows(
    ranking: Ranking, ranked: RankedSet, first: int, tasks: Sequence[str], width: int | None
) -> list[str]:
    """Returns a table of the rows of a set, which are numbered from `first` in the whole ranking."""
    has_seeds = any(len(row.models) > 1 for row in ranking.rows)
    header = ("#", "model", *(["seeds"] if has_seeds else []), *tasks)
    cells = [
        (
            str(position + 1),
            row.label,
            *([str(len(row.models))] if has_seeds else []),
            *(_format_cell(ranking, first + position, row, task) for task in tasks),
        )
        for position, row in enumerate(ranked.rows)
    ]
    chances = [_format_chance(ranked, task) for task in tasks]
    if any(chances):
        cells.append(("", "chance", *([""] if has_seeds else []), *chances))
    return fit_table(header, cells, width, left=(1,), fold=(1,))


def _format_cell(ranking: Ranking, index: int, row: Configuration, task: str) -> str:
    """Returns the score of a row, with the standard deviation over its seeds and a mark."""
    value = row.compute_score(task)
    if value is None:
        return ""
    score = row.get_results(task)[0].main_score
    text = format_score_value(value, score.metric)
    if len(row.models) > 1:
        deviation = row.compute_deviation(task)
        text = f"{text.removesuffix(' %')} ± {format_score_value(deviation, score.metric)}"
    compared = ranking.comparisons.get((index, task))
    return text + (f" {MARK}" if compared and compared.is_significant else "  ")


def _format_chance(ranked: RankedSet, task: str) -> str:
    """Returns what a model without knowledge scores, in the column of `task`."""
    scores = [row.get_results(task)[0].main_score for row in ranked.rows if row.get_results(task)]
    chance = next((score.chance for score in scores if score.chance is not None), None)
    return "" if chance is None else format_score_value(chance, scores[0].metric) + "  "


def _split_tasks(ranking: Ranking, ranked: RankedSet, first: int, width: int | None) -> Iterator[list[str]]:
    """Yields the tasks whose columns fit beside the labels, in order; each part is a table of its own."""
    if width is None:
        yield list(ranking.tasks)
        return
    label = max(measure_width(row.label) for row in ranked.rows)
    spare = width - 12 - min(label, _MIN_LABEL_WIDTH)
    part: list[str] = []
    used = 0
    for task in ranking.tasks:
        cells = [
            _format_cell(ranking, first + position, row, task) for position, row in enumerate(ranked.rows)
        ]
        needed = 2 + max(map(measure_width, (task, *cells)))
        if part and used + needed > spare:
            yield part
            part, used = [], 0
        part.append(task)
        used += needed
    yield part


def _describe_set(ranking: Ranking, ranked: RankedSet) -> str:
    """Returns the heading of rows that are ranked apart."""
    task = ranking.tasks[0]
    if ranked.items_hash is None:
        return f"without {task}"
    score = ranked.rows[0].get_results(task)[0].main_score
    return f"{task}: {score.items:,} items, {ranked.items_hash[:8]}"


def _explain(ranking: Ranking) -> Iterator[str]:
    """Yields what the numbers and the marks mean."""
    by_metric: dict[str, list[str]] = {}
    for task in ranking.tasks:
        score = next(row.get_results(task)[0].main_score for row in ranking.rows if task in row.tasks)
        direction = "" if score.higher_is_better else ", lower is better"
        by_metric.setdefault(f"{describe_metric(score.metric)}{direction}", []).append(task)
    yield "; ".join(f"{', '.join(tasks)}: {metric}" for metric, tasks in by_metric.items())
    if RANKING_TASK in ranking.tasks[1:]:
        yield f"order: by {ranking.tasks[0]}; not all models have {RANKING_TASK}"
    if any(len(row.models) > 1 for row in ranking.rows):
        yield "±: standard deviation over seeds"
    if ranking.comparisons:
        tests = [one.comparison.test for one in ranking.comparisons.values()]
        names = ", ".join(name for test, name in _TEST_NAMES.items() if test in tests)
        is_any = any(one.is_significant for one in ranking.comparisons.values())
        what = (
            f"{MARK}: differs from the best of its column by more than chance"
            if is_any
            else "no model differs from the best of a column by more than chance"
        )
        correction = (
            f"; Holm's correction for {ranking.num_pairs:,} comparisons" if ranking.num_pairs > 1 else ""
        )
        yield f"{what} (p < {SIGNIFICANT:g}; {names}{correction})"
    for task in ranking.tasks:
        groups = list(group_by_items(ranking.rows, task))
        if len(groups) > 1 and (len(ranking.sets) == 1 or task != ranking.tasks[0]):
            rows = " | ".join(", ".join(ranking.rows[index].label for index in group) for group in groups)
            yield f"{task}: other items, which are not compared: {rows}"
        is_compared = any(compared == task for _, compared in ranking.comparisons)
        if not is_compared and any(len(group) > 1 for group in groups):
            yield f"{task}: the models are not compared, its score is not a mean over items"


def _list_notes(ranking: Ranking) -> Iterator[str]:
    """Yields what was left out, cut or changed in each task, with the models if it does not hold for all of them."""
    for task in ranking.tasks:
        rows = [row for row in ranking.rows if row.get_results(task)]
        labels: dict[str, list[str]] = {}
        for row in rows:
            for line in describe_notes(row.get_results(task)):
                labels.setdefault(line, []).append(row.label)
        for line, models in labels.items():
            yield f"{task}: {line}" if len(models) == len(rows) else f"{task}, {_shorten(models)}: {line}"
        if missing := [row.label for row in ranking.rows if row not in rows]:
            yield f"{task}, {_shorten(missing)}: no result"


def _shorten(labels: Sequence[str]) -> str:
    """Returns the first labels of a list, and how many others there are."""
    others = len(labels) - MAX_LISTED_MODELS
    return ", ".join(labels[:MAX_LISTED_MODELS]) + (f" and {others:,} more" if others > 0 else "")


def _format_seeds(ranking: Ranking, width: int | None) -> list[str]:
    """Returns a table of how the scores of seeds of one configuration differ, and what it means."""
    cells = []
    for row in ranking.rows:
        for task in ranking.tasks if len(row.models) > 1 else ():
            if results := row.get_results(task):
                metric, spread = results[0].main_score.metric, row.compute_spread(task)
                values = [result.main_score.value for result in results]
                cells.append((
                    row.label, task, str(len(results)),
                    *(format_score_value(value, metric) for value in (min(values), max(values))),
                    format_score_value(row.compute_deviation(task), metric, 4),
                    "" if spread is None else f"{100 * spread.item_share:.0f} %",
                ))  # fmt: skip
    header = ("model", "task", "seeds", "lowest", "highest", "std. dev.", "items")
    return [
        *fit_table(header, cells, width, left=(0, 1), fold=(0,)),
        "",
        *_wrap(
            [
                "items: the share of the variance between seeds that comes from the choice of items, and would be "
                "smaller with more of them; the rest is what seeds change",
                "pool_seeds=false: a row for each seed",
            ],
            width,
        ),
    ]


def _wrap(lines: Sequence[str], width: int | None) -> list[str]:
    return [part for line in lines for part in wrap_text(line, width).split("\n")]
