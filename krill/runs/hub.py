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

from krill.config.schema import HubConfig, TrainConfig
from krill.errors import DONE, KrillError, UsageError
from krill.runs import checkpoints
from krill.runs.record import Record, now, read_status, relative_path

HUB_CHECKPOINT_FOLDER = "last-checkpoint"
JSONL_FILES = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl")
RECORD_FILES = ("config.yaml", "status.json", *JSONL_FILES)
DOWNLOAD_FOLDER = ".remote.partial"
log = logging.getLogger("krill")


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint of a run that lies on the Hub."""

    repository: str
    commit: str
    step: int
    status: dict[str, Any]


# --- uploading ---------------------------------------------------------------------------------------------


def stage_upload(run: Path, checkpoint: Path, folder: Path) -> None:
    """Put into `folder`, a new one, what is to be uploaded: the training goes on, and deletes old checkpoints.

    The checkpoint's files are linked, where the file system can, the record is copied.
    """
    shutil.copytree(checkpoint, folder, copy_function=_link_or_copy)
    (folder / "run").mkdir()
    for name in RECORD_FILES:
        if (run / name).exists():
            shutil.copy(run / name, folder / "run" / name)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def upload_checkpoint(hub: HubConfig, staged: Path, step: int) -> None:
    """Replace last-checkpoint/ by what `staged` holds. Raises what the Hub's client raises."""
    from huggingface_hub import HfApi

    files = {f"{HUB_CHECKPOINT_FOLDER}/{file}": source for file, source in _list_files(staged).items()}
    _create_commit(HfApi(), hub, files, f"krill: checkpoint of step {step}")


def upload_model(hub: HubConfig, run: Path) -> str:
    """Upload model/ where hub.push asks for it, and mark the run there as finished; returns the commit's address.

    Raises what the Hub's client raises.
    """
    from huggingface_hub import HfApi

    files: dict[str, Path | bytes] = {}
    if hub.push:
        files |= _list_files(run / "model")
    if hub.checkpoints:
        status = (read_status(run) or {}) | {"state": "finished", "exit": DONE, "end": now()}
        files[f"{HUB_CHECKPOINT_FOLDER}/run/status.json"] = json.dumps(
            status, ensure_ascii=False, indent=2
        ).encode()
    return _create_commit(HfApi(), hub, files, f"krill: {run.name}")


def _list_files(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}


def _create_commit(api: Any, hub: HubConfig, files: dict[str, Any], message: str) -> str:
    """One commit; what else lies in last-checkpoint/ goes with a new checkpoint."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # they would cross that of the training
    api.create_repo(hub.id, private=hub.private, exist_ok=True)
    changes: list[Any] = [CommitOperationAdd(path, source) for path, source in files.items()]
    if f"{HUB_CHECKPOINT_FOLDER}/{checkpoints.MANIFEST}" in files:
        old = (path for path in api.list_repo_files(hub.id) if path.startswith(f"{HUB_CHECKPOINT_FOLDER}/"))
        changes += [CommitOperationDelete(path) for path in old if path not in files]
    return str(api.create_commit(hub.id, changes, commit_message=message).commit_url)


# --- going on ----------------------------------------------------------------------------------------------


def find_remote_checkpoint(config: TrainConfig, signature: str) -> HubCheckpoint | None:
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
        remote = _fetch_newest(config.hub.id)
    except Exception as error:  # the Hub's client raises errors of several libraries
        if asked:
            raise KrillError(
                f"resume=remote: {config.hub.id} cannot be read ({describe_error(error)}); try again, or write resume=local "
                "to go on with what is on this machine"
            ) from error
        log.warning("hub         %s cannot be read (%s): what is on this machine counts",
                    config.hub.id, describe_error(error))  # fmt: skip
        return None
    if remote is None and asked:
        raise UsageError(
            f"resume=remote: no checkpoint in {config.hub.id}, or none that you may read (hf auth login); a run puts "
            "its checkpoints there with hub.checkpoints=true"
        )
    return remote and _check_resumable(remote, signature, asked)


def _check_resumable(remote: HubCheckpoint, signature: str, asked: bool) -> HubCheckpoint | None:
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


def download_checkpoint(remote: HubCheckpoint | None, run: Path) -> None:
    """Bring a run folder, which this process has claimed, to the checkpoint on the Hub, where that is newer.

    Raises KrillError when the checkpoint does not arrive as it was saved.
    """
    here = checkpoints.complete_checkpoints(run / "checkpoints")
    if remote is None or (here and checkpoints.parse_step(here[-1]) >= remote.step):
        return
    log.info("resume: step %d from %s", remote.step, remote.repository)
    record, place = Record(run), {"id": remote.repository, "step": remote.step}
    record.update(remote=place)
    aside = run / DOWNLOAD_FOLDER
    shutil.rmtree(aside, ignore_errors=True)
    downloaded = _download_snapshot(remote, aside)
    with checkpoints.staged_checkpoint(run / "checkpoints") as folder:
        os.replace(downloaded / "run", aside / "run")
        checkpoint = folder / f"checkpoint-{remote.step}"
        os.replace(downloaded, checkpoint)
        wrong = checkpoints.verify(checkpoint)
        if wrong:
            raise KrillError(
                "\n".join(wrong)
                + f"\n{remote.repository}: its checkpoint is not what was saved; write resume=local "
                "to go on with what is on this machine, or resume=false to begin anew"
            )
        (checkpoint / checkpoints.MANIFEST).unlink()  # the end of the block writes it anew
        # Before the checkpoint is there, so that no step lacks its lines.
        for name in JSONL_FILES:
            if (aside / "run" / name).exists():
                os.replace(aside / "run" / name, run / name)
    shutil.rmtree(aside)
    record.update(uploaded=place)


def _fetch_newest(repository: str) -> HubCheckpoint | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    api = HfApi()
    try:
        commit = api.model_info(repository).sha
        with TemporaryDirectory() as folder:  # the cache would answer for a Hub that is not there
            fetch = partial(api.hf_hub_download, repository, revision=commit, local_dir=folder)
            manifest = json.loads(Path(fetch(f"{HUB_CHECKPOINT_FOLDER}/{checkpoints.MANIFEST}")).read_bytes())
            status = json.loads(Path(fetch(f"{HUB_CHECKPOINT_FOLDER}/run/status.json")).read_bytes())
    except (RemoteEntryNotFoundError, RepositoryNotFoundError):
        return None
    assert commit is not None
    return HubCheckpoint(repository, commit, manifest["step"], status)


def _download_snapshot(remote: HubCheckpoint, folder: Path) -> Path:
    """last-checkpoint/ in a folder that was not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        snapshot_download(
            remote.repository,
            revision=remote.commit,
            local_dir=folder,
            allow_patterns=f"{HUB_CHECKPOINT_FOLDER}/*",
        )
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise KrillError(
            f"{remote.repository}: its checkpoint did not come to {relative_path(folder)} ({describe_error(error)}); give the same "
            "command again"
        ) from error
    return folder / HUB_CHECKPOINT_FOLDER


def describe_error(error: Exception) -> str:
    """The kind of an error, and its first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
