"""Tables of runs, one row per run: on the terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from krill import atomic
from krill.runs import slurm
from krill.runs.find import Run, read_runs
from krill.runs.json_lines import read_last_metrics
from krill.runs.ranking import get_tokenizer_signature, get_validation_set, rank_by_validation_set
from krill.runs.record import compute_run_seconds, get_validation_loss
from krill.runs.run_state import ACTIVE_STATES, RunState, determine_run_states, find_log_file
from krill.runs.scores import TaskScore, read_scores, summarize_scores
from krill.tables import fit_table, get_terminal_width, print_wrapped
from krill.terminal import escape_control_characters

INTERRUPTED_STATES = frozenset({"stopped", "killed", "cancelled"})
"""States of runs that resume from their last checkpoint."""


@dataclass(frozen=True)
class RunRow:
    """The values of a run; None if a value is not known (yet)."""

    folder: str
    name: str
    command: str
    state: str
    why: str
    overrides: tuple[str, ...]
    step: int | None
    steps: int | None
    lr: float | None
    """The peak learning rate."""
    loss: float | None
    eval_loss: float | None
    eval_bits_per_byte: float | None
    validation_set: str | None
    """Identity of the held-out texts: losses of different ones are not comparable."""
    tokenizer: str | None
    tokens_per_second: float | None
    seconds: float | None
    start: str | None
    end: str | None
    starts: int | None
    host: str | None
    job: str | None
    error: str
    log: str
    sweep: str | None
    scores: tuple[TaskScore, ...]
    """Of the newest evaluation of each task."""


def read_rows(folders: Sequence[Path], errors: Mapping[Path, str] | None = None) -> list[RunRow]:
    """Reads one row per run folder, in order. `errors` has the errors of runs that could not record them."""
    return build_rows(read_runs(folders), errors)


def build_rows(runs: Sequence[Run], errors: Mapping[Path, str] | None = None) -> list[RunRow]:
    """Builds one row per run; like `read_rows`, for runs that have been read already."""
    states = determine_run_states({run.folder: run.status for run in runs})
    errors = errors or {}
    return [_build_row(run, states[run.folder], errors.get(run.folder)) for run in runs]


def sort_best_first(rows: Sequence[RunRow]) -> list[RunRow]:
    """Sorts by validation loss, the lowest first, apart for each held-out set; runs without one are last."""
    ranked, others = rank_by_validation_set(rows)
    return [*(row for group in ranked for row in group), *others]


def count_validation_sets(rows: Sequence[RunRow]) -> int:
    """Returns the number of held-out sets on which these runs were validated."""
    return len(rank_by_validation_set(rows)[0])


def _build_row(run: Run, state: RunState, external_error: str | None) -> RunRow:
    status = run.status or {}
    last, damage = read_last_metrics(run.folder, ("step", "loss", "tokens_per_second"))
    final = status.get("metrics") or {}
    overrides = status.get("overrides") or run.sweep_entry.get("overrides") or []

    def get_number(key: str, *sources: Mapping[str, Any]) -> Any:
        return next((source[key] for source in sources if isinstance(source.get(key), (int, float))), None)

    return RunRow(
        folder=str(run.folder),
        name=status.get("name") or "",
        command=str(status.get("command") or run.sweep_entry.get("command") or "train"),
        state="failed" if external_error else state.state,
        why=external_error or state.detail,
        overrides=tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        step=get_number("step", final, _read_saved_step(run.folder, state), last),
        steps=status.get("steps"),
        lr=status.get("lr"),
        loss=get_number("loss", final, last),
        eval_loss=get_validation_loss(status),
        eval_bits_per_byte=get_number("eval_bits_per_byte", final),
        validation_set=get_validation_set(status),
        tokenizer=get_tokenizer_signature(status),
        tokens_per_second=get_number("tokens_per_second", last),
        seconds=compute_run_seconds(run.folder, status, is_running=state.state == "running"),
        start=status.get("start"),
        end=status.get("end"),
        starts=status.get("starts"),
        host=status.get("host"),
        job=state.job or status.get("slurm_job_id"),
        error=external_error or (state.detail if state.state not in ACTIVE_STATES else "") or damage or "",
        log=str(find_log_file(run.folder, status)) if run.status else "",
        sweep=None if run.sweep is None else str(run.sweep),
        scores=read_scores(run.folder),
    )


def _read_saved_step(folder: Path, state: RunState) -> dict[str, int]:
    """Returns the step from which an interrupted run resumes, which is not always a logged step."""
    if state.state not in INTERRUPTED_STATES:
        return {}
    from krill.runs.checkpoints import list_checkpoints, parse_step

    saved = list_checkpoints(folder / "checkpoints")
    return {"step": parse_step(saved[-1])} if saved else {}


def to_csv(rows: Sequence[RunRow]) -> str:
    """Formats rows as CSV with a header line."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(RunRow)])
    for row in rows:
        scores = " ".join(f"{score.task}={score.value:.5g}" for score in row.scores)
        writer.writerow((asdict(row) | {"overrides": " ".join(row.overrides), "scores": scores}).values())
    return text.getvalue()


def to_json(rows: Sequence[RunRow]) -> str:
    """Formats rows as a JSON list of objects; values that are not finite (a diverged loss) become null."""
    return json.dumps([row_to_dict(row) for row in rows], indent=2, ensure_ascii=False)


def row_to_dict(row: RunRow) -> dict[str, Any]:
    """Converts a row to JSON types."""
    return {key: finite_or_none(value) for key, value in asdict(row).items()}


def finite_or_none(value: Any) -> Any:
    """Returns the value, or None if it is a float that is not finite, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(rows: Sequence[RunRow], folder: Path) -> Path:
    """Writes `folder`/table.csv and returns its path."""
    path = folder / "table.csv"
    atomic.write_text(path, to_csv(rows))
    return path


def print_table(rows: Sequence[RunRow], file: TextIO, full_paths: bool = False) -> None:
    """Prints the table, then a line for each run with an error or an uncertain state.

    With `full_paths`, folders are shown as paths instead of names.
    """
    print("\n".join(format_runs(rows, get_terminal_width(file), full_paths)), file=file)
    if (number := count_validation_sets(rows)) > 1:
        print_wrapped(
            f"{number} held-out sets: losses of different ones are not comparable (column held-out)", file
        )
    for row in rows:
        if row.error:
            log = f"  ({row.log})" if row.log else ""
            print_wrapped(f"{Path(row.folder).name}: {row.error}{log}", file)
        elif row.state in ACTIVE_STATES and row.why.upper() not in slurm.ACTIVE_JOB_STATES | {""}:
            print_wrapped(f"{Path(row.folder).name}: {row.why}", file)


def print_unfinished(rows: Sequence[RunRow], file: TextIO) -> None:
    """Prints the overrides of each run that has not finished, its state, and its error."""
    for row, differing in zip(rows, find_differing_overrides([row.overrides for row in rows]), strict=True):
        log = f"  ({row.log})" if row.log and row.error else ""
        overrides = " ".join(row.overrides) if len(rows) == 1 else differing
        print_wrapped(
            f"{row.state}: {overrides or row.folder}{': ' + row.error if row.error else ''}{log}", file
        )


def find_differing_overrides(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Returns the overrides of each run that are not shared by all runs, as one text."""
    return list(map(" ".join, exclude_shared_overrides(overrides)))


def exclude_shared_overrides(overrides: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns the overrides of each run that are not shared by all runs."""
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    return [[item for item in own if item not in shared] for own in overrides]


HEADER = (
    "#", "state", "overrides", "lr", "step", "train loss", "val. loss", "bits/byte", "held-out", "scores", "seconds",
    "folder",
)  # fmt: skip

_DROPPED_FIRST = ("train loss", "scores", "seconds", "bits/byte", "step", "held-out")
"""Columns that a narrow terminal does not show, the least important first."""

MIN_WIDTH_OF_SCORES = 100
"""Columns of a terminal from which on the scores are folded, not left out."""


def format_runs(rows: Sequence[RunRow], width: int | None, full_paths: bool = False) -> list[str]:
    """Returns the lines of the table, without the overrides that all runs share; `width`: None: not a terminal.

    The column of the held-out sets is left out if there is only one, that of scores if there are none, that of the
    learning rate unless it differs where no override sets it.
    """
    from krill.config.paths import relative_path

    differing = find_differing_overrides([row.overrides for row in rows])
    cells = [
        (
            str(index + 1),
            row.state + (f" {row.job}" if row.job and row.state in ("queued", "running") else ""),
            escape_control_characters(differing[index]),
            "" if row.lr is None else f"{row.lr:.2g}",
            "" if row.step is None else f"{row.step}/{row.steps or '?'}",
            _format_number(row.loss),
            _format_number(row.eval_loss),
            _format_number(row.eval_bits_per_byte),
            (row.validation_set or "")[:8] if row.eval_loss is not None else "",
            escape_control_characters(summarize_scores(row.scores)),
            _format_number(row.seconds, 0),
            escape_control_characters(
                str(relative_path(Path(row.folder))) if full_paths else Path(row.folder).name
            ),
        )
        for index, row in enumerate(rows)
    ]
    left_out = {
        *([] if _has_rates_of_rule(rows) else ["lr"]),
        *(["held-out"] if count_validation_sets(rows) <= 1 else []),
        *(["scores"] if not any(row.scores for row in rows) else []),
    }
    header = [name for name in HEADER if name not in left_out]
    folded = ("overrides",) if width is not None and width < MIN_WIDTH_OF_SCORES else ("overrides", "scores")
    return fit_table(
        header,
        [[cell for name, cell in zip(HEADER, line, strict=True) if name in header] for line in cells],
        width,
        left=[header.index(name) for name in ("state", "overrides", "scores", "folder") if name in header],
        fold=[header.index(name) for name in folded if name in header],
        drop=[header.index(name) for name in _DROPPED_FIRST if name in header],
        own_line=header.index("folder"),
    )


def _has_rates_of_rule(rows: Sequence[RunRow]) -> bool:
    """Returns whether the runs have different learning rates, and not all of them by their overrides."""
    is_set = (any(override.startswith("lr=") for override in row.overrides) for row in rows)
    return len({row.lr for row in rows if row.lr is not None}) > 1 and not all(is_set)


def _format_number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"
