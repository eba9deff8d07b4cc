"""The tasks of EleutherAI's lm-evaluation-harness (lm-eval), by their names.

lm-eval is imported when the first of its tasks is requested. It knows three kinds of names: a task; a group, which
has tasks and may have a score of its own; a tag, which only has tasks.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from krill.errors import UsageError, get_first_line
from krill.extras import format_install_command

FEW_SHOT_SEED = 1234
"""lm-eval's default seed of the choice of examples."""


@contextmanager
def fixed_seeds() -> Iterator[None]:
    """Seeds what tasks may draw from as lm-eval does, and restores the state, which a training depends on."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(FEW_SHOT_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def is_installed() -> bool:
    """Returns whether the extra eval is installed."""
    return importlib.util.find_spec("lm_eval") is not None


def is_task(name: str) -> bool:
    """Returns whether lm-eval is installed and has a task, a group or a tag of this name."""
    return is_installed() and name in open_task_manager().task_index


def suggest_tasks(name: str) -> str:
    """Returns the end of an error message: the most similar names of lm-eval, or how to install it."""
    if not is_installed():
        return f"for lm-eval's tasks: {format_install_command('eval')}"
    closest = difflib.get_close_matches(name, open_task_manager().all_tasks, n=5)
    return f"the closest of lm-eval: {', '.join(closest)}" if closest else "lm-eval has no similar one"


@cache
def open_task_manager() -> Any:
    """Returns lm-eval's index of its tasks, a `TaskManager`; reading it takes a few seconds."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)  # what is wrong is raised
    return TaskManager()


def expand(name: str) -> list[str]:
    """Returns the tasks of a tag, or of a group that has no score of its own; for any other name, itself."""
    if not is_task(name):
        return [name]
    entry = open_task_manager().task_index[name]
    members = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    has_score = bool((entry.cfg or {}).get("aggregate_metric_list"))
    if has_score or not isinstance(members, list) or not all(isinstance(member, str) for member in members):
        return [name]
    return [task for member in members for task in expand(member)]


@cache
@fixed_seeds()
def load_tasks(name: str, few_shot: int | None) -> Any:
    """Returns the task, group or tag `name` with its data: lm-eval's `TaskDict`.

    `few_shot`: the number of examples before each question; None: what each task says. Raises UsageError if the data
    cannot be read, such as for lack of a network, and for tasks of more than text.
    """
    try:
        loaded = open_task_manager().load([name])
    except Exception as error:  # whatever the code of the task raises
        raise UsageError(f"tasks={name}: {get_first_line(error)}; {_describe_fetching(name)}") from error
    for task in loaded["tasks"].values():
        if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
            reason = (
                "runs code of the model" if getattr(task, "UNSAFE_CODE", False) else "is not of text alone"
            )
            raise UsageError(
                f"tasks={name}: {task.task_name} {reason}, which krill does not support; leave it out of tasks="
            )
        default = task.get_config("num_fewshot")
        if default is None or (few_shot is not None and default != 0):  # as lm-eval: a task may insist on 0
            task.set_config("num_fewshot", few_shot or 0)
    return loaded


def _describe_fetching(name: str) -> str:
    """Returns how to get the data sets of `name` into the cache, from which they are read without a network."""
    names: dict[str, list[str]] = defaultdict(list)
    for path, configuration in _list_data_sets(name):
        names[path] += [configuration] if configuration else []
    loads = [
        f"[load_dataset('{path}', name) for name in {list(dict.fromkeys(configurations))}]"
        if len(configurations) > 1
        else f"load_dataset({', '.join(repr(part) for part in (path, *configurations))})"
        for path, configurations in names.items()
    ]
    command = f'python -c "from datasets import load_dataset; {"; ".join(loads)}"'
    return (
        "if its data are not in the cache of this machine, run the same command where there is a network, or "
        f"{command}; with HF_HUB_OFFLINE=1 the cache alone is used"
    )


def _list_data_sets(name: str) -> Iterator[tuple[str, str | None]]:
    """Yields path and configuration of the data set of each task of `name`."""
    entry = open_task_manager().task_index.get(name)
    if entry is None:
        return
    cfg = entry.cfg or {}
    if "dataset_path" in cfg:
        yield cfg["dataset_path"], cfg.get("dataset_name")
    members = sorted(entry.tags) if entry.kind.name == "TAG" else cfg.get("task")
    for member in members if isinstance(members, list) else ():
        yield from _list_data_sets(member if isinstance(member, str) else member.get("task", ""))
