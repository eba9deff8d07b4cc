"""Verifies the hashes of the token store in a background thread while the model trains."""

from __future__ import annotations

from threading import Thread
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.data.store import Store
from krill.errors import KrillError

FIRST_STEP_WAIT_SECONDS = 5.0
"""How long the first step waits for the verification: enough to hash about 5 GB before training starts."""


class StoreVerifier(TrainerCallback):
    """Ends the run with the KrillError of `Store.verify`; a run that reaches its end has read an intact store."""

    def __init__(self, store: Store):
        self.store = store
        self.error: KrillError | OSError | None = None
        self.thread = Thread(target=self._verify, daemon=True)

    def _verify(self) -> None:
        try:
            self.store.verify()
        except (KrillError, OSError) as error:
            self.error = error

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.thread.start()
        self.thread.join(FIRST_STEP_WAIT_SECONDS)
        self._raise_error()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._raise_error()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= state.max_steps:  # an interrupted run does not wait
            self.thread.join()
            self._raise_error()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error
