"""The tokenizer and the tokens of a run: each is made once, and found again by its content.

outputs/tokenizers/<name>-<sig8>/    outputs/data/<name>-<sig8>/
"""

from __future__ import annotations

import logging
from pathlib import Path

from krill.atomic import is_made, make_once, naming, unfinished, write_json
from krill.config.schema import TrainConfig
from krill.config.signature import signature
from krill.data.packing import pack
from krill.data.prepare import prepare, prepare_shard, store_signature, text_changed
from krill.data.store import Store
from krill.errors import UsageError
from krill.sources.registry import open_source
from krill.sources.source import Skipped, Source
from krill.text.documents import text_rules
from krill.text.sample import Sample
from krill.tokenizer.folder import TokenizerFolder, load_tokenizer, ready_folder
from krill.tokenizer.train import tokenizer_identity, train_tokenizer

log = logging.getLogger("krill")


def obtain_tokenizer(
    config: TrainConfig, outputs: Path, place: Path | None = None, warn: bool = False
) -> TokenizerFolder:
    """The tokenizer of `config`: the ready one of tokenizer.path, or one trained once and reused.

    `place`: the folder that was asked for instead of the one below `outputs`. `warn`: tell which records were
    skipped, as `obtain_store` does. Raises UsageError for a path or
    text that cannot be used, KrillError if the text yields too few entries.
    """
    if config.tokenizer.path is not None:
        if place is not None:
            raise UsageError("tokenizer.path names a ready tokenizer: there is nothing to train into output=")
        log.info("tokenizer: %s", config.tokenizer.path)
        return load_tokenizer(tokenizer_folder(config, outputs))
    folder = place or tokenizer_folder(config, outputs)
    identity = tokenizer_signature(config)

    def make(partial: Path) -> None:
        skipped = Skipped()
        source = open_source(config.data)
        sample = Sample(source, config.data, "train", config.tokenizer.sample_bytes, skipped)
        record = train_tokenizer(config.tokenizer, sample.texts, partial)
        if warn:
            skipped.warn()
        if tokenizer_signature(config) != identity:
            raise text_changed(config.data)
        write_json(partial / "record.json", {"signature": identity, **record})

    made = make_once(folder, make)
    tokenizer = load_tokenizer(folder)
    if tokenizer.signature != identity:
        raise UsageError(f"{folder} holds another tokenizer; remove it, or name another folder with output=")
    log.info("tokenizer: %s %s", "made" if made else "reused", folder)
    return tokenizer


def tokenizer_folder(config: TrainConfig, outputs: Path) -> Path:
    """Where `obtain_tokenizer` puts or finds it; trains nothing (a Hub id is fetched to the Hub's cache)."""
    if config.tokenizer.path is not None:
        return ready_folder(config.tokenizer.path)
    return outputs / "tokenizers" / f"{config.tokenizer.name}-{tokenizer_signature(config)[:8]}"


def tokenizer_signature(config: TrainConfig) -> str:
    """Signature of the tokenizer, known before it is made: recipe and text, or a ready one's content.

    Rules that drop documents after the tokenizer is there (tokens, near duplicates) do not count.
    """
    if config.tokenizer.path is not None:
        return tokenizer_identity(config.tokenizer)
    text = open_source(config.data).fingerprint()
    return signature("tokenizer", tokenizer_identity(config.tokenizer), text_rules(config.data), text)


def tokens_signature(config: TrainConfig) -> str:
    """Signature of the tokens, known before they or their tokenizer are made."""
    text = open_source(config.data).fingerprint()
    return store_signature(config.data, tokenizer_signature(config), text)


def store_folder(config: TrainConfig, outputs: Path) -> Path:
    """Where `obtain_store` puts or finds the tokens; makes nothing."""
    return _folder(config, tokens_signature(config), outputs)


def obtain_store(
    config: TrainConfig, tokenizer: TokenizerFolder, outputs: Path, place: Path | None = None
) -> tuple[Path, bool]:
    """The folder of the tokens of config.data, and whether they were made now.

    `place`: the folder that was asked for instead of the one below `outputs`. With data.shards the shards are
    merged. Raises UsageError for input that cannot be used, a shard that is missing, or a place that holds
    something else.
    """
    source, identity, folder = _meant(config, tokenizer, outputs, place)

    def make(folder: Path) -> None:
        if prepare(config.data, tokenizer, folder, source)["signature"] != identity:
            raise text_changed(config.data)

    made = make_once(folder, make, resumes=True)
    if not made and not (folder / "manifest.json").is_file():
        raise UsageError(f"{folder} is not empty and holds no tokens; name another folder with output=")
    store = Store.open(folder)
    if store.signature != identity:
        raise UsageError(f"{folder} holds other tokens; remove it, or name another folder with output=")
    if made:
        store.tidy()  # a shard's job that was late could write there until now
    log.info("tokens: %s %s", "made" if made else "reused", folder)
    if made:
        _report_rows(store, config)
    return folder, made


def obtain_shard(
    config: TrainConfig, tokenizer: TokenizerFolder, outputs: Path, place: Path | None = None
) -> Path:
    """Make what data.shard stands for, where `obtain_store` finds it; returns the folder of the tokens to be."""
    source, _, folder = _meant(config, tokenizer, outputs, place)
    if not is_made(folder):
        try:
            with naming(unfinished(folder)):
                prepare_shard(config.data, tokenizer, unfinished(folder), source)
        except FileNotFoundError:
            if not is_made(folder):
                raise  # else another job has made all of it meanwhile, and the parts are gone
        else:
            return folder
    log.info("tokens: reused %s", folder)
    return folder


def _meant(
    config: TrainConfig, tokenizer: TokenizerFolder, outputs: Path, place: Path | None
) -> tuple[Source, str, Path]:
    """The source of the tokens, their signature, and the folder that they belong in."""
    source = open_source(config.data)
    identity = store_signature(config.data, tokenizer.signature, source.fingerprint())
    return source, identity, place or _folder(config, identity, outputs)


def _report_rows(store: Store, config: TrainConfig) -> None:
    """How the documents fill rows of the chosen length."""
    rows = pack(store.train, config.sequence_len, config.packing)
    log.info(
        "rows: %s of %d tokens (packing=%s): %.2f %% padding, %.1f %% of the documents cut, no token lost",
        f"{len(rows):,}", config.sequence_len, config.packing, 100 * rows.padding, 100 * rows.cut,
    )  # fmt: skip


def _folder(config: TrainConfig, identity: str, outputs: Path) -> Path:
    return outputs / "data" / f"{config.data.name}-{identity[:8]}"
