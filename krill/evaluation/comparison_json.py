"""The comparison of several models as JSON: what comparison.json and format=json have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from krill.config.paths import relative_path
from krill.evaluation.configurations import Configuration
from krill.evaluation.evaluated_model import EvaluatedModel
from krill.evaluation.ranking import Ranking


def comparison_to_json(ranking: Ranking) -> dict[str, Any]:
    """Returns the ranking as JSON types: the rows of each set, best first, with every model and p-value."""
    sets, number = [], 0
    for ranked in ranking.sets:
        rows = []
        for row in ranked.rows:
            scores = {task: _score_to_json(ranking, number, row, task) for task in row.tasks}
            models = [_model_to_json(model) for model in row.models]
            rows.append({"label": row.label, "scores": scores, "models": models})
            number += 1
        sets.append({"items_hash": ranked.items_hash, "rows": rows})
    return {
        "ranked_by": ranking.tasks[0] if ranking.tasks else None,
        "pairs": ranking.num_pairs,
        "sets": sets,
    }


def _score_to_json(ranking: Ranking, index: int, row: Configuration, task: str) -> dict[str, Any]:
    results = row.get_results(task)
    score = results[0].main_score
    value: dict[str, Any] = {
        "metric": score.metric,
        "value": row.compute_score(task),
        "higher_is_better": score.higher_is_better,
        "chance": score.chance,
        "items": score.items,
        "items_hash": results[0].items_hash,
    }
    if len(results) > 1:
        spread = row.compute_spread(task)
        value["seeds"] = {
            "count": len(results),
            "standard_deviation": row.compute_deviation(task),
            "item_share": None if spread is None else spread.item_share,
        }
    if compared := ranking.comparisons.get((index, task)):
        value["against_best"] = {
            "test": compared.comparison.test,
            "p_value": compared.comparison.p_value,
            "corrected_p_value": compared.p_value,
            "is_significant": compared.is_significant,
        }
    return value


def _model_to_json(model: EvaluatedModel) -> dict[str, Any]:
    return {
        "model": model.path,
        "run": None if model.run is None else str(relative_path(Path(model.run))),
        "seed": model.seed,
        "settings": list(model.settings),
        "weights": model.weights,
        "results": [
            result.model_dump(mode="json", exclude={"outcomes"}) for result in model.results.values()
        ],
    }
