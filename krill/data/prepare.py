"""From a source to a token store, in one pass and constant memory (but for 16-byte hashes of documents).

    source → clean → min_chars → exact duplicates → encode → min_tokens → split → store

What is dropped is counted per rule. The same text, rules and tokenizer give the same bytes, and the same
folder: outputs/data/<name>-<first 8 digits of the signature>, made once and reused.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.config.schema import Data
from krill.config.signature import signature
from krill.data import store
from krill.data.dedup import split_of
from krill.data.documents import RULES, VERSION, Dropped, Usable, data_signature, usable_documents
from krill.data.encoding import Encoder, token_dtype
from krill.data.source import Source
from krill.data.sources import check, open_source
from krill.errors import UsageError
from krill.tokenizer import TokenizerFolder

log = logging.getLogger("krill")


def store_signature(data: Data, tokenizer_signature: str, fingerprint: Any) -> str:
    """Signature of a token store: the rules, the content of the source, the tokenizer."""
    return signature("store", VERSION, store.VERSION, data_signature(data, fingerprint), tokenizer_signature)


def prepare(
    data: Data,
    tokenizer: TokenizerFolder,
    folder: Path,
    source: Source | None = None,
    shard_tokens: int = store.SHARD_TOKENS,
) -> dict[str, Any]:
    """Write the token store of `data` into the empty `folder` and return its manifest.

    Raises UsageError for input that cannot be used, or that leaves no document to train on.
    """
    began = time.monotonic()
    check(data)
    source = source or open_source(data)
    if len(source.names) > store.MAX_SOURCES:
        raise UsageError(
            f"{len(source.names)} sources, the store tells {store.MAX_SOURCES} apart; name folders, not files"
        )
    fingerprint = source.fingerprint()
    dropped = Dropped()
    writer = store.StoreWriter(folder, token_dtype(tokenizer.vocab_size), source.names, shard_tokens)
    read = _write(usable_documents(source, data, dropped), data, Encoder(tokenizer), writer, dropped)
    _demand_documents(read, dropped, source, data)
    manifest = writer.finish(
        signature=store_signature(data, tokenizer.signature, fingerprint),
        data={"signature": data_signature(data, fingerprint), **data.model_dump(include=RULES)},
        tokenizer={
            key: getattr(tokenizer, key) for key in ("signature", "vocab_size", "bos_id", "eos_id", "pad_id")
        },
        dropped=dict(sorted(dropped.rules.items())),
        skipped=dict(sorted(source.skipped.items())),
    )
    stored = sum(split["tokens"] for split in manifest["splits"].values())
    assert read["tokens"] == stored + dropped.tokens, f"tokens lost: {read}, stored {stored}, {dropped.rules}"
    _report(manifest, time.monotonic() - began)
    return manifest


def _write(
    documents: Iterator[Usable],
    data: Data,
    encoder: Encoder,
    writer: store.StoreWriter,
    dropped: Dropped,
) -> Counter[str]:
    """Encode and store; returns the tokens that were read, and the documents of each split."""
    read: Counter[str] = Counter()
    documents, ahead = itertools.tee(documents)
    encoded = encoder.documents(document.text for document in ahead)
    for (text, source, digest), tokens in zip(documents, encoded, strict=True):
        read["tokens"] += len(tokens)
        if len(tokens) - 2 < max(1, data.min_tokens):
            dropped.add("min_tokens", text, len(tokens))
            continue
        split = split_of(digest, data.validation_fraction)
        read[split] += 1
        writer.write(split, tokens, source, len(encoder.normalized(text).encode()))
    return read


def _demand_documents(read: Counter[str], dropped: Dropped, source: Source, data: Data) -> None:
    """Raise UsageError, with what became of every document, if there is none to train on."""
    if read["train"]:
        return
    fates = [f"{rule} {counts['documents']:,}" for rule, counts in sorted(dropped.rules.items())]
    fates += [f"{reason} {count:,}" for reason, count in sorted(source.skipped.items())]
    if read["validation"]:
        fates.append(f"held out for validation {read['validation']:,}")
    raise UsageError(
        f"data {data.name}: no document is left to train on ({'; '.join(fates) or 'the source has none'}). "
        f"Lower data.min_chars={data.min_chars}, data.min_tokens={data.min_tokens} or "
        f"data.validation_fraction={data.validation_fraction:g}, or give other data"
    )


def _report(manifest: dict[str, Any], seconds: float) -> None:
    splits = manifest["splits"]
    documents, tokens, text_bytes = (
        sum(split[key] for split in splits.values()) for key in ("documents", "tokens", "text_bytes")
    )
    fates = [f"{rule} {counts['documents']:,}" for rule, counts in manifest["dropped"].items()]
    fates += [f"{reason} {count:,} records" for reason, count in manifest["skipped"].items()]
    log.info(
        "tokens: %s documents kept (%s for validation), dropped: %s; %s tokens from %.1f MB of text, "
        "%.2f bytes a token, %.1f s",
        f"{documents:,}", f"{splits['validation']['documents']:,}", ", ".join(fates) or "none", f"{tokens:,}",
        text_bytes / 1e6, text_bytes / (tokens - 2 * documents), seconds,
    )  # fmt: skip
