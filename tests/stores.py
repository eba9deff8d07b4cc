"""Small tokenizers and token stores for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from source_files import RULES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from krill.config.schema import FilesDataConfig, TokenizerConfig
from krill.data.prepare import prepare_store
from krill.data.store import SPLITS, Store, build_manifest, write_manifest, write_shard
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer, write_record
from krill.tokenizer.train import train_tokenizer

ENGLISH = "Natural language is learned from text, and text is made of words that come again. "
KOREAN = "한국어 문장은 조사와 어미가 자주 되풀이된다. 그래서 토큰도 되풀이된다 ㅋㅋㅋ. "

Document = tuple[str, str]
"""(source, text)."""

DATA_DEFAULTS: dict[str, Any] = RULES | {
    "name": "글", "source": "files", "text_column": "text", "min_chars": 0, "validation_fraction": 0.2,
    "engine": "hf", "workers": 1,
}  # fmt: skip


def make_tokenizer(
    folder: Path, signature: str = "t" * 64, texts: Sequence[str] = (ENGLISH, KOREAN) * 20, **keys: Any
) -> TokenizerFolder:
    """Trains a byte-level BPE of 330 entries in `folder`, with the files that `get_or_train_tokenizer` writes."""
    recipe = {
        "name": "test", "path": None, "vocab_size": 330, "min_frequency": 2, "max_token_length": 30,
        "normalizer": "none", "pattern": "gpt4", "bos_token": "<|bos|>", "eos_token": "<|eos|>",
        "pad_token": "<|pad|>", "special_tokens": ["<think>"], "sample_bytes": 10**6,
        "base": None, "multiple_of": 1, "trainer": "hf", "chat_template": None, "push_to": None, "private": True,
    }  # fmt: skip
    folder.mkdir(parents=True)
    record = train_tokenizer(TokenizerConfig.model_validate({**recipe, **keys}), lambda: iter(texts), folder)
    write_record(folder, signature, record)
    return load_tokenizer(folder)


def make_byte_tokenizer(folder: Path, normalizer: normalizers.Normalizer | None = None) -> TokenizerFolder:
    """Writes a tokenizer with one token per byte; bos 0, eos 1, pad 2."""
    folder.mkdir()
    names = ["<|bos|>", "<|eos|>", "<|pad|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(names[:3])
    backend.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return load_tokenizer(folder)


def make_data_config(*paths: Path, **rules: Any) -> FilesDataConfig:
    """Returns the configuration of text files that are encoded by one Hugging Face process."""
    return FilesDataConfig(**{**DATA_DEFAULTS, "paths": [str(path) for path in paths], **rules})


def prepare_and_open(
    folder: Path, data: FilesDataConfig, tokenizer: TokenizerFolder, **options: Any
) -> Store:
    """Prepares the store of `data` in `folder`; `options` are those of `prepare_store`."""
    folder.mkdir(exist_ok=True)
    prepare_store(data, tokenizer, folder, **options)
    return Store.open(folder)


def read_store_content(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file of a store except record.json, which says how it was prepared."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "record.json"}


def write_store(
    folder: Path,
    tokenizer: TokenizerFolder,
    train: Sequence[Document],
    validation: Sequence[Document] = (),
    dtype: str = "uint16",
    **facts: Any,
) -> Store:
    """Writes a store of the documents with one shard per split; `facts` are added to its manifest."""
    folder.mkdir(parents=True)
    sources = sorted({source for source, _ in [*train, *validation]})
    splits = {
        name: _write_split(folder, name, np.dtype(dtype).newbyteorder("<"), tokenizer, sources, documents)
        for name, documents in zip(SPLITS, (train, validation), strict=True)
    }
    tokenizer_facts = {
        key: getattr(tokenizer, key) for key in ("signature", "vocab_size", "bos_id", "eos_id", "pad_id")
    }
    facts = {"signature": "s" * 64, "tokenizer": tokenizer_facts, **facts}
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
    ids = [encode(tokenizer, text) for _, text in documents]
    counts = {source: {"documents": 0, "tokens": 0, "text_bytes": 0} for source in sources}
    for (source, text), tokens in zip(documents, ids, strict=True):
        for key, value in (("documents", 1), ("tokens", len(tokens)), ("text_bytes", len(text.encode()))):
            counts[source][key] += value
    keys = ("documents", "tokens", "text_bytes")
    total = {key: sum(source_counts[key] for source_counts in counts.values()) for key in keys}
    lengths = np.array([len(tokens) for tokens in ids], np.int64)
    indices = np.array([sources.index(source) for source, _ in documents], np.uint16)
    arrays = [np.array(tokens, dtype) for tokens in ids]
    shards = [write_shard(folder, f"{name}-00000", dtype, arrays, lengths, indices)] if ids else []
    return {**total, "by_source": counts, "shards": shards}


def encode(tokenizer: TokenizerFolder, text: str) -> list[int]:
    """Returns bos, the text's ids and eos."""
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    return [tokenizer.bos_id, *ids, tokenizer.eos_id]
