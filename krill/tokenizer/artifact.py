"""Loads tokenizers from a folder or the Hugging Face Hub, whether krill trained them or not.

A tokenizer folder can be loaded by `AutoTokenizer.from_pretrained`; krill reads it without transformers. A folder
that krill wrote has a record.json with the signature of the tokenizer, the hashes of the other files, a canary
(krill.tokenizer.canary) and a checksum of itself, so that a folder that has changed, or is read differently, is not
mistaken for the one that its signature names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from krill.atomic import write_json
from krill.checksum import ChecksumError, read_checksummed_json, write_checksummed_json
from krill.config.paths import expand_home
from krill.config.signature import compute_signature, hash_file
from krill.errors import KrillError, UsageError, get_first_line
from krill.tokenizer.canary import build_canary, check_canary

SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""Files with the names of the special tokens, the chat template, and settings of transformers."""
CONTENT_FILES = ("tokenizer.json", *SETTINGS_FILES)
RECORD = "record.json"
TOKENIZER_FILES = (*CONTENT_FILES, RECORD)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")

_SAVE_AGAIN = "save it again with AutoTokenizer.from_pretrained(...).save_pretrained(folder)"


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer on disk, with the values that training and data preparation need."""

    folder: Path
    signature: str
    """Signature of everything that changes ids: tokenizer.json and the roles of bos, eos, pad and unk."""
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
        """The tokenizer itself, as saved, but without dropout. One trained by krill adds bos; special tokens written
        in a text are encoded as special tokens."""
        return _load_backend(self.folder / "tokenizer.json")

    def decode(self, ids: list[int]) -> str:
        """Returns the text of `ids` without special tokens."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def copy_to(self, folder: Path, max_length: int) -> None:
        """Copies the tokenizer to `folder`, the folder of a model that reads at most `max_length` tokens.

        The copy adds bos and has no dropout: every tool that loads the model encodes a prompt as in training. It has
        the signature of the original, as it gives the same ids.
        """
        for name, content in self._model_files.items():
            (folder / name).write_bytes(content)
        settings = _read_settings(folder / "tokenizer_config.json")
        write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": max_length})
        write_record(folder, self.signature, {**self._facts, "canary": self.canary})

    @cached_property
    def canary(self) -> dict[str, Any]:
        """The canary of the tokenizer: that of its record.json, else one of its ids now."""
        canary: dict[str, Any] = self._facts.get("canary") or build_canary(self.backend)
        return canary

    @cached_property
    def _model_files(self) -> dict[str, bytes]:
        """The files for the folder of a model, read once per run: its checkpoints and its model are the same."""
        files = {
            name: (self.folder / name).read_bytes()
            for name in SETTINGS_FILES
            if (self.folder / name).is_file()
        }
        return {"tokenizer.json": self._build_model_json().encode(), **files}

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return _read_record(self.folder) or {}

    def _build_model_json(self) -> str:
        """Returns the tokenizer.json for a model; unchanged if it adds bos, by its name, and has no dropout."""
        path = self.folder / "tokenizer.json"
        backend, text = _load_backend(path), path.read_text(encoding="utf-8")
        bos, content = backend.id_to_token(self.bos_id), json.loads(text)
        assert bos is not None
        adds_bos = backend.encode("a").ids[:1] == [self.bos_id] and _names_bos(content, bos)
        if not adds_bos:
            backend.post_processor = build_bos_processor(bos, self.bos_id)
        return text if adds_bos and not _has_dropout(content) else backend.to_str(pretty=True)

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}


def load_tokenizer(folder: Path) -> TokenizerFolder:
    """Loads a tokenizer folder without transformers.

    Raises UsageError if it cannot be used for training, KrillError if it has changed since krill wrote it, or gives
    other ids than then.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(
            f"{folder}: no tokenizer.json in this folder; set tokenizer.path to a folder that "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder) wrote, or to a repository on the Hub"
        )
    record = _read_record(folder)
    try:
        backend = _load_backend(path)
    except Exception as error:  # tokenizers raises Exception itself
        raise UsageError(
            f"{path}: not a tokenizer that this version of tokenizers can read ({error}); {_SAVE_AGAIN}"
        ) from error
    if record and "canary" in record:
        check_canary(record["canary"], backend, str(path), _suggest_version(folder, record))
    roles = {role: _get_role_id(folder, backend, role) for role in ROLES}
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
        signature=record["signature"] if record else compute_signature("files", hash_file(path), roles),
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
    )


def resolve_tokenizer_folder(path: str, key: str = "tokenizer.path") -> Path:
    """Returns the local folder `path`, or the downloaded files of the Hub repository `path`.

    Raises UsageError, with the config key `key`, if there is neither, KrillError if the Hub cannot be reached.
    """
    local = expand_home(path)
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


def _read_settings(path: Path) -> dict[str, Any]:
    """Returns the content of a file of settings; empty if there is none. Raises UsageError if it is not an object."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UsageError(f"{path}: not a JSON object ({error}); {_SAVE_AGAIN}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: not a JSON object; {_SAVE_AGAIN}")
    return settings


def _get_role_id(folder: Path, backend: tokenizers.Tokenizer, role: str) -> int | None:
    """Returns the id of a role's token by the folder's files; None if they do not define it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        token = _read_settings(path).get(role)
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None:
            if not isinstance(token, str):
                raise UsageError(f"{path}: {role} is not a string; {_SAVE_AGAIN}")
            token_id = backend.token_to_id(token)
            if token_id is None and role != "unk_token":  # krill does not use unk, so any may be there
                raise UsageError(
                    f"{path}: {role} {token!r} is not in the vocabulary of tokenizer.json; {_SAVE_AGAIN}"
                )
            return token_id
    return None


def write_record(folder: Path, signature: str, facts: dict[str, Any]) -> None:
    """Writes record.json: `facts` (JSON values), the signature of the tokenizer, its canary, unless `facts` has it,
    and the hashes of its files."""
    canary = facts.get("canary") or build_canary(_load_backend(folder / "tokenizer.json"))
    files = _hash_existing(folder, CONTENT_FILES)
    write_checksummed_json(
        folder / RECORD, {**facts, "canary": canary, "signature": signature, "files": files}
    )


def refresh_record(folder: Path) -> None:
    """Writes the hashes of the files again, if there is a record: after a change of settings, not of ids."""
    path = folder / RECORD
    if path.is_file() and not _is_other_record(path):
        record = read_checksummed_json(path)
        write_record(folder, record.pop("signature"), record)


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Returns the record of a folder that is as krill wrote it, None if there is no record by this version of krill.

    Raises KrillError if the record or one of the files has changed.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = read_checksummed_json(path)
    except ChecksumError as error:
        if _is_other_record(path):
            return None
        raise _build_changed_error(path) from error
    files = _hash_existing(folder, CONTENT_FILES)
    for name in CONTENT_FILES:
        if files.get(name) != record["files"].get(name):
            raise _build_changed_error(folder / name)
    return record


def _is_other_record(path: Path) -> bool:
    """Returns whether a record.json is not by krill, or by a version whose records had no checksum."""
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return not isinstance(record, dict) or not record.keys() & {"files", "checksum"}


def _build_changed_error(path: Path) -> KrillError:
    return KrillError(
        f"{path} has changed since krill wrote it. Restore it; if krill trained this tokenizer, remove {path.parent} "
        f"and run the same command again; or remove {path.parent / RECORD} to use the files as they are, as another "
        "tokenizer"
    )


def _suggest_version(folder: Path, record: dict[str, Any]) -> str:
    return (
        f"Install tokenizers=={record['canary']['tokenizers']}; or, if krill trained this tokenizer and no model "
        f"uses it yet, remove {folder} and run the same command again"
    )


def hash_settings(folder: Path) -> dict[str, str]:
    """Returns the hash of each file with settings that do not change ids, such as the chat template."""
    return _hash_existing(folder, SETTINGS_FILES)


def _hash_existing(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: hash_file(folder / name) for name in names if (folder / name).is_file()}


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    """Loads a tokenizer.json without its dropout, which would encode the same text at random each time."""
    backend = tokenizers.Tokenizer.from_file(str(path))
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    return backend


def _names_bos(content: dict[str, Any], bos: str) -> bool:
    """Returns whether the template of a tokenizer.json, if it has one, names bos by its own string."""
    processor = content.get("post_processor") or {"type": None}
    templates = [
        part for part in processor.get("processors", [processor]) if part["type"] == "TemplateProcessing"
    ]
    return all(bos in template["special_tokens"] for template in templates)


def _has_dropout(content: dict[str, Any]) -> bool:
    return content["model"].get("dropout") is not None


def build_bos_processor(token: str, token_id: int) -> processors.PostProcessor:
    """Returns a post-processor that adds bos before a text, and before each text of a pair.

    The template names bos by its own string, as the files of Llama 3 do: llama.cpp's converter takes from it whether
    a model expects bos. (`TemplateProcessing` itself would misread a string with `:` or `$`.)
    """

    def bos(type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": type_id}}

    def text(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    template = {
        "type": "TemplateProcessing",
        "single": [bos(0), text("A", 0)],
        "pair": [bos(0), text("A", 0), bos(1), text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
    processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    processor.__setstate__(json.dumps(template).encode())
    return processor
