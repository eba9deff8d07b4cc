"""What is settled before the first step: data, device, batch and length of a run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from krill.config.schema import TrainConfig
from krill.data.encoding import Encoder
from krill.data.packing import IGNORE_INDEX, Rows, pack, pack_windows
from krill.data.store import Store
from krill.errors import UsageError
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer
from krill.training import ranks
from krill.training.batch_shape import (
    BatchShape,
    TrainingLength,
    compute_batch_shape,
    compute_training_length,
)
from krill.training.compute.setup import ComputeSetup
from krill.training.metrics.evaluate import Baselines, compute_baselines

log = logging.getLogger("krill")


@dataclass(frozen=True)
class RunSetup:
    """All that is settled before the first step."""

    config: TrainConfig
    folder: Path
    store: Store
    tokenizer: TokenizerFolder
    device: torch.device
    precision: str
    attention_backend: str
    backend_reason: str | None
    """Why it is that backend, where hardware.attention left it open."""
    batch_shape: BatchShape
    length: TrainingLength
    train_rows: Rows
    validation_rows: Rows | None

    @property
    def tokens_per_step(self) -> int:
        return self.batch_shape.rows_per_step * self.config.sequence_len

    def epochs_at(self, step: int) -> float:
        """Passes over the rows after `step` steps; the empty rows that fill up a last step do not count."""
        served = step * self.batch_shape.rows_per_step
        return min(served, self.length.total_rows or served) / len(self.train_rows)


def build_run_setup(
    config: TrainConfig, folder: Path, store: Path, tokenizer: Path, compute: ComputeSetup
) -> RunSetup:
    """Reads the store and resolves rows, batch shape and length of the run."""
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    opened = Store.open(store)
    train = opened.get_split("train")
    if train.tokens == 0:
        raise UsageError("no training tokens in the store: every document fell into the validation split")
    rows = pack(train, config.sequence_len, config.packing)
    validation = opened.get_split("validation")
    if validation.tokens == 0:
        log.warning("no document fell into the validation split: raise data.validation_fraction to get one")
    batch = compute_batch_shape(config.batch, config.sequence_len, ranks.get_world_size())
    ready = load_tokenizer(tokenizer)
    if ready.signature != opened.tokenizer_signature:
        raise UsageError(
            f"{store} was made with another tokenizer than {tokenizer}: their ids mean other text. Remove the folder "
            "of the tokens, and the same command makes them anew"
        )
    _check_sample_prompt(config, ready)
    return RunSetup(
        config=config,
        folder=folder,
        store=opened,
        tokenizer=ready,
        device=torch.device(compute.device),
        precision=compute.precision,
        attention_backend=compute.attention_backend,
        backend_reason=compute.backend_reason,
        batch_shape=batch,
        length=compute_training_length(config, len(rows), batch.rows_per_step),
        train_rows=rows,
        validation_rows=pack_windows(validation, config.sequence_len) if validation.tokens else None,
    )


def _check_sample_prompt(config: TrainConfig, tokenizer: TokenizerFolder) -> None:
    """Raise UsageError now, not when the training is done, for a sample_prompt that the model cannot read."""
    tokens = len(next(Encoder(tokenizer).encode_documents([config.sample_prompt or ""]))) - 1
    if tokens >= config.model.max_position_embeddings:
        raise UsageError(
            f"sample_prompt has {tokens} tokens, the model reads {config.model.max_position_embeddings}; shorten it"
        )


def compute_validation_baselines(setting: RunSetup) -> Baselines | None:
    """What knows nothing would reach on the validation rows; None without any."""
    if setting.validation_rows is None:
        return None
    labels = np.concatenate(
        [setting.validation_rows.get_row(index).labels for index in range(len(setting.validation_rows))]
    )
    return compute_baselines(torch.from_numpy(labels[labels != IGNORE_INDEX]), setting.tokenizer.vocab_size)
