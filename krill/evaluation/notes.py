"""What a reader of the scores has to know besides them, as lines below the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from krill.evaluation.results import TaskResult
from krill.runs.scores import describe_metric, format_score_value

_DESCRIPTIONS = {
    "truncated": "{count:,} items are longer than the context of the model, and were cut at their beginnings",
    "duplicates": "{count:,} items occur twice, and are scored once",
    "joined": "in {count:,} items the choices continue a word of the context; write the space that separates them",
    "dropped": "{count:,} documents were dropped by data.filters or data.min_chars",
    "unreadable": "{count:,} records could not be read",
    "not_encoded": "{count:,} documents are left out: the tokenizer encodes nothing of them",
    "not_looked_for": "{count:,} items are not looked for in the training text: their task has no text of the answer",
    "unknown_items": "the tokenizer loses a part of {count:,} items, whose choices may be the same for the model",
    "unknown": "the tokenizer loses a part of {count:,} documents, which have too few bits per byte",
}
"""Note of a result that counts items or documents → the line below the table."""


def format_notes(results: Sequence[TaskResult]) -> list[str]:
    """Returns a line for each of what was left out, cut or changed, after an empty line; no line if there is none."""
    lines = [f"{result.task}: {line}" for result in results for line in describe_notes([result])]
    return ["", *lines] if lines else []


def describe_notes(results: Sequence[TaskResult]) -> Iterator[str]:
    """Yields a line for each of what was left out, cut or changed in a task.

    `results`: of one task and configuration, one for each seed, with the same items. Scores are means over the seeds.
    """
    for name, description in _DESCRIPTIONS.items():
        if count := max((result.notes.get(name, 0) for result in results), default=0):
            yield description.format(count=count)
    contaminated = [result for result in results if "contaminated" in result.notes]
    if contaminated:
        yield _describe_contamination(contaminated)


def _describe_contamination(results: Sequence[TaskResult]) -> str:
    notes, score = results[0].notes, results[0].main_score
    unit = "documents" if results[0].kind == "text" else "items"
    total = int(notes.get("looked_for", score.items))
    line = (
        f"{notes['contaminated']:,} of {total:,} {unit} ({100 * float(notes['contaminated_share']):.1f} %) are in "
        "the training text"
    )
    if any("score_on_contaminated" not in result.notes for result in results):
        return line
    on, without = (
        sum(float(result.notes[f"score_{which}_contaminated"]) for result in results) / len(results)
        for which in ("on", "without")
    )
    return (
        f"{line}; {describe_metric(score.metric)} {format_score_value(without, score.metric)} without them, "
        f"{format_score_value(on, score.metric)} on them"
    )
