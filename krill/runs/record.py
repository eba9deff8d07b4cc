"""What a run writes about itself: status.json, config.yaml, metrics.jsonl, log.txt."""

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
from krill.errors import KrillError, SignalInterrupt
from krill.runs.slurm import get_current_job

if TYPE_CHECKING:  # krill-runs needs no schema, which takes longer to load than all that it does
    from krill.config.schema import Section

RecordedState = Literal["queued", "running", "finished", "failed", "stopped"]
RECORDED_STATES = get_args(RecordedState)
STATUS_TYPES: dict[str, type] = {
    "name": str, "command": str, "overrides": list, "metrics": dict, "best": dict, "start": str, "end": str,
    "error": str, "host": str, "pid": int, "slurm_job_id": str, "submission": str, "submitted_as": str, "result": str,
    "starts": int, "steps": int,
}  # fmt: skip
"""Of what kind an entry of status.json is, where it is not null."""
log = logging.getLogger("krill")

METRICS_TAIL_BYTES = 2**14
"""Bytes of metrics.jsonl that are read to know how far a run is."""


def read_status(folder: Path) -> dict[str, Any] | None:
    """status.json of a run folder, or None where there is none, or none of krill's; entries of a wrong kind are left
    out."""
    status = read_json_object(folder / "status.json")
    if not isinstance(status.get("signature"), str) or status.get("state") not in RECORDED_STATES:
        return None
    return {
        key: value
        for key, value in status.items()
        if value is None or isinstance(value, STATUS_TYPES.get(key, object))
    }


def read_json_object(file: Path) -> dict[str, Any]:
    """What a JSON file holds; empty where there is none, it cannot be read, or it holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_done(folder: Path) -> bool:
    """Whether what belongs in `folder` is finished; a result elsewhere that it names must still be there."""
    status = read_status(folder) or {"state": ""}
    # The result of a task does not exist before all tasks are merged.
    return status["state"] == "finished" and Path(status.get("result") or folder).exists()


def relative_path(folder: Path) -> Path:
    """`folder` as short as it can be typed from here."""
    try:
        return folder.relative_to(Path.cwd())
    except ValueError:
        return folder


class Record:
    """Writes a run folder's files; of several processes that train together one writes."""

    def __init__(self, folder: Path, is_writer: bool = True):
        self.folder, self.is_writer = folder, is_writer
        self.status: dict[str, Any] = read_status(folder) or {}

    @contextmanager
    def record_lifecycle(self, config: Section, signature: str, overrides: list[str]) -> Iterator[None]:
        """Say what runs, then how it ended, whatever happens in between; messages also go to log.txt."""
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
        # status.json comes first: a folder with other files only would be taken for something else's.
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
        text = yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
        atomic.write_text(self.folder / "config.yaml", text)

    def _end(self, state: RecordedState, exit_code: int, **values: Any) -> None:
        self.update(state=state, exit=exit_code, end=now(), **values)

    def update(self, **values: Any) -> None:
        """Change entries of status.json; what another record of this run wrote there stays."""
        self.status = (read_status(self.folder) or self.status) | values
        if self.is_writer:
            atomic.write_json(self.folder / "status.json", self.status)

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self.is_writer:
            append_jsonl(self.folder / "metrics.jsonl", values)

    def truncate_metrics(self, step: int, begun_in: Path) -> None:
        """Begin with the lines up to `step` of the run in `begun_in`, this one or another: it goes on from there."""
        if self.is_writer:
            kept = (line for line in read_metrics(begun_in) if line["step"] <= step)
            write_jsonl(self.folder / "metrics.jsonl", kept)

    @contextmanager
    def log_to_file(self, name: str = "log.txt") -> Iterator[None]:
        """krill's messages also go to a file of the folder, with the time, and the details there alone."""
        handler = logging.FileHandler(self.folder / name, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level, screen = log.level, [(other, other.level) for other in log.handlers]
        for other, _ in screen:
            other.setLevel(max(other.level, logging.INFO))
        log.setLevel(logging.DEBUG)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            handler.close()
            log.setLevel(level)
            for other, before in screen:
                other.setLevel(before)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut off by a kill is left out."""
    return read_jsonl(folder / "metrics.jsonl")


def read_last_metrics(folder: Path, keys: Collection[str]) -> dict[str, Any]:
    """The newest value of each of these metrics that the end of metrics.jsonl holds, however long that is."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - METRICS_TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for line in reversed(lines[:-1]):
        try:
            found = json.loads(line) | found
        except (ValueError, TypeError):  # the first one may have been cut
            continue
        if found.keys() >= set(keys):
            break
    return {key: found[key] for key in keys if key in found}


def read_validations(folder: Path) -> list[dict[str, Any]]:
    """Those lines of metrics.jsonl that a validation wrote."""
    return [line for line in read_metrics(folder) if "eval_loss" in line]


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines, none where there is no file; a last one that a kill cut off is left out."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def write_jsonl(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Replace a file of JSON lines."""
    atomic.write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def append_jsonl(file: Path, line: dict[str, Any]) -> None:
    """Add one to a file of JSON lines."""
    with open(file, "a", encoding="utf-8") as open_file:
        open_file.write(json.dumps(line, ensure_ascii=False) + "\n")


def truncate_jsonl(file: Path, step: int) -> None:
    """Leave the lines up to a step in a file of JSON lines, if it is there: the run goes on from that step."""
    if file.exists():
        write_jsonl(file, [line for line in read_jsonl(file) if line["step"] <= step])


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def compute_wall_seconds(status: dict[str, Any]) -> float | None:
    """Wall time between start and end of a run, or until now; None where that is not known."""
    try:
        start = datetime.fromisoformat(status["start"]).timestamp()
        end = datetime.fromisoformat(status["end"]).timestamp() if status.get("end") else time.time()
    except (KeyError, TypeError, ValueError):
        return None
    return end - start


def collect_versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine a run."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in ("krill", "torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_git_state() -> dict[str, Any] | None:
    """Commit of krill's checkout and whether it was changed since; None for an installed package.

    Of a copy that a job runs: that of the checkout it was copied from (krill.launch.snapshot).
    """
    source = Path(__file__).resolve().parents[2]
    if (source / "git.json").is_file() and os.environ.get("KRILL_CODE") == str(source):
        told: dict[str, Any] | None = json.loads((source / "git.json").read_text(encoding="utf-8"))
        return told
    if not (source / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
