"""Writes and reads the record of a run: status.json, config.yaml, log.txt; json_lines.py has metrics.jsonl."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

import krill
from krill import errors
from krill.checksum import (
    ChecksumError,
    has_no_checksum,
    read_checksummed_json,
    read_checksummed_text,
    write_checksummed_json,
    write_checksummed_text,
)
from krill.config.paths import relative_path
from krill.config.secrets import mask_secrets
from krill.errors import KrillError, SignalInterrupt, UsageError
from krill.runs.json_lines import append_jsonl, read_metrics, write_jsonl
from krill.runs.slurm import get_current_job
from krill.terminal import TerminalFormatter

if TYPE_CHECKING:  # krill-runs does not need the schema, which takes longer to import than the command itself
    from krill.config.schema import Section

RecordedState = Literal["queued", "running", "finished", "failed", "stopped"]
RECORDED_STATES = get_args(RecordedState)
STATUS_TYPES: dict[str, type] = {
    "name": str, "command": str, "overrides": list, "metrics": dict, "best": dict, "start": str, "end": str,
    "error": str, "host": str, "pid": int, "slurm_job_id": str, "submission": str, "submitted_as": str, "result": str,
    "starts": int, "steps": int, "rows_per_step": int, "last_start": str, "seconds": float, "command_seconds": float,
    "preparation_seconds": float, "training_seconds": float, "training_waited": float, "peak_memory": int,
    "tracker_ids": dict, "plan": dict, "verdict": dict, "lr": float, "rule": list,
}  # fmt: skip
"""Type of each entry in status.json, unless it is null."""
log = logging.getLogger("krill")

OVERRIDES_FILE = Path(".hydra", "overrides.yaml")
"""File in a run folder: the overrides of the command line, which from= reads."""
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, ten times faster, where PyYAML has it."""
_RESTORE = "restore it, or remove it"


def read_status(folder: Path) -> dict[str, Any] | None:
    """Reads status.json of a run folder, without entries of a wrong type; None if it is missing or not krill's.

    Also None if it is damaged: `find_status_damage` says so.
    """
    status = load_status(folder)[0]
    return status and {
        key: value
        for key, value in status.items()
        if value is None or isinstance(value, STATUS_TYPES.get(key, object))
    }


def find_status_damage(folder: Path) -> str | None:
    """Returns what is wrong with status.json of a run folder; None if nothing is, or the folder is not a run's."""
    is_run = any((folder / name).exists() for name in (".lock", "config.yaml"))
    return load_status(folder)[1] if is_run else None


def load_status(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Returns the content of status.json and None, or None and what is wrong with the file."""
    try:
        status = read_checksummed_json(folder / "status.json", _has_valid_crc32)
    except (FileNotFoundError, NotADirectoryError):  # not yet written, unless there are checkpoints
        return None, "is missing" if (folder / "checkpoints").is_dir() else None
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    except ChecksumError as error:
        return None, error.problem
    if not isinstance(status.get("signature"), str) or status.get("state") not in RECORDED_STATES:
        return None, "is damaged (it has no signature, or no state)"
    return status, None


def _has_valid_crc32(status: dict[str, Any]) -> bool:
    """Returns whether a status of an earlier version of krill is intact: it had a CRC, which is removed, or none."""
    return status.pop("checksum", None) in (None, zlib.crc32(json.dumps(status).encode()))


def write_status(folder: Path, status: dict[str, Any]) -> None:
    """Writes status.json, with a checksum that reveals damage."""
    write_checksummed_json(folder / "status.json", status)


def read_json_object(file: Path) -> dict[str, Any]:
    """Reads a file of a submission; empty if it is missing, or if it is damaged, which is logged."""
    try:
        return read_checksummed_json(file, has_no_checksum)
    except ChecksumError as error:
        log.warning("%s %s; run the command that submitted it again", relative_path(file), error.problem)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        pass
    return {}


def is_done(folder: Path) -> bool:
    """Returns whether the run in `folder` is finished and its result, which may be elsewhere, still exists."""
    status = read_status(folder) or {"state": ""}
    # The result of a task does not exist before all tasks are merged.
    return status["state"] == "finished" and Path(status.get("result") or folder).exists()


def get_validation_loss(status: dict[str, Any]) -> float | None:
    """Returns the final validation loss in a status, or the lowest so far; None: there is none."""
    losses = ((status.get(key) or {}).get("eval_loss") for key in ("metrics", "best"))
    return next((loss for loss in losses if isinstance(loss, (int, float))), None)


class LogFile(logging.FileHandler):
    """A log file that loses messages on a full disk, instead of printing a traceback for each or ending the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):  # of messages that are still in the buffer
            super().close()


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
        self.seconds_before = compute_run_seconds(self.folder, self.status) or 0.0
        self.start_time = time.monotonic()
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
            seconds=self.seconds_before,
            start=self.status.get("start", now()),
            last_start=now(),
            end=None,
            error=None,
            versions=collect_versions(),
            git=read_git_state(),
        )
        text = yaml.safe_dump(
            mask_secrets(config.model_dump(mode="json")), allow_unicode=True, sort_keys=False
        )
        write_checksummed_text(self.folder / "config.yaml", text)

    def _end(self, state: RecordedState, exit_code: int, **values: Any) -> None:
        self.update(
            state=state,
            exit=exit_code,
            end=now(),
            seconds=round(self.seconds_before + time.monotonic() - self.start_time, 1),
            **values,
        )

    def update(self, **values: Any) -> None:
        """Updates entries of status.json, without secrets; entries that another record of this run wrote are kept."""
        described = {key: mask_secrets(values[key]) for key in ("overrides", "error") if key in values}
        self.status = (read_status(self.folder) or self.status) | values | described
        if self.is_writer:
            write_status(self.folder, self.status)

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
        handler = LogFile(self.folder / name, encoding="utf-8")
        handler.setFormatter(TerminalFormatter("%(asctime)s %(levelname)s %(message)s"))
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


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.yaml of a run folder; empty if it is missing. Raises UsageError if it is damaged."""
    config = _read_yaml(folder / "config.yaml")
    if config is not None and not isinstance(config, dict):
        raise _build_yaml_error(folder / "config.yaml", "it has no keys")
    return config or {}


def read_overrides(folder: Path) -> list[str]:
    """Reads the overrides of a run folder; empty if they are missing. Raises UsageError if they are damaged."""
    file = folder / OVERRIDES_FILE
    overrides = _read_yaml(file)
    if overrides is not None and not (
        isinstance(overrides, list) and all(isinstance(override, str) for override in overrides)
    ):
        raise _build_yaml_error(file, "it is not a list of overrides")
    return overrides or []


def _read_yaml(file: Path) -> Any:
    """Returns the value in a YAML file of a run, which is not None; None if it is missing."""
    try:
        value = yaml.load(read_checksummed_text(file), _YAML_LOADER)
    except FileNotFoundError:
        return None
    except ChecksumError as error:
        raise UsageError(f"{relative_path(file)} {error.problem}; {_RESTORE}") from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise _build_yaml_error(file, error) from error
    return "" if value is None else value


def _build_yaml_error(file: Path, reason: object) -> UsageError:
    reason = " ".join(str(reason).split())
    return UsageError(f"{relative_path(file)} is damaged ({reason}); {_RESTORE}")


def now() -> str:
    """Returns the current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def compute_run_seconds(folder: Path, status: dict[str, Any], is_running: bool = False) -> float | None:
    """Computes the time in seconds in which the processes of a run worked, without the pauses between them.

    A process that was killed could not record its end: it counts until it last wrote metrics or a log message. The
    time in which a process was stopped (Ctrl-Z) counts too. None if the run has not started.
    """
    start, end = (_parse_time(status.get(key)) for key in ("last_start", "end"))
    if start is None:  # a run of an older version
        start = _parse_time(status.get("start"))
    elif end is not None:
        return status.get("seconds")
    if start is None:
        return None
    if end is None:
        files = ("log.txt", "metrics.jsonl")
        end = time.time() if is_running else max(_get_write_time(folder / name) for name in files)
    return round((status.get("seconds") or 0.0) + max(0.0, end - start), 1)


def _parse_time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None


def _get_write_time(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def collect_versions() -> dict[str, str]:
    """Collects the versions of Python and of the packages that determine a run."""
    packages = ("krill", "torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")
    return {"python": platform.python_version(), "platform": sys.platform, **read_versions(*packages)}


def read_versions(*packages: str) -> dict[str, str]:
    """Returns the versions of those of the packages that are installed; krill counts as installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = krill.__version__ if package == "krill" else metadata.version(package)
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
