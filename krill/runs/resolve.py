"""Resolves what names a run or a sweep. It is the same everywhere:

    a folder                 of a run, of a sweep, or any folder above runs
    a glob                   as in 'outputs/runs/*/*'
    a name, a signature      of the run, or the beginning of one; or the name of its folder
    last                     any run
    SWEEP/best               the run with the lowest validation loss

Of several matches, the newest one that has what is needed is meant.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from krill.config.paths import expand_home, quote_path, relative_path
from krill.errors import UsageError
from krill.runs.checkpoints import list_checkpoints
from krill.runs.find import Run, RunGroup, RunOrGroup, expand_runs, get_time_key, run_at, runs_under
from krill.runs.ranking import get_tokenizer_signature, get_validation_set, rank_by_validation_set
from krill.runs.record import OVERRIDES_FILE, find_status_damage, get_validation_loss, read_status

LAST, BEST = "last", "/best"
log = logging.getLogger("krill")

MAX_CANDIDATES = 10
"""Maximum number of runs or points that an error lists."""

ItemT = TypeVar("ItemT", bound=RunOrGroup)


@dataclass(frozen=True)
class Need:
    """What a command needs of a run."""

    description: str
    is_met: Callable[[Path], bool]
    """Whether a folder has it; the folder need not be a run."""
    is_preferred: Callable[[dict[str, Any]], bool] = lambda status: True
    """Of several runs that have it, the newest one whose status satisfies this is meant, if there is one."""


def _has_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "model/config.json"))


def _has_checkpoint(folder: Path) -> bool:
    return bool(list_checkpoints(folder / "checkpoints"))


FINAL_MODEL = Need("a model", _has_model)
MODEL = Need("a model or checkpoint", lambda folder: _has_model(folder) or _has_checkpoint(folder))
OVERRIDES = Need("a configuration", lambda folder: (folder / OVERRIDES_FILE).is_file())
CONTINUABLE = Need(
    "a checkpoint",
    lambda folder: read_status(folder) is not None and _has_checkpoint(folder),
    # An interrupted continuation is resumed by the same command, in which continue= must still mean the earlier run.
    lambda status: status.get("state") == "finished",
)
BRANCHING_POINT = Need(
    "a checkpoint",
    lambda folder: _has_checkpoint(folder) or folder.absolute() in list_checkpoints(folder.absolute().parent),
    # A branch is resumed by the same command, in which branch= must still mean the run that it came from.
    lambda status: not status.get("branch"),
)
RESUMABLE = Need(
    "a status.json",
    lambda folder: read_status(folder) is not None or find_status_damage(folder) is not None,
    lambda status: status.get("state") != "finished",
)


def resolve_run(
    text: str, root: Path, is_preferred: Callable[[RunOrGroup], bool] = lambda item: True
) -> RunOrGroup:
    """Returns the run or sweep that `text` names: of several, the newest that `is_preferred`, else the newest.

    `root`: the outputs folder. Raises UsageError if there is no match, or if `text` is ambiguous.
    """
    matches = _find_matches(text, root, text)
    return next(filter(is_preferred, matches), matches[0])


def resolve_run_folder(
    key: str, text: str, root: Path, need: Need, excluded_sweep: Path | None = None
) -> Path:
    """Returns the folder that `key`=`text` names: as it is written if it has what is needed, else that of a run.

    `excluded_sweep`: a sweep of which no point is meant. Raises UsageError if there is no match, or none that has
    what is needed.
    """
    label, path = f"{key}={text}", expand_home(text)
    if text and path.is_dir() and need.is_met(path):
        return path
    matches = _find_matches(text, root, label, need)
    if text != LAST and len(matches) == 1 and isinstance(matches[0], RunGroup) and matches[0].sweep_record:
        points = ", ".join(run.folder.name for run in matches[0].runs[:MAX_CANDIDATES])
        raise UsageError(
            f"{label}: a sweep; use {key}={text.rstrip('/')}{BEST}, or one of its points: {points}"
        )
    runs = _sort_newest_first(
        run
        for item in matches
        for run in expand_runs(item)
        if run.sweep is None or run.sweep != excluded_sweep
    )
    usable = [run for run in runs if need.is_met(run.folder)]
    if not usable:
        folder = relative_path((runs or matches)[0].folder)
        if len(runs) == 1 and (damage := find_status_damage(folder)):
            raise UsageError(f"{label}: status.json of {folder} {damage}; restore it")
        subject = f"none of these {len(runs)} runs has" if len(runs) > 1 else f"{folder} has no"
        what = need.description if len(runs) > 1 else need.description.removeprefix("a ")
        raise UsageError(
            f"{label}: {subject} {what}; see its state with krill-runs show {quote_path(folder)}"
        )
    preferred = [run for run in usable if need.is_preferred(run.status or {})]
    return relative_path((preferred or usable)[0].folder)


def resolve_all_models(key: str, text: str, root: Path) -> list[str]:
    """Returns all models that `key`=`text` names: those of every run of a sweep or of a glob, else `text` itself.

    Runs without a model are logged. Raises UsageError for a glob or a sweep without any model.
    """
    path = expand_home(text)
    if MODEL.is_met(path):
        return [text]
    label = f"{key}={text}"
    try:
        matches = _find_matches(text, root, label, MODEL)
    except UsageError:
        if glob.has_magic(text):
            raise
        return [text]  # the id of a model on the Hub, or an error of the command that loads it
    is_sweep = len(matches) == 1 and isinstance(matches[0], RunGroup) and matches[0].sweep_record
    if not glob.has_magic(text) and (text == LAST or not is_sweep):
        return [text]
    runs = {run.folder: run for item in matches for run in expand_runs(item)}
    usable = [str(relative_path(folder)) for folder in runs if MODEL.is_met(folder)]
    if not usable:
        raise UsageError(f"{label}: none of these {len(runs)} runs has {MODEL.description}")
    if missing := [str(relative_path(folder)) for folder in runs if not MODEL.is_met(folder)]:
        log.warning("no model    %s", ", ".join(missing[:MAX_CANDIDATES]))
    return usable


def find_newest_run(root: Path, need: Need, name: str | None = None) -> Path | None:
    """Returns the folder of the newest run, or of the newest run of this name, that has what is needed, or None."""
    runs = _sort_newest_first(run for item in runs_under(root) for run in expand_runs(item))
    usable = (run for run in runs if name in (None, _get_name(run)) and need.is_met(run.folder))
    return next((relative_path(run.folder) for run in usable), None)


def _find_matches(text: str, root: Path, label: str, need: Need | None = None) -> list[RunOrGroup]:
    """Returns the runs and sweeps that `text` names, newest first, at least one; the points of a sweep count as it.

    `need`: other folders that meet it match a glob as well. Raises UsageError if there is none.
    """
    path = expand_home(text)
    if text and (item := run_at(path.absolute())):
        return [item]
    if glob.has_magic(text):
        folders = [Path(match).absolute() for match in glob.glob(str(path))]
        matches = [item for folder in folders if (item := _read_folder(folder, need))]
        if not matches:
            raise UsageError(f"{label}: no run matches (relative to {Path.cwd()}). {_list_runs(text, root)}")
        return _sort_newest_first(matches)
    if text.endswith(BEST) and (base := text.removesuffix(BEST)):
        return [_select_best(_find_matches(base, root, label, need), label)]
    items = runs_under(root)
    matches = items if text == LAST else _match_names(text, items, label)
    if not matches:
        problem = f"not the name of a run or sweep, nor a folder (relative to {Path.cwd()})"
        if text and path.exists() and need is not None:
            problem = f"no run, and no {need.description.removeprefix('a ')} in it"
        raise UsageError(f"{label}: {problem}. {_list_runs(text, root)}")
    return matches


def _read_folder(folder: Path, need: Need | None) -> RunOrGroup | None:
    item = run_at(folder)
    return Run(folder, None) if item is None and need is not None and need.is_met(folder) else item


def _match_names(text: str, items: list[RunOrGroup], label: str) -> list[RunOrGroup]:
    """Returns the matches by name, newest first. Raises UsageError if `text` is the beginning of several names."""
    points = [run for item in items if isinstance(item, RunGroup) for run in item.runs]
    by_name: dict[str, list[RunOrGroup]] = {}
    for item in (*items, *points):
        names = [name for name in _get_names(item) if text and name.startswith(text)]
        if names:
            by_name.setdefault(text if text in names else names[0], []).append(item)
    if text not in by_name and len(by_name) > 1:
        candidates = [str(relative_path(item.folder)) for matches in by_name.values() for item in matches]
        raise UsageError(
            f"{label} is ambiguous: it matches {', '.join(candidates[:MAX_CANDIDATES])}; use a longer prefix"
        )
    matches = by_name.get(text) or next(iter(by_name.values()), [])
    sweeps = [item.folder for item in matches if isinstance(item, RunGroup)]
    return _sort_newest_first(
        item for item in matches if isinstance(item, RunGroup) or item.sweep not in sweeps
    )


def _get_names(item: RunOrGroup) -> list[str]:
    """Returns what names a run: its name, that of its folder, and its signature, also the 8 digits that are shown."""
    status = (item.status or {}) if isinstance(item, Run) else {}
    signature = str(status.get("signature") or "")
    return [name for name in (_get_name(item), item.folder.name, signature[:8], signature) if name]


def _get_name(item: RunOrGroup) -> str:
    return str((item.status or {}).get("name") or "") if isinstance(item, Run) else item.folder.name


def _select_best(matches: list[RunOrGroup], label: str) -> Run:
    """Returns the run with the lowest validation loss in the newest sweep, or of all runs if there is no sweep."""
    sweeps = [item for item in matches if isinstance(item, RunGroup) and item.sweep_record]
    runs = [run for item in (sweeps[:1] or matches) for run in expand_runs(item)]
    ranked, _ = rank_by_validation_set([_RankedRun(run.folder, run.status or {}) for run in runs])
    if not ranked:
        raise UsageError(f"{label}: no run in {relative_path(matches[0].folder)} has a validation loss")
    if len(ranked) > 1:
        best_of_sets = ", ".join(str(relative_path(group[0].folder)) for group in ranked[:MAX_CANDIDATES])
        raise UsageError(
            f"{label}: these runs have {len(ranked)} held-out sets, whose losses are not comparable; the best run of "
            f"each: {best_of_sets}"
        )
    best = run_at(ranked[0][0].folder)
    assert isinstance(best, Run)
    return best


class _RankedRun:
    """The values of a run by which it is ranked."""

    def __init__(self, folder: Path, status: dict[str, Any]):
        metrics = status.get("metrics") or {}
        self.folder = folder
        self.loss = metrics.get("loss")
        self.eval_loss = get_validation_loss(status)
        self.eval_bits_per_byte = metrics.get("eval_bits_per_byte")
        self.validation_set, self.tokenizer = get_validation_set(status), get_tokenizer_signature(status)


def _sort_newest_first(items: Iterable[ItemT]) -> list[ItemT]:
    return sorted(items, key=get_time_key, reverse=True)


def _list_runs(text: str, root: Path) -> str:
    """Returns the end of an error: the closest name, and the names of the runs and sweeps, newest first."""
    from krill.config.suggestions import suggest

    names = [_get_name(item) or item.folder.name for item in runs_under(root)]
    if not names:
        return f"There are no runs in {root}; train one with krill-train"
    return suggest(text, names, max_listed=MAX_CANDIDATES)
