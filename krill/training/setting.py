"""What is settled before the first step: data, device, batch and length of a run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from krill.config.schema import TrainConfig
from krill.data.encoding import Encoder
from krill.data.packing import IGNORED, Rows, pack, windows
from krill.data.store import Store
from krill.errors import UsageError
from krill.models.isolation import isolating
from krill.tokenizer.folder import TokenizerFolder, load_tokenizer
from krill.training import ranks
from krill.training.backends import choose
from krill.training.launcher import check_launcher
from krill.training.metrics import Reference, reference
from krill.training.plan import Length, Shape, device_name, length, precision, shape

log = logging.getLogger("krill")


@dataclass(frozen=True)
class Setting:
    """All that is settled before the first step."""

    config: TrainConfig
    folder: Path
    store: Store
    tokenizer: TokenizerFolder
    device: torch.device
    precision: str
    backend: str
    why: str | None
    """Why `backend` is that one, where hardware.attention left it open."""
    shape: Shape
    length: Length
    rows: Rows
    held: Rows | None

    @property
    def tokens_per_step(self) -> int:
        return self.shape.rows_per_step * self.config.sequence_len

    def epochs_at(self, step: int) -> float:
        """Passes over the rows after `step` steps; the empty rows that fill up a last step do not count."""
        served = step * self.shape.rows_per_step
        return min(served, self.length.last or served) / len(self.rows)


def settle(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> Setting:
    """Read the store and settle device, rows and length of the run."""
    check_launcher()
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    device = device_name(config.device)
    opened = Store.open(store)
    train = opened.split("train")
    if train.tokens == 0:
        raise UsageError("no training tokens in the store: every document fell into the validation split")
    rows = pack(train, config.sequence_len, config.packing)
    validation = opened.split("validation")
    if validation.tokens == 0:
        log.warning("no document fell into the validation split: raise data.validation_fraction to get one")
    batch = shape(config.batch, config.sequence_len, ranks.count())
    ready = load_tokenizer(tokenizer)
    if ready.signature != opened.tokenizer_signature:
        raise UsageError(
            f"{store} was made with another tokenizer than {tokenizer}: their ids mean other text. Remove the folder "
            "of the tokens, and the same command makes them anew"
        )
    _check_sample(config, ready)
    able, why = backend(config)
    arithmetic = precision(config.hardware.precision, device)
    return Setting(
        config=config,
        folder=folder,
        store=opened,
        tokenizer=ready,
        device=torch.device(device),
        precision=arithmetic,
        backend=able,
        why=why,
        shape=batch,
        length=length(config, len(rows), batch.rows_per_step),
        rows=rows,
        held=windows(validation, config.sequence_len) if validation.tokens else None,
    )


def backend(config: TrainConfig) -> tuple[str, str | None]:
    """The attention backend that computes the model here, documents apart; with hardware.attention=auto also why.

    Raises UsageError where there is none.
    """
    device, asked = device_name(config.device), config.hardware.attention
    chosen, why = choose(asked, device, precision(config.hardware.precision, device))
    able, wrong = isolating(config.model, asked, chosen, device)
    return able, f"{chosen} {wrong}" if wrong else why


def _check_sample(config: TrainConfig, tokenizer: TokenizerFolder) -> None:
    """Raise UsageError now, not when the training is done, for a sample_prompt that the model cannot read."""
    tokens = len(next(Encoder(tokenizer).documents([config.sample_prompt or ""]))) - 1
    if tokens >= config.model.max_position_embeddings:
        raise UsageError(
            f"sample_prompt has {tokens} tokens, the model reads {config.model.max_position_embeddings}; shorten it"
        )


def reference_points(setting: Setting) -> Reference | None:
    """What knows nothing would reach on the validation rows; None without any."""
    if setting.held is None:
        return None
    labels = np.concatenate([setting.held.row(index).labels for index in range(len(setting.held))])
    return reference(torch.from_numpy(labels[labels != IGNORED]), setting.tokenizer.vocab_size)
