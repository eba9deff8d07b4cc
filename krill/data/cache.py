"""The tokenizer and the tokens of a run: each is made once, and found again by its content.

outputs/tokenizers/<name>-<sig8>/    outputs/data/<name>-<sig8>/
"""

from __future__ import annotations

import logging
from pathlib import Path

from krill.atomic import is_nonempty_folder, make_once, name_folder_in_errors, partial_folder, write_json
from krill.config.schema import TrainConfig
from krill.config.signature import compute_signature
from krill.data.packing import pack
from krill.data.prepare import (
    build_text_changed_error,
    compute_store_signature,
    prepare_store,
    prepare_task_parts,
)
from krill.data.store import Store
from krill.errors import UsageError
from krill.sources.registry import open_source
from krill.sources.source import SkippedRecords, Source
from krill.text.documents import collect_text_rules
from krill.text.sample import TextSample
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer, resolve_tokenizer_folder
from krill.tokenizer.train import compute_recipe_signature, train_tokenizer

log = logging.getLogger("krill")


def get_or_train_tokenizer(
    config: TrainConfig, outputs: Path, place: Path | None = None, warn: bool = False
) -> TokenizerFolder:
    """The tokenizer of `config`: the ready one of tokenizer.path, or one trained once and reused.

    `place`: the folder that was asked for instead of the one below `outputs`. `warn`: tell which records were
    skipped, as `get_or_prepare_store` does. Raises UsageError for a path or
    text that cannot be used, KrillError if the text yields too few entries.
    """
    if config.tokenizer.path is not None:
        if place is not None:
            raise UsageError("tokenizer.path names a ready tokenizer: there is nothing to train into output=")
        log.info("tokenizer: %s", config.tokenizer.path)
        return load_tokenizer(get_tokenizer_folder(config, outputs))
    folder = place or get_tokenizer_folder(config, outputs)
    identity = compute_tokenizer_signature(config)

    def make(partial: Path) -> None:
        skipped = SkippedRecords()
        source = open_source(config.data)
        sample = TextSample(source, config.data, "train", config.tokenizer.sample_bytes, skipped)
        record = train_tokenizer(config.tokenizer, sample.iterate_texts, partial)
        if warn:
            skipped.warn()
        if compute_tokenizer_signature(config) != identity:
            raise build_text_changed_error(config.data)
        write_json(partial / "record.json", {"signature": identity, **record})

    made = make_once(folder, make)
    tokenizer = load_tokenizer(folder)
    if tokenizer.signature != identity:
        raise UsageError(f"{folder} holds another tokenizer; remove it, or name another folder with output=")
    log.info("tokenizer: %s %s", "made" if made else "reused", folder)
    return tokenizer


def get_tokenizer_folder(config: TrainConfig, outputs: Path) -> Path:
    """Where `get_or_train_tokenizer` puts or finds it; trains nothing (a Hub id is fetched to the Hub's cache)."""
    if config.tokenizer.path is not None:
        return resolve_tokenizer_folder(config.tokenizer.path)
    return outputs / "tokenizers" / f"{config.tokenizer.name}-{compute_tokenizer_signature(config)[:8]}"


def compute_tokenizer_signature(config: TrainConfig) -> str:
    """Signature of the tokenizer, known before it is made: recipe and text, or a ready one's content.

    Rules that drop documents after the tokenizer is there (tokens, near duplicates) do not count.
    """
    if config.tokenizer.path is not None:
        return compute_recipe_signature(config.tokenizer)
    text = open_source(config.data).fingerprint()
    return compute_signature(
        "tokenizer", compute_recipe_signature(config.tokenizer), collect_text_rules(config.data), text
    )


def compute_tokens_signature(config: TrainConfig) -> str:
    """Signature of the tokens, known before they or their tokenizer are made."""
    text = open_source(config.data).fingerprint()
    return compute_store_signature(config.data, compute_tokenizer_signature(config), text)


def get_store_folder(config: TrainConfig, outputs: Path) -> Path:
    """Where `get_or_prepare_store` puts or finds the tokens; makes nothing."""
    return _build_store_path(config, compute_tokens_signature(config), outputs)


def get_or_prepare_store(
    config: TrainConfig, tokenizer: TokenizerFolder, outputs: Path, place: Path | None = None
) -> tuple[Path, bool]:
    """The folder of the tokens of config.data, and whether they were made now.

    `place`: the folder that was asked for instead of the one below `outputs`. With data.num_tasks the shards are
    merged. Raises UsageError for input that cannot be used, a shard that is missing, or a place that holds
    something else.
    """
    source, identity, folder = _resolve_store(config, tokenizer, outputs, place)

    def make(folder: Path) -> None:
        if prepare_store(config.data, tokenizer, folder, source)["signature"] != identity:
            raise build_text_changed_error(config.data)

    made = make_once(folder, make, resumes=True)
    if not made and not (folder / "manifest.json").is_file():
        raise UsageError(f"{folder} is not empty and holds no tokens; name another folder with output=")
    store = Store.open(folder)
    if store.signature != identity:
        raise UsageError(f"{folder} holds other tokens; remove it, or name another folder with output=")
    if made:
        store.remove_leftovers()  # a shard's job that was late could write there until now
    log.info("tokens: %s %s", "made" if made else "reused", folder)
    if made:
        _log_packing(store, config)
    return folder, made


def prepare_store_task(
    config: TrainConfig, tokenizer: TokenizerFolder, outputs: Path, place: Path | None = None
) -> Path:
    """Make what data.task stands for, where `get_or_prepare_store` finds it; returns the folder of the tokens to be."""
    source, _, folder = _resolve_store(config, tokenizer, outputs, place)
    if not is_nonempty_folder(folder):
        try:
            with name_folder_in_errors(partial_folder(folder)):
                prepare_task_parts(config.data, tokenizer, partial_folder(folder), source)
        except FileNotFoundError:
            if not is_nonempty_folder(folder):
                raise  # else another job has made all of it meanwhile, and the parts are gone
        else:
            return folder
    log.info("tokens: reused %s", folder)
    return folder


def _resolve_store(
    config: TrainConfig, tokenizer: TokenizerFolder, outputs: Path, place: Path | None
) -> tuple[Source, str, Path]:
    """The source of the tokens, their signature, and the folder that they belong in."""
    source = open_source(config.data)
    identity = compute_store_signature(config.data, tokenizer.signature, source.fingerprint())
    return source, identity, place or _build_store_path(config, identity, outputs)


def _log_packing(store: Store, config: TrainConfig) -> None:
    """How the documents fill rows of the chosen length."""
    rows = pack(store.train, config.sequence_len, config.packing)
    log.info(
        "rows: %s of %d tokens (packing=%s): %.2f %% padding, %.1f %% of the documents cut, no token lost",
        f"{len(rows):,}", config.sequence_len, config.packing, 100 * rows.padding_fraction, 100 * rows.cut_fraction,
    )  # fmt: skip


def _build_store_path(config: TrainConfig, identity: str, outputs: Path) -> Path:
    return outputs / "data" / f"{config.data.name}-{identity[:8]}"
