"""Tokenizers on disk: trained here, or ready ones from a folder or the Hugging Face Hub.

A folder holds what `AutoTokenizer.from_pretrained` reads; krill reads it without transformers.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from krill.config.signature import compute_signature, hash_file
from krill.errors import KrillError, UsageError

log = logging.getLogger("krill")

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "record.json"
)  # fmt: skip


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer on disk: what the other rooms need to know of it."""

    folder: Path
    signature: str
    vocab_size: int
    """Largest id + 1, added tokens included: the rows of the model's embedding."""
    bos_id: int
    """Begins documents; the eos where the tokenizer has no bos."""
    eos_id: int
    """Ends documents."""
    pad_id: int
    """Fills rows; the eos where the tokenizer has no pad: labels are ignored by place, not by id."""

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer itself; encodes special tokens in the text as special tokens, and adds bos."""
        return tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def copy_to(self, folder: Path) -> None:
        """Put the tokenizer's files beside a model, adding bos by itself even where the original did not.

        So that every tool that loads the model sees what training saw: bos, then text.
        """
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        if backend.encode("a").ids[:1] != [self.bos_id]:
            bos = backend.id_to_token(self.bos_id)
            assert bos is not None
            backend.post_processor = build_bos_processor(bos, self.bos_id)
            backend.save(str(folder / "tokenizer.json"))

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}


def load_tokenizer(folder: Path) -> TokenizerFolder:
    """Read a tokenizer's folder, without transformers. Raises UsageError if it is of no use for training."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"{folder}: no tokenizer.json there. tokenizer.path= is a folder that "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder) wrote, or the name of one on the Hub"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise UsageError(
            f"{path}: is no tokenizer that this version of tokenizers reads ({error})"
        ) from error
    roles = {role: _get_role_id(folder, backend, role) for role in ("bos_token", "eos_token", "pad_token")}
    eos = roles["eos_token"]
    if eos is None:
        raise UsageError(
            f"{folder}: the tokenizer has no eos_token, so no document could end; "
            "add one to its tokenizer_config.json"
        )
    bos, pad = (eos if roles[role] is None else roles[role] for role in ("bos_token", "pad_token"))
    assert bos is not None
    assert pad is not None
    return TokenizerFolder(
        folder=folder,
        signature=_read_signature(folder, [bos, eos, pad]),
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
    )


def resolve_tokenizer_folder(path: str, key: str = "tokenizer.path") -> Path:
    """The local folder `path`, or the cached files of the Hub's repository of that name; `key` named it."""
    local = Path(path).expanduser()
    if local.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        if not local.is_dir():
            raise UsageError(f"{key}={path}: no such folder (seen from {Path.cwd()})")
        return local
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=list(TOKENIZER_FILES)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"{key}={path}: neither a folder here ({Path.cwd()}) nor on the Hugging Face Hub, or "
            "you may not see it (hf auth login, HF_TOKEN)"
        ) from error
    except Exception as error:
        raise KrillError(
            f"{key}={path}: no folder here ({Path.cwd()}), not in the Hub's cache, and the Hub can "
            f"not be reached ({type(error).__name__}: {error}); give a folder, or train one: tokenizer=bpe_4k"
        ) from error


def _get_role_id(folder: Path, backend: tokenizers.Tokenizer, role: str) -> int | None:
    """Id of the bos, eos or pad token that the folder's files name; None if they name none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        try:
            token = json.loads(path.read_text(encoding="utf-8")).get(role) if path.is_file() else None
        except (ValueError, AttributeError) as error:
            raise UsageError(f"{path}: is no JSON object ({error})") from error
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None:
            token_id = backend.token_to_id(token)
            if token_id is None:
                raise UsageError(f"{path}: {role} {token!r} is not in the vocabulary of tokenizer.json")
            return token_id
    return None


def _read_signature(folder: Path, roles: list[int]) -> str:
    """The signature in record.json while tokenizer.json is the one it was written for, else the content's."""
    digest = hash_file(folder / "tokenizer.json")
    path = folder / "record.json"
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["tokenizer"] == digest:
                return record["signature"]
        except (ValueError, TypeError, KeyError):
            log.warning("%s: is not a record that krill wrote; the tokenizer counts by its content", path)
    return compute_signature("ready", digest, roles)


def build_bos_processor(token: str, token_id: int) -> processors.PostProcessor:
    """What puts bos before a text, and before the second of two."""
    return processors.TemplateProcessing(
        single="bos $A",
        pair="bos $A bos:1 $B:1",
        special_tokens=[{"id": "bos", "ids": [token_id], "tokens": [token]}],
    )
