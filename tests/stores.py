"""A small tokenizer and token stores made with it, for the tests of several rooms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from krill.atomic import write_json
from krill.config.schema import TokenizerConfig
from krill.data.store import SPLITS, Store, build_manifest, write_manifest, write_shard
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer
from krill.tokenizer.train import train_tokenizer

ENGLISH = "Natural language is learned from text, and text is made of words that come again. "
KOREAN = "한국어 문장은 조사와 어미가 자주 되풀이된다. 그래서 토큰도 되풀이된다 ㅋㅋㅋ. "

Document = tuple[str, str]
"""Source and text."""


def make_tokenizer(folder: Path, signature: str = "t" * 64, **keys: Any) -> TokenizerFolder:
    """Byte-level BPE with 330 entries, in a folder as `obtain_tokenizer` leaves it."""
    recipe = {
        "name": "test", "path": None, "vocab_size": 330, "min_frequency": 2, "max_token_length": 30,
        "normalizer": "none", "pattern": "gpt4", "bos_token": "<|bos|>", "eos_token": "<|eos|>",
        "pad_token": "<|pad|>", "special_tokens": ["<think>"], "sample_bytes": 10**6,
        "base": None, "multiple_of": 1, "trainer": "hf", "chat_template": None, "push_to": None, "private": True,
    }  # fmt: skip
    folder.mkdir(parents=True)
    texts = [ENGLISH, KOREAN] * 20
    record = train_tokenizer(TokenizerConfig.model_validate({**recipe, **keys}), lambda: iter(texts), folder)
    write_json(folder / "record.json", {"signature": signature, **record})
    return load_tokenizer(folder)


def write_store(
    folder: Path,
    tokenizer: TokenizerFolder,
    train: Sequence[Document],
    validation: Sequence[Document] = (),
    dtype: str = "uint16",
    **facts: Any,
) -> Store:
    """A store of the documents, a shard per split; `facts` go into its manifest."""
    folder.mkdir(parents=True)
    sources = sorted({source for source, _ in [*train, *validation]})
    splits = {
        name: _write_split(folder, name, np.dtype(dtype).newbyteorder("<"), tokenizer, sources, documents)
        for name, documents in zip(SPLITS, (train, validation), strict=True)
    }
    known = {
        key: getattr(tokenizer, key) for key in ("signature", "vocab_size", "bos_id", "eos_id", "pad_id")
    }
    facts = {"signature": "s" * 64, "tokenizer": known, **facts}
    write_manifest(folder, build_manifest(np.dtype(dtype), sources, splits, **facts))
    return Store.open(folder)


def _write_split(
    folder: Path,
    name: str,
    dtype: np.dtype[Any],
    tokenizer: TokenizerFolder,
    sources: list[str],
    documents: Sequence[Document],
) -> dict[str, Any]:
    ids = [encoded(tokenizer, text) for _, text in documents]
    counts = {source: {"documents": 0, "tokens": 0, "text_bytes": 0} for source in sources}
    for (source, text), tokens in zip(documents, ids, strict=True):
        for key, value in (("documents", 1), ("tokens", len(tokens)), ("text_bytes", len(text.encode()))):
            counts[source][key] += value
    total = {
        key: sum(found[key] for found in counts.values()) for key in ("documents", "tokens", "text_bytes")
    }
    lengths = np.array([len(tokens) for tokens in ids], np.int64)
    indices = np.array([sources.index(source) for source, _ in documents], np.uint16)
    pieces = [np.array(tokens, dtype) for tokens in ids]
    shards = [write_shard(folder, f"{name}-00000", dtype, pieces, lengths, indices)] if ids else []
    return {**total, "by_source": counts, "shards": shards}


def encoded(tokenizer: TokenizerFolder, text: str) -> list[int]:
    """bos, the text's ids, eos."""
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    return [tokenizer.bos_id, *ids, tokenizer.eos_id]
