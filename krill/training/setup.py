"""Resolves the data, device, batch shape and length of a run before its first step."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from krill.config.schema import TrainConfig
from krill.config.signature import compute_signature
from krill.data.encoding import Encoder
from krill.data.order import row_at
from krill.data.packing import IGNORE_INDEX, Rows, pack, pack_windows
from krill.data.store import Split, Store
from krill.errors import UsageError
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer
from krill.tokenizer.canary import check_canary
from krill.training import ranks
from krill.training.batch_shape import (
    BatchShape,
    TrainingLength,
    compute_batch_shape,
    compute_training_length,
)
from krill.training.batches import TokenCounter
from krill.training.compute.compilation import select_compile
from krill.training.compute.device import resolve_data_ranks
from krill.training.compute.setup import ComputeSetup
from krill.training.metrics.evaluate import Baselines, compute_baselines

log = logging.getLogger("krill")


@dataclass(frozen=True)
class RunSetup:
    """Everything about a run that is resolved before its first step."""

    config: TrainConfig
    folder: Path
    store: Store
    tokenizer: TokenizerFolder
    device: torch.device
    precision: str
    attention_backend: str
    backend_reason: str | None
    """The reason for this backend, where hardware.attention left the choice open."""
    batch_shape: BatchShape
    length: TrainingLength
    is_compiled: bool
    compile_reason: str | None
    """The reason for it, where hardware.compile left the choice open."""
    train_rows: Rows
    validation_rows: Rows | None
    validation_documents: np.ndarray | None
    """The documents of a validation, as indices within the split, where eval_tokens limits them; int64."""

    @property
    def validation_set(self) -> str | None:
        """Identity of the texts of a validation: those held out, or the sample of them; None without any."""
        if self.validation_documents is None:
            return self.store.validation_set
        return compute_signature("sample", self.store.validation_set, self.validation_documents.tolist())

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all ranks together train on in a step, padding included."""
        return self.batch_shape.rows_per_step * self.config.sequence_len

    def epochs_at(self, step: int) -> float:
        """Returns the passes over the rows after `step` steps, without the empty rows that fill up the last one."""
        return self._rows_at(step) / len(self.train_rows)

    def tokens_at(self, step: int) -> int:
        """Returns the tokens that the first `step` steps train on, without padding and empty rows."""
        return self._token_counter.count(self._rows_at(step))

    def _rows_at(self, step: int) -> int:
        rows = step * self.batch_shape.rows_per_step
        return min(rows, self.length.total_rows or rows)

    @cached_property
    def _token_counter(self) -> TokenCounter:
        return TokenCounter(self.train_rows, self.config.seed)


def build_run_setup(
    config: TrainConfig, folder: Path, store: Path, tokenizer: Path, compute: ComputeSetup
) -> RunSetup:
    """Reads the store and resolves the rows, the batch shape and the length of the run.

    Raises UsageError for a store without training tokens or of another tokenizer, and for a sample_prompt that is
    longer than the model reads.
    """
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    token_store = Store.open(store)
    train = token_store.get_split("train")
    if train.tokens == 0:
        raise UsageError(
            f"{store}: no tokens to train on, every document is in the validation split; lower "
            "data.validation_fraction"
        )
    rows = pack(train, config.sequence_len, config.packing)
    validation = token_store.get_split("validation")
    if validation.tokens == 0:
        log.warning("validation  no document is held out; raise data.validation_fraction to measure the loss")
    documents = sample_documents(validation, config.eval_tokens)
    data_ranks = resolve_data_ranks(config, ranks.get_world_size())
    batch_shape = compute_batch_shape(config, data_ranks)
    loaded_tokenizer = load_tokenizer(tokenizer)
    if loaded_tokenizer.signature != token_store.tokenizer_signature:
        raise UsageError(
            f"{store} was encoded with another tokenizer than {tokenizer}: its ids mean other text. Remove the "
            "folder of the tokens, and the same command prepares them again"
        )
    if canary := token_store.manifest["tokenizer"].get("canary"):
        remedy = "Install the earlier version, or remove that folder, and the same command prepares the tokens again"
        check_canary(canary, loaded_tokenizer.backend, str(store), remedy)
    _check_sample_prompt(config, loaded_tokenizer)
    length = compute_training_length(config, len(rows), batch_shape.rows_per_step)
    is_compiled, compile_reason = select_compile(
        config.hardware.compile, compute.device, length.steps * batch_shape.accumulation_steps
    )
    return RunSetup(
        config=config,
        folder=folder,
        store=token_store,
        tokenizer=loaded_tokenizer,
        device=torch.device(compute.device),
        precision=compute.precision,
        attention_backend=compute.attention_backend,
        backend_reason=compute.backend_reason,
        batch_shape=batch_shape,
        length=length,
        is_compiled=is_compiled,
        compile_reason=compile_reason,
        train_rows=rows,
        validation_rows=pack_windows(validation, config.sequence_len, documents)
        if validation.tokens
        else None,
        validation_documents=documents,
    )


def sample_documents(split: Split, eval_tokens: int | None) -> np.ndarray | None:
    """Returns the fewest documents of a sample that have `eval_tokens` tokens to predict, int64; None: all documents.

    The sample depends on the split alone, so that all runs on these tokens have the same one.
    """
    targets = np.diff(split.ends.astype(np.int64), prepend=0) - 1  # all but bos
    if eval_tokens is None or targets.sum() <= eval_tokens:
        return None
    order = row_at(0, 0, np.arange(len(targets)), len(targets))
    count = int(np.searchsorted(np.cumsum(targets[order]), eval_tokens)) + 1
    return np.sort(order[:count])


def count_text_bytes(setup: RunSetup) -> dict[str, int]:
    """Returns the UTF-8 bytes of the validation text of each source."""
    if setup.validation_documents is None:
        by_source = setup.store.manifest["splits"]["validation"]["by_source"]
        return {name: by_source.get(name, {}).get("text_bytes", 0) for name in setup.store.sources}
    split, counts = setup.store.validation, dict.fromkeys(setup.store.sources, 0)
    for document in setup.validation_documents.tolist():
        start = int(split.ends[document - 1]) if document else 0
        ids = split.read(start, int(split.ends[document]))[1:-1].tolist()  # without bos and eos
        text = setup.tokenizer.backend.decode(ids, skip_special_tokens=False)
        counts[setup.store.sources[split.sources[document]]] += len(text.encode())
    return counts


def _check_sample_prompt(config: TrainConfig, tokenizer: TokenizerFolder) -> None:
    """Raises UsageError for a sample_prompt that is too long for the model, before the training instead of after."""
    tokens = len(next(Encoder(tokenizer).encode_documents([config.sample_prompt or ""]))) - 1
    if tokens >= config.model.max_position_embeddings:
        raise UsageError(
            f"sample_prompt has {tokens} tokens, the model reads at most {config.model.max_position_embeddings}; "
            "shorten it"
        )


def compute_validation_baselines(setup: RunSetup) -> Baselines | None:
    """Returns the validation loss of models that see no context; None without validation rows."""
    if setup.validation_rows is None:
        return None
    labels = np.concatenate(
        [setup.validation_rows.get_row(index).labels for index in range(len(setup.validation_rows))]
    )
    return compute_baselines(torch.from_numpy(labels[labels != IGNORE_INDEX]), setup.tokenizer.vocab_size)
