"""What a run uploads to the Hugging Face Hub, where it is asked to: checkpoints while it trains, last the model."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from threading import Lock, Thread

from krill.config.schema import HubTarget
from krill.errors import KrillError
from krill.runs import checkpoints
from krill.runs.record import Record, shown
from krill.runs.remote import reason, stage, upload_checkpoint, upload_model

STAGED = ".upload"
log = logging.getLogger("krill")


class Uploads:
    """Uploads each checkpoint in the background, but for those that a newer one overtakes while they wait.

    What fails is told, and tried again with the next one. A context around the training: where it is left, the newest
    checkpoint is on the Hub, or that was tried once more; an interrupt does not wait for it.
    """

    def __init__(self, record: Record, hub: HubTarget):
        self.record, self.hub, self.run = record, hub, record.folder
        self.wanted = hub.checkpoints and record.writes
        self.one_at_a_time = Lock()
        self.threads: list[Thread] = []
        self.newest: Path | None = None
        self.failed: Exception | None = None
        place = record.status.get("uploaded", {})
        self.uploaded: int | None = place.get("step") if place.get("id") == hub.id else None
        if record.writes:
            shutil.rmtree(self.run / STAGED, ignore_errors=True)

    def saved(self, step: int) -> None:
        """To be called when the checkpoint of a step is in its place."""
        if self.wanted:
            self._start(step)

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            self.settle()

    def settle(self) -> None:
        """Wait until the newest checkpoint is uploaded; try once more where that has failed."""
        saved = checkpoints.sound(self.run / "checkpoints") if self.wanted else []
        if not saved:
            return
        step = checkpoints.step(saved[-1])
        if any(thread.is_alive() for thread in self.threads):
            log.info("hub         waiting until the checkpoint of step %d is in %s", step, self.hub.id)
        self._wait()
        if self.failed or self.uploaded != step:
            self._start(step)
            self._wait()
        if self.uploaded is not None:
            self.record.update(uploaded={"id": self.hub.id, "step": self.uploaded})

    def finish(self) -> None:
        """Upload the finished model, last of all.

        Raises KrillError where that fails, or where the last checkpoint is not on the Hub.
        """
        if not self.hub.push and not self.hub.checkpoints:
            return
        self.settle()
        try:
            if self.failed:
                raise self.failed
            url = upload_model(self.hub, self.run)
        except Exception as error:  # the Hub's client raises errors of several libraries
            raise KrillError(
                f"hub: the upload to {self.hub.id} failed ({reason(error)}). The model is in "
                f"{shown(self.run / 'model')}; give the same command again to try once more"
            ) from error
        log.info("hub         %s", url)

    def _start(self, step: int) -> None:
        self.newest = self.run / STAGED / f"{step}-{time.monotonic_ns()}"
        stage(self.run, self.run / "checkpoints" / f"checkpoint-{step}", self.newest)
        thread = Thread(target=self._upload, args=(step, self.newest), daemon=True)
        self.threads = [*(thread for thread in self.threads if thread.is_alive()), thread]
        thread.start()

    def _upload(self, step: int, staged: Path) -> None:
        with self.one_at_a_time:
            if staged == self.newest:
                try:
                    upload_checkpoint(self.hub, staged, step)
                    self.uploaded, self.failed = step, None
                    log.debug("hub         checkpoint of step %d uploaded", step)
                except Exception as error:
                    self.failed = error
                    log.warning("hub         checkpoint of step %d not uploaded: %s", step, reason(error))
            shutil.rmtree(staged, ignore_errors=True)

    def _wait(self) -> None:
        for thread in self.threads:
            thread.join()
