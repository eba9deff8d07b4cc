"""The tokenizer and the tokens of a run: each is made once and reused by its content.

outputs/tokenizers/<name>-<sig8>/    outputs/data/<name>-<sig8>/
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from krill.atomic import get_partial_folder, is_nonempty_folder, make_once, name_folder_in_errors
from krill.config.paths import relative_path
from krill.config.schema import TrainConfig
from krill.data.inputs import RunInputs
from krill.data.packing import pack
from krill.data.prepare import build_text_changed_error, prepare_store, prepare_task_parts
from krill.data.store import Store
from krill.errors import UsageError
from krill.sources.source import SkippedRecords
from krill.text.sample import TextSample
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer, write_record
from krill.tokenizer.train import train_tokenizer

log = logging.getLogger("krill")


def get_or_train_tokenizer(
    inputs: RunInputs, output: Path | None = None, warn: bool = False
) -> TokenizerFolder:
    """Returns the tokenizer of a run: the existing one of tokenizer.path, or one trained once and reused.

    `output`: the folder to write instead of the one below outputs/. `warn`: log which records were skipped, as
    `get_or_prepare_store` does. Raises UsageError for a path or text that cannot be used, KrillError if the text
    yields too few entries.
    """
    if inputs.tokenizer.path is not None:
        if output is not None:
            raise UsageError(
                "tokenizer.path is set, so no tokenizer is trained: leave out output=, or tokenizer.path="
            )
        log.info("tokenizer   %s", inputs.tokenizer.path)
        return load_tokenizer(inputs.tokenizer_folder)
    folder = output or inputs.tokenizer_folder

    def train(partial: Path) -> None:
        skipped = SkippedRecords()
        sample = TextSample(inputs.source, inputs.data, "train", inputs.tokenizer.sample_bytes, skipped)
        record = train_tokenizer(inputs.tokenizer, sample.iterate_texts, partial)
        if warn:
            skipped.warn()
        inputs.raise_if_changed()
        write_record(partial, inputs.tokenizer_signature, record)

    is_new = make_once(folder, train)
    tokenizer = load_tokenizer(folder)
    if tokenizer.signature != inputs.tokenizer_signature:
        raise UsageError(f"{folder} holds another tokenizer; remove it, or set output= to another folder")
    log.info("tokenizer   %s %s", "trained" if is_new else "reused", relative_path(folder))
    return tokenizer


def get_or_prepare_store(
    config: TrainConfig, inputs: RunInputs, tokenizer: TokenizerFolder, output: Path | None = None
) -> Path:
    """Returns the folder of the tokens of a run: prepared once, and reused.

    `output`: the folder to write instead of the one below outputs/. With data.num_tasks the parts of all tasks are
    merged. Raises UsageError for input that cannot be used or an output folder that holds something else, KrillError
    for a task that has not run.
    """
    folder = output or inputs.store_folder

    def prepare(partial: Path) -> None:
        manifest = prepare_store(inputs.data, tokenizer, partial, inputs.source)
        if manifest["signature"] != inputs.store_signature:
            raise build_text_changed_error(inputs.data)

    is_new = make_once(folder, prepare, resume=True)
    if not is_new and not (folder / "manifest.json").is_file():
        raise UsageError(
            f"{folder} is not empty and has no manifest.json; remove it, or set output= to another folder"
        )
    store = Store.open(folder)
    if store.signature != inputs.store_signature:
        raise UsageError(f"{folder} holds other tokens; remove it, or set output= to another folder")
    if is_new:
        store.remove_leftovers()  # a late task could write there until now
    log.info("tokens      %s %s", "prepared" if is_new else "reused", relative_path(folder))
    if is_new:
        _log_packing(store, config.sequence_len, config.packing)
    return folder


def prepare_store_task(inputs: RunInputs, tokenizer: TokenizerFolder, output: Path | None = None) -> Path:
    """Prepares the parts of data.task and returns the folder in which `get_or_prepare_store` will find them."""
    folder = output or inputs.store_folder
    if not is_nonempty_folder(folder):
        try:
            with name_folder_in_errors(get_partial_folder(folder)):
                prepare_task_parts(inputs.data, tokenizer, get_partial_folder(folder), inputs.source)
        except FileNotFoundError:
            if not is_nonempty_folder(folder):
                raise  # else another job has merged all parts meanwhile, and they are gone
        else:
            return folder
    log.info("tokens      reused %s", relative_path(folder))
    return folder


def _log_packing(store: Store, sequence_len: int, packing: Literal["wrapped", "best_fit"]) -> None:
    """Logs how the documents fill rows of `sequence_len` tokens."""
    rows = pack(store.train, sequence_len, packing)
    log.info(
        "rows        %s of %d tokens (packing=%s): %.2f %% padding, %.1f %% of the documents cut, no token lost",
        f"{len(rows):,}", sequence_len, packing, 100 * rows.padding_fraction, 100 * rows.cut_fraction,
    )  # fmt: skip
