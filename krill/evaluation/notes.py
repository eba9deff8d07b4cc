"""What a reader of the scores has to know besides them, as lines below the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from krill.evaluation.results import TaskResult
from krill.runs.scores import format_score_value

_DESCRIPTIONS = {
    "truncated": "{count:,} items are longer than the context of the model, and were cut at their beginnings",
    "duplicates": "{count:,} items occur twice, and are scored once",
    "joined": "in {count:,} items the choices continue a word of the context; write the space that separates them",
    "dropped": "{count:,} documents were dropped by data.filters or data.min_chars",
    "unreadable": "{count:,} records could not be read",
    "not_encoded": "{count:,} documents are left out: the tokenizer encodes nothing of them",
    "unknown": "the tokenizer loses a part of {count:,} documents, which have too few bits per byte",
}
"""Note of a result that counts items or documents → the line below the table."""


def format_notes(results: Sequence[TaskResult]) -> list[str]:
    """Returns a line for each of what was left out, cut or changed, after an empty line; no line if there is none."""
    lines = [f"{result.task}: {line}" for result in results for line in _describe_notes(result)]
    return ["", *lines] if lines else []


def _describe_notes(result: TaskResult) -> Iterator[str]:
    for name, description in _DESCRIPTIONS.items():
        if count := result.notes.get(name):
            yield description.format(count=count)
    if "contaminated" in result.notes:
        yield _describe_contamination(result)


def _describe_contamination(result: TaskResult) -> str:
    notes, score = result.notes, result.main_score
    unit = "documents" if result.kind == "text" else "items"
    line = (
        f"{notes['contaminated']:,} of {score.items:,} {unit} ({100 * float(notes['contaminated_share']):.1f} %) are "
        "in the training text"
    )
    if "score_on_contaminated" not in notes:
        return line
    on, without = (
        format_score_value(float(notes[f"score_{which}_contaminated"]), score.metric)
        for which in ("on", "without")
    )
    return f"{line}; {score.metric.replace('_', ' ')} {without} without them, {on} on them"
