"""Uploads a run to the Hugging Face Hub: checkpoints during training, and the model at the end."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from threading import Lock, Thread

from krill.config.paths import relative_path
from krill.config.schema import HubConfig
from krill.errors import KrillError
from krill.models.model_folder import verify_model
from krill.runs import checkpoints
from krill.runs.hub import describe_error, stage_upload, upload_checkpoint, upload_model
from krill.runs.record import Record

STAGING_FOLDER = ".upload"
log = logging.getLogger("krill")


def push_finished_run(record: Record, hub: HubConfig) -> None:
    """Uploads the model of a finished run, unless hub.push is not set or it is in that repository already.

    Raises UsageError if a file of the model is damaged, KrillError if the upload fails.
    """
    if not hub.push or record.status.get("pushed") == hub.id:
        return
    verify_model(record.folder / "model", f"hub.push=true hub.id={hub.id}")
    _upload_model(record, hub.model_copy(update={"checkpoints": False}))


def _upload_model(record: Record, hub: HubConfig) -> None:
    try:
        url = upload_model(hub, record.folder)
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise _build_upload_error(record, hub, error) from error
    log.info("hub         %s", url)
    if hub.push:
        record.update(pushed=hub.id)


def _build_upload_error(record: Record, hub: HubConfig, error: Exception) -> KrillError:
    return KrillError(
        f"hub: the upload to {hub.id} failed ({describe_error(error)}). The model is in "
        f"{relative_path(record.folder / 'model')}; run the same command to retry"
    )


class HubUploader:
    """Uploads each checkpoint in the background, except those superseded by a newer one while they wait.

    A failed upload is logged, and retried with the next checkpoint. Also a context manager around the training: on
    exit it waits until the newest checkpoint is on the Hub, retrying once; an interrupt does not wait.
    """

    def __init__(self, record: Record, hub: HubConfig):
        self.record, self.hub, self.run_folder = record, hub, record.folder
        self.should_upload = hub.checkpoints and record.is_writer
        self.upload_lock = Lock()
        self.threads: list[Thread] = []
        self.latest_staged: Path | None = None
        self.last_error: Exception | None = None
        uploaded = record.status.get("uploaded", {})
        self.uploaded_step: int | None = uploaded.get("step") if uploaded.get("id") == hub.id else None
        if record.is_writer:
            shutil.rmtree(self.run_folder / STAGING_FOLDER, ignore_errors=True)

    def on_checkpoint_saved(self, step: int) -> None:
        """Starts the upload of the checkpoint of `step`; called when it is complete."""
        if self.should_upload:
            self._start_upload(step)

    def __enter__(self) -> HubUploader:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is None or issubclass(exc_type, Exception):
            self.wait()

    def wait(self) -> None:
        """Waits until the newest checkpoint is uploaded; retries once if that failed."""
        saved = (
            checkpoints.complete_checkpoints(self.run_folder / "checkpoints") if self.should_upload else []
        )
        if not saved:
            return
        step = checkpoints.parse_step(saved[-1])
        if any(thread.is_alive() for thread in self.threads):
            log.info(
                "hub         waiting for the checkpoint of step %d to be uploaded to %s", step, self.hub.id
            )
        self._join_threads()
        if self.last_error or self.uploaded_step != step:
            self._start_upload(step)
            self._join_threads()
        if self.uploaded_step is not None:
            self.record.update(uploaded={"id": self.hub.id, "step": self.uploaded_step})

    def finish(self) -> None:
        """Uploads the finished model, after the last checkpoint.

        Raises KrillError if that fails, or if the last checkpoint could not be uploaded.
        """
        if not self.hub.push and not self.hub.checkpoints:
            return
        self.wait()
        if self.last_error:
            raise _build_upload_error(self.record, self.hub, self.last_error) from self.last_error
        _upload_model(self.record, self.hub)

    def _start_upload(self, step: int) -> None:
        self.latest_staged = self.run_folder / STAGING_FOLDER / f"{step}-{time.monotonic_ns()}"
        stage_upload(
            self.run_folder, self.run_folder / "checkpoints" / f"checkpoint-{step}", self.latest_staged
        )
        thread = Thread(target=self._run_upload, args=(step, self.latest_staged), daemon=True)
        self.threads = [*(thread for thread in self.threads if thread.is_alive()), thread]
        thread.start()

    def _run_upload(self, step: int, staged: Path) -> None:
        with self.upload_lock:
            if staged == self.latest_staged:
                try:
                    upload_checkpoint(self.hub, staged, step)
                    self.uploaded_step, self.last_error = step, None
                    log.debug("hub         checkpoint of step %d uploaded", step)
                except Exception as error:
                    self.last_error = error
                    log.warning(
                        "hub         checkpoint of step %d not uploaded: %s", step, describe_error(error)
                    )
            shutil.rmtree(staged, ignore_errors=True)

    def _join_threads(self) -> None:
        for thread in self.threads:
            thread.join()
