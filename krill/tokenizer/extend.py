"""Extends an existing byte-level BPE tokenizer by merges (for a new language) and special tokens; old ids are kept.

The new merges are learned on text that the tokenizer has encoded, and come after its own: a text is first encoded
as before, then merged further. They are learned by Hugging Face's trainer, which gets each token as one letter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from krill.config.schema import TokenizerConfig
from krill.errors import UsageError
from krill.text.batching import batch_by_size
from krill.tokenizer import recipe
from krill.tokenizer.artifact import (
    SETTINGS_FILES,
    TokenizerFolder,
    load_tokenizer,
    resolve_tokenizer_folder,
)
from krill.tokenizer.chunking import ENCODE_BATCH_CHARACTERS, chunk_texts

_FIRST_LETTER = 0x10000
"""The code point that represents token 0; no code point from here on is white space or a surrogate."""


class TokenizerExtension(NamedTuple):
    """The additions to a base tokenizer."""

    base: TokenizerFolder
    tokenizer_json: dict[str, Any]
    """The tokenizer.json of the base, with the added tokens also in the vocabulary."""
    base_added_tokens: list[str]
    """The added tokens of the base."""
    requested_tokens: list[str]
    """The special tokens to add."""
    new_tokens: list[str]
    """The special tokens that need a new id; others use a reserved entry of the base."""
    merge_slots: int
    """The number of entries left for merges."""


def prepare_extension(config: TokenizerConfig) -> TokenizerExtension:
    """Loads config.base and determines what to add to it.

    Raises UsageError if the base is not a byte-level BPE or leaves no room, for special tokens that
    `recipe.check_special_token` rejects, and for special tokens that the chat template needs but are missing.
    """
    assert config.base is not None
    folder = resolve_tokenizer_folder(config.base, "tokenizer.base")
    base = load_tokenizer(folder)
    content = json.loads(base.backend.to_str())
    _require_byte_level(content, folder)
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    requested = [token for token in dict.fromkeys(config.special_tokens) if token not in added]
    for token in requested:
        recipe.check_special_token(token, base.backend.pre_tokenizer)
    if config.chat_template is not None:
        recipe.load_chat_template(config.chat_template, [*added, *requested])
    # tokenizers would number added tokens that are not in the vocabulary by its size.
    content["model"]["vocab"].update(added)
    new = [token for token in requested if token not in content["model"]["vocab"]]
    room = recipe.compute_vocab_size(config) - base.vocab_size - len(new)
    if room < 0:
        raise UsageError(
            f"tokenizer.vocab_size={recipe.compute_vocab_size(config)}: {folder} has {base.vocab_size} entries, and "
            f"{len(new)} special tokens are new; set tokenizer.vocab_size={base.vocab_size + len(new)} or more"
        )
    return TokenizerExtension(base, content, [*added], requested, new, room)


def extend_tokenizer(config: TokenizerConfig, texts: Iterable[str], folder: Path) -> int:
    """Saves config.base with config.special_tokens and new merges to `folder`; returns the number of entries.

    They are fewer than config.vocab_size if the text does not yield more. `texts` is not read if there is no room
    for merges. Raises UsageError as `prepare_extension` does.
    """
    extension = prepare_extension(config)
    model, size = extension.tokenizer_json["model"], extension.base.vocab_size
    vocabulary: dict[str, int] = model["vocab"]
    merge_filter = _MergeFilter(vocabulary, frozenset(extension.base_added_tokens), config.max_token_length)
    merges = _learn_merges(extension, merge_filter, texts, config.min_frequency)
    model["merges"] += merges
    entries = dict.fromkeys(entry for entry in map("".join, merges) if entry not in vocabulary)
    vocabulary.update({entry: size + index for index, entry in enumerate([*entries, *extension.new_tokens])})
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(extension.tokenizer_json))
    tokenizer.add_special_tokens(recipe.make_added_tokens(extension.requested_tokens))
    _save_extension(tokenizer, config, extension, folder)
    return size + len(entries) + len(extension.new_tokens)


class _MergeFilter(NamedTuple):
    """The entries that merges may create."""

    vocabulary: Mapping[str, int]
    reserved: frozenset[str]
    """Added tokens; a merge must not create one, as text would be encoded as it."""
    max_bytes: int | None
    """The maximum length of an entry."""

    def select(self, merges: list[tuple[str, str]], room: int) -> tuple[list[tuple[str, str]], int]:
        """Returns the allowed merges, up to `room` new entries, and the number of new entries."""
        new_entries: set[str] = set()
        allowed: list[tuple[str, str]] = []
        for left, right in merges:
            entry = left + right
            if self._is_forbidden(entry) or not all(
                part in new_entries or (part in self.vocabulary and part not in self.reserved)
                for part in (left, right)
            ):
                continue
            if entry not in self.vocabulary and entry not in new_entries:
                if len(new_entries) == room:
                    break
                new_entries.add(entry)
            allowed.append((left, right))
        return allowed, len(new_entries)

    def _is_forbidden(self, entry: str) -> bool:
        return entry in self.reserved or (self.max_bytes is not None and len(entry) > self.max_bytes)


def _learn_merges(
    extension: TokenizerExtension, merge_filter: _MergeFilter, texts: Iterable[str], min_frequency: int
) -> list[tuple[str, str]]:
    """Returns new merges in order, as pairs of entries, that fill the free entries as far as the text allows."""
    # Some merges are not allowed, and several merges may create the same entry.
    surplus = extension.merge_slots // 10 + 64
    while extension.merge_slots:
        learned, has_more = _train_merges(
            extension.base, texts, extension.merge_slots + surplus, min_frequency
        )
        merges, num_entries = merge_filter.select(learned, extension.merge_slots)
        if num_entries == extension.merge_slots or not has_more:
            return merges
        surplus *= 8
    return []


def _train_merges(
    base: TokenizerFolder, texts: Iterable[str], num_merges: int, min_frequency: int
) -> tuple[list[tuple[str, str]], bool]:
    """Returns at most `num_merges` merges, and whether there may be more."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = base.vocab_size + num_merges
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        initial_alphabet=[chr(_FIRST_LETTER + token) for token in range(base.vocab_size)],
        show_progress=False,
    )
    learner.train_from_iterator(_encode_as_letters(base.backend, texts), trainer)

    def to_entry(letters: str) -> str:
        return "".join(base.backend.id_to_token(ord(letter) - _FIRST_LETTER) or "" for letter in letters)

    merges: list[list[str]] = json.loads(learner.to_str())["model"]["merges"]
    return [(to_entry(left), to_entry(right)) for left, right in merges], learner.get_vocab_size() == size


def _encode_as_letters(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """Yields each text as one letter per token, with spaces between tokens that must not be merged."""
    encoder = tokenizers.Tokenizer.from_str(backend.to_str())
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    for batch in batch_by_size(chunk_texts(texts), ENCODE_BATCH_CHARACTERS, len):
        for encoding in encoder.encode_batch(batch, add_special_tokens=False):
            letters = np.array(encoding.ids, "<u4") + _FIRST_LETTER
            words = np.array(encoding.word_ids, np.int64)
            borders = np.flatnonzero(words[1:] != words[:-1]) + 1
            yield np.insert(letters, borders, ord(" ")).astype("<u4").tobytes().decode("utf-32-le")


def _require_byte_level(content: dict[str, Any], folder: Path) -> None:
    kind = content["model"]["type"]
    byte_level = all("ByteLevel" in json.dumps(content[part]) for part in ("pre_tokenizer", "decoder"))
    if kind != "BPE" or not byte_level:
        kind = "BPE of characters" if kind == "BPE" else kind
        raise UsageError(
            f"tokenizer.base={folder}: not a byte-level BPE but {kind}, which cannot be extended; train a tokenizer "
            "instead: tokenizer=bpe_32k"
        )


def _save_extension(
    tokenizer: tokenizers.Tokenizer, config: TokenizerConfig, extension: TokenizerExtension, folder: Path
) -> None:
    base = extension.base.folder
    for name in SETTINGS_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if extension.requested_tokens:
        settings["extra_special_tokens"] = [*_pop_extra_special_tokens(settings), *extension.requested_tokens]
    specials = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    recipe.save_tokenizer_config(settings, config.chat_template, specials, folder)


def _pop_extra_special_tokens(settings: dict[str, Any]) -> list[str]:
    """Removes and returns the special tokens beside bos, eos and pad, in the format of any transformers version."""
    extra = settings.pop("additional_special_tokens", None) or settings.get("extra_special_tokens") or []
    tokens = list(extra.values()) if isinstance(extra, dict) else extra
    return [token["content"] if isinstance(token, dict) else token for token in tokens]
