"""A tokenizer and a token store of random tokens, for measurements of a training whose text is not prepared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from krill.data.encoding import get_token_dtype
from krill.data.store import SPLITS, build_manifest, write_manifest, write_shard
from krill.tokenizer.artifact import load_tokenizer, write_record

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")

_SIGNATURE = "synthetic"


def write_synthetic_inputs(
    folder: Path, vocab_size: int, document_tokens: int, documents: int
) -> tuple[Path, Path]:
    """Writes a tokenizer of `vocab_size` entries and a store of random tokens; returns their folders.

    Args:
        folder: An existing folder.
        vocab_size: Entries of the tokenizer; it gets at least those of all bytes.
        document_tokens: Tokens of a document, at least 3.
        documents: The number of documents; all are to train on.
    """
    tokenizer, store = folder / "tokenizer", folder / "store"
    _write_tokenizer(tokenizer, vocab_size)
    loaded = load_tokenizer(tokenizer)
    store.mkdir()
    dtype = get_token_dtype(loaded.vocab_size)
    ids = np.random.default_rng(0).integers(3, loaded.vocab_size, (documents, document_tokens))
    ids[:, 0], ids[:, -1] = loaded.bos_id, loaded.eos_id
    lengths, sources = np.full(documents, document_tokens), np.zeros(documents, np.uint16)
    counts = {"documents": documents, "tokens": ids.size, "text_bytes": ids.size}
    nothing = dict.fromkeys(counts, 0)
    shard = write_shard(store, "train-00000", dtype, [ids.reshape(-1).astype(dtype)], lengths, sources)
    splits = {
        name: {**each, "by_source": {_SIGNATURE: each}, "shards": shards}
        for name, each, shards in zip(SPLITS, (counts, nothing), ([shard], []), strict=True)
    }
    keys = ("signature", "vocab_size", "bos_id", "eos_id", "pad_id")
    facts = {key: getattr(loaded, key) for key in keys}
    write_manifest(store, build_manifest(dtype, [_SIGNATURE], splits, signature=_SIGNATURE, tokenizer=facts))
    return tokenizer, store


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    folder.mkdir()
    names = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"<{index}>" for index in range(vocab_size - len(names))]
    backend = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.save(str(folder / "tokenizer.json"))
    roles = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL_TOKENS, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
    write_record(folder, _SIGNATURE, {})
