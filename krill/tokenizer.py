"""Tokenizers: trained on the run's own text, or ready ones from a folder or the Hugging Face Hub.

The recipe is byte-level BPE: every text is represented, and comes back as it was (with normalizer=nfc: as its
NFC). Special tokens have the first ids, then the 256 bytes, then merges. The saved folder loads with
`AutoTokenizer.from_pretrained`, which puts bos in front by itself and no eos at the end: what training saw of
a document that is not finished.

A tokenizer is trained on the training split only, on documents that would be trained on. 4096 entries on the
built-in 2.8 MB of text take about a second, 32000 on 50 MB half a minute (two cores).
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import xxhash
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from krill.atomic import write_json
from krill.config.schema import Tokenizer
from krill.config.signature import file_digest, signature
from krill.errors import KrillError, UsageError

log = logging.getLogger("krill")

VERSION = 2
"""Part of every signature: raised when the recipe below changes what it makes."""

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""How text is cut before merging: the published patterns of GPT-2 and of GPT-4 (as Llama 3 spells it)."""

MODEL_MAX_LENGTH = 2**20
"""Longer texts make transformers warn; the model's own limit is in its configuration."""

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "record.json")


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
        for name in _FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        if backend.encode("a").ids[:1] != [self.bos_id]:
            bos = backend.id_to_token(self.bos_id)
            assert bos is not None
            backend.post_processor = _bos_in_front(bos, self.bos_id)
            backend.save(str(folder / "tokenizer.json"))

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}


# --- what the commands call --------------------------------------------------------------------------------


def tokenizer_identity(config: Tokenizer) -> str:
    """Signature of the recipe without its text, or of the ready tokenizer's content."""
    if config.path is not None:
        return load_tokenizer(ready_folder(config.path)).signature
    return signature("recipe", VERSION, tokenizers.__version__, config)


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
    roles = {role: _role_id(folder, backend, role) for role in ("bos_token", "eos_token", "pad_token")}
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
        signature=_signature_of(folder, [bos, eos, pad]),
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
    )


# --- training ----------------------------------------------------------------------------------------------


def train_tokenizer(config: Tokenizer, texts: Iterator[str], folder: Path) -> dict[str, Any]:
    """Train on `texts` (at most config.sample_bytes of UTF-8), save to `folder`, return a record (JSON).

    Literal special tokens in the text count as the ordinary text they are. Raises UsageError for special
    tokens that cannot be told from text, KrillError if the text yields fewer entries than config.vocab_size.
    """
    began = time.monotonic()
    specials = list(
        dict.fromkeys([config.bos_token, config.eos_token, config.pad_token, *config.special_tokens])
    )
    tokenizer = _untrained(config)
    _check_specials(specials, tokenizer, config.vocab_size)
    sample = _Sample(texts, config.sample_bytes)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        max_token_length=config.max_token_length,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    if not sample.documents:
        raise UsageError(
            "no document is left to train the tokenizer on; lower data.min_chars, or give other data"
        )
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size != config.vocab_size:
        raise KrillError(
            f"tokenizer.vocab_size={config.vocab_size}: the text yields only {size} entries "
            f"({sample.documents:,} documents, {sample.bytes:,} bytes, tokenizer.min_frequency="
            f"{config.min_frequency}); set tokenizer.vocab_size={size} or less, or give more text"
        )
    tokenizer.post_processor = _bos_in_front(config.bos_token, specials.index(config.bos_token))
    _save(tokenizer, config, specials, folder)
    log.info(
        "tokenizer: %d entries from %s documents, %.1f MB, %.1f s",
        size, f"{sample.documents:,}", sample.bytes / 1e6, time.monotonic() - began,
    )  # fmt: skip
    return {
        "tokenizer": file_digest(folder / "tokenizer.json"),
        "text": {"xxh3_128": sample.digest.hexdigest(), "documents": sample.documents, "bytes": sample.bytes},
        "vocab_size": size,
        "recipe": config.model_dump(exclude={"path", "name"}),
        "versions": {"tokenizers": tokenizers.__version__, "recipe": VERSION},
    }


class _Sample:
    """Documents up to a number of UTF-8 bytes (the last one may pass it), hashed and counted as they pass."""

    def __init__(self, texts: Iterator[str], limit: int) -> None:
        self._texts, self._limit = texts, limit
        self.documents = self.bytes = 0
        self.digest = xxhash.xxh3_128()

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            content = text.encode()
            self.documents += 1
            self.bytes += len(content)
            self.digest.update(len(content).to_bytes(8, "little") + content)
            yield text
            if self.bytes >= self._limit:
                return


def _untrained(config: Tokenizer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if config.normalizer == "nfc":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[config.pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _check_specials(specials: list[str], tokenizer: tokenizers.Tokenizer, vocab_size: int) -> None:
    """Raise UsageError for special tokens that merging could make of text or that leave no room for bytes."""
    for token in specials:
        if not token or token != "".join(token.split()):
            raise UsageError(
                f"tokenizer: special token {token!r} is empty or holds white space; write <|name|>"
            )
        if len(tokenizer.pre_tokenizer.pre_tokenize_str(token)) == 1:
            raise UsageError(
                f"tokenizer: special token {token!r} is an ordinary word or sign; write <|{token}|>"
            )
    least = len(specials) + 256
    if vocab_size < least:
        raise UsageError(
            f"tokenizer.vocab_size={vocab_size}: no room for 256 bytes and {len(specials)} special tokens; "
            f"set tokenizer.vocab_size={least} or more"
        )


def _bos_in_front(token: str, token_id: int) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single="bos $A",
        pair="bos $A bos:1 $B:1",
        special_tokens=[{"id": "bos", "ids": [token_id], "tokens": [token]}],
    )


def _save(tokenizer: tokenizers.Tokenizer, config: Tokenizer, specials: list[str], folder: Path) -> None:
    """tokenizer.json, and tokenizer_config.json with what transformers needs beside it."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    roles = {"bos_token": config.bos_token, "eos_token": config.eos_token, "pad_token": config.pad_token}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **roles,
            "extra_special_tokens": [token for token in specials if token not in roles.values()],
            "model_max_length": MODEL_MAX_LENGTH,
            "clean_up_tokenization_spaces": False,
        },
    )


# --- ready tokenizers --------------------------------------------------------------------------------------


def ready_folder(path: str) -> Path:
    """The local folder `path`, or the cached files of the Hub's repository of that name."""
    local = Path(path).expanduser()
    if local.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        if not local.is_dir():
            raise UsageError(f"tokenizer.path={path}: no such folder (seen from {Path.cwd()})")
        return local
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=list(_FILES)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"tokenizer.path={path}: neither a folder here ({Path.cwd()}) nor on the Hugging Face Hub, or "
            "you may not see it (hf auth login, HF_TOKEN)"
        ) from error
    except Exception as error:
        raise KrillError(
            f"tokenizer.path={path}: no folder here ({Path.cwd()}), not in the Hub's cache, and the Hub can "
            f"not be reached ({type(error).__name__}: {error}); give a folder, or train one: tokenizer=bpe_4k"
        ) from error


def _role_id(folder: Path, backend: tokenizers.Tokenizer, role: str) -> int | None:
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


def _signature_of(folder: Path, roles: list[int]) -> str:
    """The signature in record.json while tokenizer.json is the one it was written for, else the content's."""
    digest = file_digest(folder / "tokenizer.json")
    path = folder / "record.json"
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["tokenizer"] == digest:
                return record["signature"]
        except (ValueError, TypeError, KeyError):
            log.warning("%s: is not a record that krill wrote; the tokenizer counts by its content", path)
    return signature("ready", VERSION, digest, roles)
