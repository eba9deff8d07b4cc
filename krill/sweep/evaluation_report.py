"""The end of a sweep of krill-evaluate: one table of all models, best first, also as comparison.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from krill import atomic
from krill.config.schema import EvaluateConfig
from krill.runs import table
from krill.runs.table import RunRow
from krill.sweep.session import Sweep
from krill.tables import get_terminal_width, print_wrapped

COMPARISON_FILE = "comparison.json"


def prints_json(sweep: Sweep) -> bool:
    """Returns whether standard output is one JSON document."""
    config = sweep.points[0].config if sweep.points else None
    return isinstance(config, EvaluateConfig) and config.format == "json"


def report_comparison(sweep: Sweep, rows: Sequence[RunRow]) -> None:
    """Prints the table of the points that have results, and the errors of the others; writes comparison.json."""
    from krill.evaluation.comparison_json import comparison_to_json
    from krill.evaluation.comparison_table import format_comparison
    from krill.evaluation.configurations import build_configurations
    from krill.evaluation.evaluated_model import read_points
    from krill.evaluation.ranking import rank_configurations

    unfinished = [row for row in rows if row.state != "finished"]
    config = sweep.points[0].config
    assert isinstance(config, EvaluateConfig)
    models = read_points([(point.folder, point.invocation.overrides) for point in sweep.points])
    ranking = rank_configurations(build_configurations(models, config.pool_seeds))
    samples = _describe_samples(sweep, config)
    content = {
        "folder": str(sweep.folder),
        **comparison_to_json(ranking),
        "unfinished": [
            {"overrides": list(row.overrides), "state": row.state, "error": row.error} for row in unfinished
        ],
    }
    if samples:
        content["samples"] = [one for one, _ in samples]
    text = json.dumps(content, ensure_ascii=False, indent=2)
    with atomic.name_folder_in_errors(sweep.folder):
        atomic.write_text(sweep.folder / COMPARISON_FILE, text + "\n")
    if config.format == "json":
        print(text)
    elif ranking.rows:
        print("\n".join(format_comparison(ranking, get_terminal_width(sys.stdout))))
        for _, lines in samples:
            for line in lines:
                print_wrapped(line)
    table.print_unfinished(unfinished, sys.stderr)


def _describe_samples(sweep: Sweep, config: EvaluateConfig) -> list[tuple[dict[str, Any], list[str]]]:
    """Returns the texts that each model sampled, as JSON and as lines for the terminal."""
    if not config.evaluation.prompts:
        return []
    from krill.evaluation.prompt_samples import format_samples, read_samples  # which imports torch

    return [
        (samples.model_dump(mode="json"), ["", f"model       {samples.model}", *format_samples(samples)[1:]])
        for samples in read_samples(point.folder for point in sweep.points)
    ]
