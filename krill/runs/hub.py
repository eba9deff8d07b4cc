"""Uploads the newest checkpoint and the model of a run to the Hugging Face Hub, and resumes on another machine.

last-checkpoint/        a checkpoint of checkpoints/ with its manifest
last-checkpoint/run/    the record of the run when the checkpoint was saved: RECORD_FILES
*                       the finished model

Each upload is one commit: a reader sees the state before or after it, never a partial one.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from krill.checksum import format_checksummed_json
from krill.config.paths import relative_path
from krill.config.schema import HubConfig, TrainConfig
from krill.errors import DONE, KrillError, UsageError
from krill.manifest import CHECKPOINT_MANIFEST, HUB_CHECKPOINT_FOLDER, read_file_manifest
from krill.runs import checkpoints
from krill.runs.line_checksums import get_checksum_file
from krill.runs.record import Record, load_status, now, read_status

JSONL_FILES = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl")
RECORD_FILES = (
    "config.yaml", "status.json", *JSONL_FILES, *(get_checksum_file(Path(name)).name for name in JSONL_FILES),
)  # fmt: skip
DOWNLOAD_FOLDER = ".remote.partial"
log = logging.getLogger("krill")


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint of a run on the Hub."""

    repository: str
    commit: str
    step: int
    status: dict[str, Any]


# --- before the training -----------------------------------------------------------------------------------


def check_hub_access(hub: HubConfig) -> None:
    """Checks that the Hub can be reached and the user is logged in, if the run uploads anything.

    Raises UsageError, before the training and not after it. A Hub that is only busy is not an error.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    keys = [f"hub.{key}=true" for key in ("push", "checkpoints") if getattr(hub, key)]
    if not keys:
        return
    prefix, later = f"{' '.join(keys)} hub.id={hub.id}", "or leave it out and push the finished run later"
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"{prefix}: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, {later}")
    if not get_token():
        raise UsageError(
            f"{prefix}: not logged in to the Hugging Face Hub; run hf auth login, or set HF_TOKEN"
        )
    try:
        user = HfApi().whoami()
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UsageError(
                f"{prefix}: the Hub does not accept the token ({describe_error(error)}); run hf auth login, or set "
                "HF_TOKEN"
            ) from error
        log.warning("hub         login not checked: %s", describe_error(error))
        return
    except Exception as error:  # the Hub client raises errors of several libraries
        raise UsageError(
            f"{prefix}: the Hub cannot be reached ({describe_error(error)}); check the network, {later}"
        ) from error
    if (user.get("auth", {}).get("accessToken") or {}).get("role") == "read":
        raise UsageError(
            f"{prefix}: the token can only read; create one that writes (hf.co/settings/tokens), then hf auth login"
        )


# --- uploading ---------------------------------------------------------------------------------------------


def stage_upload(run: Path, checkpoint: Path, folder: Path) -> None:
    """Stages an upload in `folder`, which is created, because the training continues and deletes old checkpoints.

    The files of the checkpoint are hard-linked if the file system supports it; the record is copied.
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
    """Replaces last-checkpoint/ with the files in `staged`. Raises the errors of the Hub client."""
    from huggingface_hub import HfApi

    files = {f"{HUB_CHECKPOINT_FOLDER}/{file}": source for file, source in _list_files(staged).items()}
    _create_commit(HfApi(), hub, files, f"krill: checkpoint of step {step}")


def upload_model(hub: HubConfig, run: Path) -> str:
    """Uploads model/ if hub.push is set, and marks the run on the Hub as finished; returns the URL of the commit.

    Raises the errors of the Hub client.
    """
    from huggingface_hub import HfApi

    files: dict[str, Path | bytes] = {}
    if hub.push:
        files |= _list_files(run / "model")
    if hub.checkpoints:
        status = (read_status(run) or {}) | {"state": "finished", "exit": DONE, "end": now()}
        files[f"{HUB_CHECKPOINT_FOLDER}/run/status.json"] = format_checksummed_json(status).encode()
    return _create_commit(HfApi(), hub, files, f"krill: {run.name}")


def _list_files(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}


def _create_commit(api: Any, hub: HubConfig, files: dict[str, Any], message: str) -> str:
    """Creates one commit; with a new checkpoint, all other files in last-checkpoint/ are deleted."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # they would interfere with the progress bar of the training
    api.create_repo(hub.id, private=hub.private, exist_ok=True)
    changes: list[Any] = [CommitOperationAdd(path, source) for path, source in files.items()]
    if f"{HUB_CHECKPOINT_FOLDER}/{CHECKPOINT_MANIFEST}" in files:
        old = (path for path in api.list_repo_files(hub.id) if path.startswith(f"{HUB_CHECKPOINT_FOLDER}/"))
        changes += [CommitOperationDelete(path) for path in old if path not in files]
    return str(api.create_commit(hub.id, changes, commit_message=message).commit_url)


# --- resume ------------------------------------------------------------------------------------------------


def may_resume_from_hub(config: TrainConfig) -> bool:
    """Returns whether a run looks for a newer checkpoint on the Hub before it starts."""
    return config.resume == "remote" or (config.resume == "auto" and config.hub.checkpoints)


def find_remote_checkpoint(config: TrainConfig, signature: str) -> HubCheckpoint | None:
    """Returns the checkpoint on the Hub from which the run of `signature` can resume, or None.

    The Hub is contacted only with resume=remote, or with resume=auto and hub.checkpoints=true.

    Raises:
        UsageError: with resume=remote, there is no checkpoint; or the Hub has an unfinished run of another
            configuration.
        KrillError: with resume=remote, the Hub cannot be reached.
    """
    is_required = config.resume == "remote"
    if not may_resume_from_hub(config):
        return None
    assert config.hub.id is not None
    try:
        remote = _fetch_newest(config.hub.id)
    except Exception as error:  # the Hub client raises errors of several libraries
        if is_required:
            raise KrillError(
                f"resume=remote: {config.hub.id} cannot be read ({describe_error(error)}); try again, or set "
                "resume=local to resume from this machine"
            ) from error
        log.warning("hub         %s cannot be read (%s), using the checkpoints on this machine",
                    config.hub.id, describe_error(error))  # fmt: skip
        return None
    if remote is None and is_required:
        raise UsageError(
            f"resume=remote: no checkpoint in {config.hub.id}, or no permission to read it (hf auth login); runs "
            "upload checkpoints with hub.checkpoints=true"
        )
    return remote and _check_resumable(remote, signature, is_required)


def _check_resumable(remote: HubCheckpoint, signature: str, is_required: bool) -> HubCheckpoint | None:
    finished = remote.status["state"] == "finished"
    if remote.status["signature"] != signature and (is_required or not finished):
        raise UsageError(
            f"hub.id={remote.repository} holds the checkpoint of another configuration (step {remote.step} of "
            f"{remote.status.get('name')}); use another repository, or set resume=false to start from scratch and "
            "replace it"
        )
    if finished and is_required:
        raise UsageError(
            f"resume=remote: the run in {remote.repository} is finished; set resume=false to train again"
        )
    return None if finished else remote


def download_checkpoint(remote: HubCheckpoint | None, run: Path) -> None:
    """Downloads the checkpoint on the Hub into a run folder claimed by this process, if it is newer than local ones.

    Raises KrillError if the downloaded checkpoint is not valid.
    """
    local = checkpoints.complete_checkpoints(run / "checkpoints")
    if remote is None or (local and checkpoints.parse_step(local[-1]) >= remote.step):
        return
    log.info("resume      step %d from %s", remote.step, remote.repository)
    record, source = Record(run), {"id": remote.repository, "step": remote.step}
    record.update(remote=source)
    staging = run / DOWNLOAD_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    downloaded = _download_snapshot(remote, staging)
    with checkpoints.staged_checkpoint(run / "checkpoints") as folder:
        os.replace(downloaded / "run", staging / "run")
        checkpoint = folder / f"checkpoint-{remote.step}"
        os.replace(downloaded, checkpoint)
        problems = checkpoints.verify(checkpoint)
        if problems:
            raise KrillError(
                "\n".join(problems)
                + f"\n{remote.repository}: the checkpoint is corrupt; set resume=local to resume from this machine, "
                "or resume=false to start from scratch"
            )
        (checkpoint / CHECKPOINT_MANIFEST).unlink()  # written again at the end of the block
        # Before the checkpoint appears, so that its step does not lack lines.
        for name in filter(lambda name: (staging / "run" / name).exists(), JSONL_FILES):
            checksums = get_checksum_file(run / name)
            checksums.unlink(missing_ok=True)
            os.replace(staging / "run" / name, run / name)
            if (staging / "run" / checksums.name).exists():
                os.replace(staging / "run" / checksums.name, checksums)
    shutil.rmtree(staging)
    record.update(uploaded=source)


def _fetch_newest(repository: str) -> HubCheckpoint | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    api = HfApi()
    try:
        commit = api.model_info(repository).sha
        with TemporaryDirectory() as folder:  # the cache would hide that the Hub cannot be reached
            fetch = partial(api.hf_hub_download, repository, revision=commit, local_dir=folder)
            manifest = read_file_manifest(Path(fetch(f"{HUB_CHECKPOINT_FOLDER}/{CHECKPOINT_MANIFEST}")))
            status, damage = load_status(Path(fetch(f"{HUB_CHECKPOINT_FOLDER}/run/status.json")).parent)
    except (RemoteEntryNotFoundError, RepositoryNotFoundError):
        return None
    if isinstance(manifest, str):
        raise KrillError(f"{HUB_CHECKPOINT_FOLDER}/{CHECKPOINT_MANIFEST} {manifest}")
    if status is None:
        raise KrillError(f"{HUB_CHECKPOINT_FOLDER}/run/status.json {damage}")
    assert commit is not None
    return HubCheckpoint(repository, commit, manifest["step"], status)


def _download_snapshot(remote: HubCheckpoint, folder: Path) -> Path:
    """Downloads last-checkpoint/ into a new folder and returns its path."""
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
    except Exception as error:  # the Hub client raises errors of several libraries
        raise KrillError(
            f"{remote.repository}: the checkpoint could not be downloaded to {relative_path(folder)} "
            f"({describe_error(error)}); run the same command again"
        ) from error
    return folder / HUB_CHECKPOINT_FOLDER


def describe_error(error: Exception) -> str:
    """Returns the type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
