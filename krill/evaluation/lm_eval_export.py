"""Writes items and texts as tasks of lm-eval, which then evaluates any model on them.

lm_eval --model hf --model_args pretrained=MODEL --include_path FOLDER --tasks krill_english_pairs
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from krill import atomic
from krill.evaluation.task import Task

PREFIX = "krill_"
"""The beginning of the names of exported tasks."""


def export_task(task: Task, folder: Path) -> str:
    """Writes the items of `task` as a task of choices of lm-eval to `folder`; returns its name."""
    rows = (
        {
            "context": item.context,
            "choices": item.choices,
            "answer": item.answer,
            "phenomenon": item.phenomenon,
        }
        for item in task.items
    )
    settings = {
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_bytes")
        ],
    }
    return _write_task(task.name, task.version, rows, settings, folder)


def export_texts(name: str, texts: Sequence[str], folder: Path) -> str:
    """Writes documents as a task of lm-eval that measures their bits per byte to `folder`; returns its name."""
    settings = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
        ],
    }
    return _write_task(name, 1, ({"text": text} for text in texts), settings, folder)


def _write_task(
    name: str, version: int, rows: Iterable[Mapping[str, Any]], settings: Mapping[str, Any], folder: Path
) -> str:
    atomic.create_folder(folder)
    file = folder.absolute() / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    content = {
        "task": PREFIX + name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        **settings,
        "metadata": {"version": version},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return PREFIX + name
