"""Whether the tokens that a run reads are those that were written: all of the store is hashed while it trains."""

from __future__ import annotations

from threading import Thread
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.data.store import Store
from krill.errors import KrillError

FIRST_STEP_WAIT_SECONDS = 5.0
"""Seconds that the first step waits for it; about 5 GB are hashed in them, and only larger stores while it trains."""


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
        if state.global_step >= state.max_steps:  # a signal does not wait
            self.thread.join()
            self._raise_error()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error
