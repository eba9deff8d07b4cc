"""What a reader of the scores has to know besides them, as lines below the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from krill.evaluation.results import TaskResult

_DESCRIPTIONS = {
    "truncated": "{count:,} items are longer than the context of the model, and were cut at their beginnings",
    "duplicates": "{count:,} items occur twice, and are scored once",
    "joined": "in {count:,} items the choices continue a word of the context; write the space that separates them",
}
"""Note of a result that counts items → the line below the table."""


def format_notes(results: Sequence[TaskResult]) -> list[str]:
    """Returns a line for each of what was left out, cut or changed."""
    return [f"{result.task}: {line}" for result in results for line in _describe_notes(result)]


def _describe_notes(result: TaskResult) -> Iterator[str]:
    for name, description in _DESCRIPTIONS.items():
        if count := result.notes.get(name):
            yield description.format(count=count)
