"""The end of a sweep of krill-evaluate: one table of all models, best first, also as comparison.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from krill import atomic
from krill.config.overrides import get_override_key
from krill.config.schema import EvaluateConfig
from krill.runs import table
from krill.runs.table import RunRow
from krill.sweep.session import Sweep
from krill.tables import get_terminal_width

if TYPE_CHECKING:
    from krill.evaluation.evaluated_model import EvaluatedModel

COMPARISON_FILE = "comparison.json"
_ROW_KEYS = ("model.path", "evaluation.tasks")
"""Keys whose values do not need a row of their own for each model."""


def prints_json(sweep: Sweep) -> bool:
    """Returns whether standard output is one JSON document."""
    config = sweep.points[0].config if sweep.points else None
    return isinstance(config, EvaluateConfig) and config.format == "json"


def report_comparison(sweep: Sweep, rows: Sequence[RunRow]) -> None:
    """Prints the table of the points that have results, and the errors of the others; writes comparison.json."""
    from krill.evaluation.comparison_table import comparison_to_json, format_comparison
    from krill.evaluation.evaluated_model import build_configurations
    from krill.evaluation.ranking import rank_configurations

    unfinished = [row for row in rows if row.state != "finished"]
    config = sweep.points[0].config
    assert isinstance(config, EvaluateConfig)
    ranking = rank_configurations(build_configurations(_read_models(sweep), config.pool_seeds))
    content = {
        "folder": str(sweep.folder),
        **comparison_to_json(ranking),
        "unfinished": [
            {"overrides": list(row.overrides), "state": row.state, "error": row.error} for row in unfinished
        ],
    }
    text = json.dumps(content, ensure_ascii=False, indent=2)
    with atomic.name_folder_in_errors(sweep.folder):
        atomic.write_text(sweep.folder / COMPARISON_FILE, text + "\n")
    if config.format == "json":
        print(text)
    elif ranking.rows:
        print("\n".join(format_comparison(ranking, get_terminal_width(sys.stdout))))
    table.print_unfinished(unfinished, sys.stderr)


def _read_models(sweep: Sweep) -> list[EvaluatedModel]:
    """Returns the models of the points with results, with the overrides in which points of a model differ."""
    from krill.evaluation.evaluated_model import EvaluatedModel
    from krill.evaluation.results import read_results

    overrides = [
        [text for text in point.invocation.overrides if get_override_key(text) not in _ROW_KEYS]
        for point in sweep.points
    ]
    differing = table.exclude_shared_overrides(overrides)
    return [
        EvaluatedModel.read(point.config.model.path, results, settings)
        for point, settings in zip(sweep.points, differing, strict=True)
        if isinstance(point.config, EvaluateConfig) and (results := read_results(point.folder))
    ]
