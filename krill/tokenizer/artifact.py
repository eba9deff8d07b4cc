"""Loads tokenizers from a folder or the Hugging Face Hub, whether krill trained them or not.

A tokenizer folder can be loaded by `AutoTokenizer.from_pretrained`; krill reads it without transformers.
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
from krill.errors import KrillError, UsageError, get_first_line

log = logging.getLogger("krill")

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "record.json"
)  # fmt: skip

_SAVE_AGAIN = "save it again with AutoTokenizer.from_pretrained(...).save_pretrained(folder)"


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer on disk, with the values that training and data preparation need."""

    folder: Path
    signature: str
    vocab_size: int
    """Largest id + 1, including added tokens: the number of rows of the embedding."""
    bos_id: int
    """Id of the token at the start of a document; the eos if the tokenizer has no bos."""
    eos_id: int
    """Id of the token at the end of a document."""
    pad_id: int
    """Id of the padding of rows; the eos if there is no pad, as labels are masked by position, not by id."""

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer itself, as saved. One trained by krill adds bos; special tokens written in a text are
        encoded as special tokens."""
        return tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def decode(self, ids: list[int]) -> str:
        """Returns the text of `ids` without special tokens."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def copy_to(self, folder: Path) -> None:
        """Copies the tokenizer's files to `folder`, the folder of a model, and makes the copy add bos.

        Every tool that loads the model then encodes a prompt as in training: bos, then text.
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
    """Loads a tokenizer folder without transformers. Raises UsageError if it cannot be used for training."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"{folder}: no tokenizer.json in this folder; set tokenizer.path to a folder that "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder) wrote, or to a repository on the Hub"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise UsageError(
            f"{path}: not a tokenizer that this version of tokenizers can read ({error}); {_SAVE_AGAIN}"
        ) from error
    roles = {role: _get_role_id(folder, backend, role) for role in ("bos_token", "eos_token", "pad_token")}
    eos = roles["eos_token"]
    if eos is None:
        raise UsageError(
            f"{folder}: the tokenizer has no eos_token, which marks the end of a document; "
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
    """Returns the local folder `path`, or the downloaded files of the Hub repository `path`.

    Raises UsageError, with the config key `key`, if there is neither, KrillError if the Hub cannot be reached.
    """
    local = Path(path).expanduser()
    if local.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        if not local.is_dir():
            raise UsageError(
                f"{key}={path}: no such folder (relative to {Path.cwd()}); use a folder or a Hub id (owner/name)"
            )
        return local
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=list(TOKENIZER_FILES)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"{key}={path}: not a folder in {Path.cwd()}, and not on the Hugging Face Hub or not "
            "accessible (use hf auth login or HF_TOKEN)"
        ) from error
    except Exception as error:
        reason = get_first_line(error)
        raise KrillError(
            f"{key}={path}: not a folder in {Path.cwd()}, not in the Hub cache, and the Hub cannot be "
            f"reached ({type(error).__name__}: {reason}); use a local folder, or train one with tokenizer=bpe_4k"
        ) from error


def _get_role_id(folder: Path, backend: tokenizers.Tokenizer, role: str) -> int | None:
    """Returns the id of the bos, eos or pad token by the folder's files; None if they do not define it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        try:
            token = json.loads(path.read_text(encoding="utf-8")).get(role) if path.is_file() else None
        except (ValueError, AttributeError) as error:
            raise UsageError(f"{path}: not a JSON object ({error}); {_SAVE_AGAIN}") from error
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None:
            token_id = backend.token_to_id(token)
            if token_id is None:
                raise UsageError(
                    f"{path}: {role} {token!r} is not in the vocabulary of tokenizer.json; {_SAVE_AGAIN}"
                )
            return token_id
    return None


def _read_signature(folder: Path, roles: list[int]) -> str:
    """Returns the signature in record.json if it belongs to this tokenizer.json, else a signature of the content."""
    digest = hash_file(folder / "tokenizer.json")
    path = folder / "record.json"
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["tokenizer"] == digest:
                return record["signature"]
        except (ValueError, TypeError, KeyError):
            log.warning("%s: not a record by krill; identifying the tokenizer by its content instead", path)
    return compute_signature("ready", digest, roles)


def build_bos_processor(token: str, token_id: int) -> processors.PostProcessor:
    """Returns a post-processor that adds bos before a text, and before each text of a pair."""
    return processors.TemplateProcessing(
        single="bos $A",
        pair="bos $A bos:1 $B:1",
        special_tokens=[{"id": "bos", "ids": [token_id], "tokens": [token]}],
    )
