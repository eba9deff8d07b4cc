"""Writes and reads the record of a run: status.json, config.yaml, metrics.jsonl, log.txt."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from krill import atomic, errors
from krill.config.secrets import mask_secrets
from krill.errors import KrillError, SignalInterrupt
from krill.runs.slurm import get_current_job

if TYPE_CHECKING:  # krill-runs does not need the schema, which takes longer to import than the command itself
    from krill.config.schema import Section

RecordedState = Literal["queued", "running", "finished", "failed", "stopped"]
RECORDED_STATES = get_args(RecordedState)
STATUS_TYPES: dict[str, type] = {
    "name": str, "command": str, "overrides": list, "metrics": dict, "best": dict, "start": str, "end": str,
    "error": str, "host": str, "pid": int, "slurm_job_id": str, "submission": str, "submitted_as": str, "result": str,
    "starts": int, "steps": int,
}  # fmt: skip
"""Type of each entry in status.json, unless it is null."""
log = logging.getLogger("krill")

METRICS_TAIL_BYTES = 2**14
"""Bytes at the end of metrics.jsonl that are read to determine the progress of a run."""


def read_status(folder: Path) -> dict[str, Any] | None:
    """Reads status.json of a run folder, without entries of a wrong type; None if it is missing or not krill's."""
    status = read_json_object(folder / "status.json")
    if not isinstance(status.get("signature"), str) or status.get("state") not in RECORDED_STATES:
        return None
    return {
        key: value
        for key, value in status.items()
        if value is None or isinstance(value, STATUS_TYPES.get(key, object))
    }


def read_json_object(file: Path) -> dict[str, Any]:
    """Reads a JSON object from a file; empty if the file is missing, cannot be read, or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_done(folder: Path) -> bool:
    """Returns whether the run in `folder` is finished and its result, which may be elsewhere, still exists."""
    status = read_status(folder) or {"state": ""}
    # The result of a task does not exist before all tasks are merged.
    return status["state"] == "finished" and Path(status.get("result") or folder).exists()


def relative_path(folder: Path) -> Path:
    """Returns `folder` relative to the working directory if it is inside it, else unchanged."""
    try:
        return folder.relative_to(Path.cwd())
    except ValueError:
        return folder


class Record:
    """Writes the files of a run folder; of several ranks, only one is the writer."""

    def __init__(self, folder: Path, is_writer: bool = True):
        self.folder, self.is_writer = folder, is_writer
        self.status: dict[str, Any] = read_status(folder) or {}

    @contextmanager
    def record_lifecycle(self, config: Section, signature: str, overrides: list[str]) -> Iterator[None]:
        """Records the start and the end of a run, however it ends; log messages are also written to log.txt."""
        self._begin(config, signature, overrides)
        with self.log_to_file():
            try:
                yield
            except (SignalInterrupt, KeyboardInterrupt) as stop:
                self._end("stopped", getattr(stop, "exit_code", errors.INTERRUPTED))
                raise
            except KrillError as error:
                self._end("failed", error.exit_code, error=str(error))
                log.debug("failed", exc_info=True)
                raise
            except BaseException as error:
                self._end("failed", errors.FAILED, error=f"{type(error).__name__}: {error}")
                log.debug("failed", exc_info=True)
                raise
            self._end("finished", errors.DONE)

    def _begin(self, config: Section, signature: str, overrides: list[str]) -> None:
        # status.json is written first: without it, a folder with other files would not be recognized as a run.
        self.update(
            state="running",
            exit=None,
            name=getattr(config, "name", ""),
            signature=signature,
            overrides=overrides,
            host=socket.gethostname(),
            pid=os.getpid(),
            slurm_job_id=get_current_job(),
            starts=self.status.get("starts", 0) + 1,
            start=self.status.get("start", now()),
            end=None,
            error=None,
            versions=collect_versions(),
            git=read_git_state(),
        )
        text = yaml.safe_dump(
            mask_secrets(config.model_dump(mode="json")), allow_unicode=True, sort_keys=False
        )
        atomic.write_text(self.folder / "config.yaml", text)

    def _end(self, state: RecordedState, exit_code: int, **values: Any) -> None:
        self.update(state=state, exit=exit_code, end=now(), **values)

    def update(self, **values: Any) -> None:
        """Updates entries of status.json, without secrets; entries that another record of this run wrote are kept."""
        self.status = (read_status(self.folder) or self.status) | mask_secrets(values)
        if self.is_writer:
            atomic.write_json(self.folder / "status.json", self.status)

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        if self.is_writer:
            append_jsonl(self.folder / "metrics.jsonl", values)

    def truncate_metrics(self, step: int, source_run: Path) -> None:
        """Replaces metrics.jsonl with the lines up to `step` of the run that is resumed, which may be another one."""
        if self.is_writer:
            lines = (line for line in read_metrics(source_run) if line["step"] <= step)
            write_jsonl(self.folder / "metrics.jsonl", lines)

    @contextmanager
    def log_to_file(self, name: str = "log.txt") -> Iterator[None]:
        """Writes krill's log messages with timestamps to a file in the folder as well; debug messages only there."""
        handler = logging.FileHandler(self.folder / name, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level, others = log.level, [(other, other.level) for other in log.handlers]
        for other, _ in others:
            other.setLevel(max(other.level, logging.INFO))
        log.setLevel(logging.DEBUG)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            handler.close()
            log.setLevel(level)
            for other, other_level in others:
                other.setLevel(other_level)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl, without a last line truncated by a kill."""
    return read_jsonl(folder / "metrics.jsonl")


def read_last_metrics(folder: Path, keys: Collection[str]) -> dict[str, Any]:
    """Reads the newest value of each of these metrics from the end of metrics.jsonl (`METRICS_TAIL_BYTES`)."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - METRICS_TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    latest: dict[str, Any] = {}
    for line in reversed(lines[:-1]):
        try:
            latest = json.loads(line) | latest
        except (ValueError, TypeError):  # the first line may be truncated
            continue
        if latest.keys() >= set(keys):
            break
    return {key: latest[key] for key in keys if key in latest}


def read_validations(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl with a validation loss."""
    return [line for line in read_metrics(folder) if "eval_loss" in line]


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """Reads a JSON lines file, without a last line truncated by a kill; empty if the file is missing."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def write_jsonl(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON lines file, replacing an existing one."""
    atomic.write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def append_jsonl(file: Path, line: dict[str, Any]) -> None:
    """Appends a line to a JSON lines file."""
    with open(file, "a", encoding="utf-8") as open_file:
        open_file.write(json.dumps(line, ensure_ascii=False) + "\n")


def truncate_jsonl(file: Path, step: int) -> None:
    """Removes the lines after a step from a JSON lines file, if it exists, because the run resumes from that step."""
    if file.exists():
        write_jsonl(file, [line for line in read_jsonl(file) if line["step"] <= step])


def now() -> str:
    """Returns the current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def compute_wall_seconds(status: dict[str, Any]) -> float | None:
    """Computes the wall time in seconds from the start to the end of a run, or until now; None if unknown."""
    try:
        start = datetime.fromisoformat(status["start"]).timestamp()
        end = datetime.fromisoformat(status["end"]).timestamp() if status.get("end") else time.time()
    except (KeyError, TypeError, ValueError):
        return None
    return end - start


def collect_versions() -> dict[str, str]:
    """Collects the versions of Python and of the packages that determine a run."""
    versions = {"python": platform.python_version(), "platform": sys.platform}
    for package in ("krill", "torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_git_state() -> dict[str, Any] | None:
    """Returns the commit of krill's checkout and whether it has changes; None for an installed package.

    For a code snapshot that a job runs, this is the checkout from which it was copied (krill.launch.snapshot).
    """
    source = Path(__file__).resolve().parents[2]
    if (source / "git.json").is_file() and os.environ.get("KRILL_CODE") == str(source):
        state: dict[str, Any] | None = json.loads((source / "git.json").read_text(encoding="utf-8"))
        return state
    if not (source / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(source), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
