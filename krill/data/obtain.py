"""The tokenizer and the tokens of a run: each is made once, and found again by its content.

outputs/tokenizers/<name>-<sig8>/    outputs/data/<name>-<sig8>/
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from krill.atomic import make_once, write_json
from krill.config.schema import TrainConfig
from krill.config.signature import signature
from krill.data.dedup import split_of
from krill.data.documents import Dropped, usable_documents
from krill.data.prepare import prepare, store_signature
from krill.data.sources import open_source
from krill.data.store import Store
from krill.errors import UsageError
from krill.tokenizer import TokenizerFolder, load_tokenizer, ready_folder, tokenizer_identity, train_tokenizer

log = logging.getLogger("krill")


def obtain_tokenizer(config: TrainConfig, outputs: Path, place: Path | None = None) -> TokenizerFolder:
    """The tokenizer of `config`: the ready one of tokenizer.path, or one trained once and reused.

    `place`: the folder that was asked for instead of the one below `outputs`. Raises UsageError for a path or
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
        record = train_tokenizer(config.tokenizer, _training_texts(config), partial)
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

    data.min_tokens does not count: it drops documents after the tokenizer is there.
    """
    if config.tokenizer.path is not None:
        return tokenizer_identity(config.tokenizer)
    text = open_source(config.data).fingerprint()
    rules = config.data.model_dump(include={"min_chars", "validation_fraction"})
    return signature("tokenizer", tokenizer_identity(config.tokenizer), rules, text)


def _training_texts(config: TrainConfig) -> Iterator[str]:
    """The documents of the training split."""
    source = open_source(config.data)
    for text, _, digest in usable_documents(source, config.data, Dropped()):
        if split_of(digest, config.data.validation_fraction) == "train":
            yield text


def store_folder(config: TrainConfig, outputs: Path) -> Path:
    """Where `obtain_store` puts or finds the tokens; makes nothing."""
    text = open_source(config.data).fingerprint()
    return _folder(config, store_signature(config.data, tokenizer_signature(config), text), outputs)


def obtain_store(
    config: TrainConfig, tokenizer: TokenizerFolder, outputs: Path, place: Path | None = None
) -> tuple[Path, bool]:
    """The folder of the tokens of config.data, and whether they were made now.

    `place`: the folder that was asked for instead of the one below `outputs`. Raises UsageError for input that
    cannot be used or a place that holds something else.
    """
    source = open_source(config.data)
    identity = store_signature(config.data, tokenizer.signature, source.fingerprint())
    folder = place or _folder(config, identity, outputs)

    def make(partial: Path) -> None:
        prepare(config.data, tokenizer, partial, source)

    made = make_once(folder, make)
    if Store.open(folder).signature != identity:
        raise UsageError(f"{folder} holds other tokens; remove it, or name another folder with output=")
    log.info("tokens: %s %s", "made" if made else "reused", folder)
    return folder, made


def _folder(config: TrainConfig, identity: str, outputs: Path) -> Path:
    return outputs / "data" / f"{config.data.name}-{identity[:8]}"
