"""A run on the Hugging Face Hub: its newest checkpoint, from where it goes on on another machine, and its model.

last-checkpoint/        a checkpoint as it lies in checkpoints/, its manifest included
last-checkpoint/run/    what the run had written about itself when it was saved: RECORD
*                       the finished model

Each upload is one commit: a reader sees the state before or the state after it, never a part.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from krill.config.schema import HubTarget, TrainConfig
from krill.errors import DONE, KrillError, UsageError
from krill.runs import checkpoints
from krill.runs.record import Record, now, read_status, shown

PLACE = "last-checkpoint"
LINES = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl")
RECORD = ("config.yaml", "status.json", *LINES)
PARTIAL = ".remote.partial"
log = logging.getLogger("krill")


@dataclass(frozen=True)
class Remote:
    """A checkpoint of a run that lies on the Hub."""

    repository: str
    commit: str
    step: int
    status: dict[str, Any]


# --- uploading ---------------------------------------------------------------------------------------------


def stage(run: Path, checkpoint: Path, folder: Path) -> None:
    """Put into `folder`, a new one, what is to be uploaded: the training goes on, and deletes old checkpoints.

    The checkpoint's files are linked, where the file system can, the record is copied.
    """
    shutil.copytree(checkpoint, folder, copy_function=_link)
    (folder / "run").mkdir()
    for name in RECORD:
        if (run / name).exists():
            shutil.copy(run / name, folder / "run" / name)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def upload_checkpoint(hub: HubTarget, staged: Path, step: int) -> None:
    """Replace last-checkpoint/ by what `staged` holds. Raises what the Hub's client raises."""
    from huggingface_hub import HfApi

    files = {f"{PLACE}/{file}": source for file, source in _files(staged).items()}
    _commit(HfApi(), hub, files, f"krill: checkpoint of step {step}")


def upload_model(hub: HubTarget, run: Path) -> str:
    """Upload model/ where hub.push asks for it, and mark the run there as finished; returns the commit's address.

    Raises what the Hub's client raises.
    """
    from huggingface_hub import HfApi

    files: dict[str, Path | bytes] = {}
    if hub.push:
        files |= _files(run / "model")
    if hub.checkpoints:
        status = (read_status(run) or {}) | {"state": "finished", "exit": DONE, "end": now()}
        files[f"{PLACE}/run/status.json"] = json.dumps(status, ensure_ascii=False, indent=2).encode()
    return _commit(HfApi(), hub, files, f"krill: {run.name}")


def _files(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}


def _commit(api: Any, hub: HubTarget, files: dict[str, Any], message: str) -> str:
    """One commit; what else lies in last-checkpoint/ goes with a new checkpoint."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # they would cross that of the training
    api.create_repo(hub.id, private=hub.private, exist_ok=True)
    changes: list[Any] = [CommitOperationAdd(path, source) for path, source in files.items()]
    if f"{PLACE}/{checkpoints.MANIFEST}" in files:
        old = (path for path in api.list_repo_files(hub.id) if path.startswith(f"{PLACE}/"))
        changes += [CommitOperationDelete(path) for path in old if path not in files]
    return str(api.create_commit(hub.id, changes, commit_message=message).commit_url)


# --- going on ----------------------------------------------------------------------------------------------


def look(config: TrainConfig, signature: str) -> Remote | None:
    """What the run of `signature` may go on from on the Hub; None: not asked for, or nothing there.

    Asked is with resume=remote, and with resume=auto where hub.checkpoints is on; otherwise nothing is connected to.
    Raises UsageError for resume=remote when there is nothing to go on from, and for both when an unfinished run of
    another configuration is there; KrillError for resume=remote when the Hub cannot be reached.
    """
    asked = config.resume == "remote"
    if not asked and not (config.resume == "auto" and config.hub.checkpoints):
        return None
    assert config.hub.id is not None
    try:
        remote = _newest(config.hub.id)
    except Exception as error:  # the Hub's client raises errors of several libraries
        if asked:
            raise KrillError(
                f"resume=remote: {config.hub.id} cannot be read ({reason(error)}); try again, or write resume=local "
                "to go on with what is on this machine"
            ) from error
        log.warning("hub         %s cannot be read (%s): what is on this machine counts",
                    config.hub.id, reason(error))  # fmt: skip
        return None
    if remote is None and asked:
        raise UsageError(
            f"resume=remote: no checkpoint in {config.hub.id}, or none that you may read (hf auth login); a run puts "
            "its checkpoints there with hub.checkpoints=true"
        )
    return remote and _usable(remote, signature, asked)


def _usable(remote: Remote, signature: str, asked: bool) -> Remote | None:
    finished = remote.status["state"] == "finished"
    if remote.status["signature"] != signature and (asked or not finished):
        raise UsageError(
            f"hub.id={remote.repository} holds the checkpoint of another configuration (step {remote.step} of "
            f"{remote.status.get('name')}); name another repository, or write resume=false to begin anew and replace "
            "it"
        )
    if finished and asked:
        raise UsageError(
            f"resume=remote: the run in {remote.repository} is finished; write resume=false to train it again"
        )
    return None if finished else remote


def catch_up(remote: Remote | None, run: Path) -> None:
    """Bring a run folder, which this process has claimed, to the checkpoint on the Hub, where that is newer.

    Raises KrillError when the checkpoint does not arrive as it was saved.
    """
    here = checkpoints.sound(run / "checkpoints")
    if remote is None or (here and checkpoints.step(here[-1]) >= remote.step):
        return
    log.info("resume: step %d from %s", remote.step, remote.repository)
    record, place = Record(run), {"id": remote.repository, "step": remote.step}
    record.update(remote=place)
    aside = run / PARTIAL
    shutil.rmtree(aside, ignore_errors=True)
    downloaded = _download(remote, aside)
    with checkpoints.aside(run / "checkpoints") as folder:
        os.replace(downloaded / "run", aside / "run")
        checkpoint = folder / f"checkpoint-{remote.step}"
        os.replace(downloaded, checkpoint)
        wrong = checkpoints.faults(checkpoint)
        if wrong:
            raise KrillError(
                "\n".join(wrong)
                + f"\n{remote.repository}: its checkpoint is not what was saved; write resume=local "
                "to go on with what is on this machine, or resume=false to begin anew"
            )
        (checkpoint / checkpoints.MANIFEST).unlink()  # the end of the block writes it anew
        # Before the checkpoint is there, so that no step lacks its lines.
        for name in LINES:
            if (aside / "run" / name).exists():
                os.replace(aside / "run" / name, run / name)
    shutil.rmtree(aside)
    record.update(uploaded=place)


def _newest(repository: str) -> Remote | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    api = HfApi()
    try:
        commit = api.model_info(repository).sha
        with TemporaryDirectory() as folder:  # the cache would answer for a Hub that is not there
            fetch = partial(api.hf_hub_download, repository, revision=commit, local_dir=folder)
            manifest = json.loads(Path(fetch(f"{PLACE}/{checkpoints.MANIFEST}")).read_bytes())
            status = json.loads(Path(fetch(f"{PLACE}/run/status.json")).read_bytes())
    except (RemoteEntryNotFoundError, RepositoryNotFoundError):
        return None
    assert commit is not None
    return Remote(repository, commit, manifest["step"], status)


def _download(remote: Remote, folder: Path) -> Path:
    """last-checkpoint/ in a folder that was not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        snapshot_download(
            remote.repository, revision=remote.commit, local_dir=folder, allow_patterns=f"{PLACE}/*"
        )
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise KrillError(
            f"{remote.repository}: its checkpoint did not come to {shown(folder)} ({reason(error)}); give the same "
            "command again"
        ) from error
    return folder / PLACE


def reason(error: Exception) -> str:
    """The kind of an error, and its first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
