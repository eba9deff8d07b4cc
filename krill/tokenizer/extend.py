"""A ready byte-level BPE tokenizer with more entries: a new language, more special tokens; its ids stay.

New merges are learned on the text as the tokenizer cuts it today, and come after its own: every text is first cut
as before, then merged further. The trainer is Hugging Face's: it sees each token as one letter.
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
    TOKENIZER_FILES,
    TokenizerFolder,
    load_tokenizer,
    resolve_tokenizer_folder,
)
from krill.tokenizer.chunking import ENCODE_BATCH_CHARACTERS, chunk_texts

_FIRST_LETTER = 0x10000
"""Token 0 as a letter: from here on no code point is a space or a surrogate."""


class TokenizerExtension(NamedTuple):
    """What is to become of a base."""

    base: TokenizerFolder
    tokenizer_json: dict[str, Any]
    """Its tokenizer.json, the added tokens in the vocabulary as well."""
    base_added_tokens: list[str]
    """Its added tokens."""
    requested_tokens: list[str]
    """Those to add."""
    new_tokens: list[str]
    """Those of them that get a new id: some bases have reserved entries."""
    merge_slots: int
    """Entries left for merges."""


def prepare_extension(config: TokenizerConfig) -> TokenizerExtension:
    """What config.base is to become.

    Raises UsageError for a base that is no byte-level BPE or leaves no room, for special tokens as
    `recipe.demand_special` does, and for a chat template that lacks some.
    """
    assert config.base is not None
    place = resolve_tokenizer_folder(config.base, "tokenizer.base")
    base = load_tokenizer(place)
    content = json.loads(base.backend.to_str())
    _require_byte_level(content, place)
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    asked = [token for token in dict.fromkeys(config.special_tokens) if token not in added]
    for token in asked:
        recipe.check_special_token(token, base.backend.pre_tokenizer)
    if config.chat_template is not None:
        recipe.load_chat_template(config.chat_template, [*added, *asked])
    # An added token that is not in the vocabulary gets its id from the vocabulary's size.
    content["model"]["vocab"].update(added)
    new = [token for token in asked if token not in content["model"]["vocab"]]
    room = recipe.compute_vocab_size(config) - base.vocab_size - len(new)
    if room < 0:
        raise UsageError(
            f"tokenizer.vocab_size={recipe.compute_vocab_size(config)}: {place} has {base.vocab_size} entries, and {len(new)} "
            f"special tokens are new; set tokenizer.vocab_size={base.vocab_size + len(new)} or more"
        )
    return TokenizerExtension(base, content, [*added], asked, new, room)


def extend_tokenizer(config: TokenizerConfig, texts: Iterable[str], folder: Path) -> int:
    """Save config.base with config.special_tokens and new merges in `folder`; returns how many entries there are.

    Fewer than config.vocab_size where the text yields no more; `texts` is not read where there is room for none.
    Raises UsageError as `prepare_extension` does.
    """
    plan = prepare_extension(config)
    model, size = plan.tokenizer_json["model"], plan.base.vocab_size
    vocabulary: dict[str, int] = model["vocab"]
    allowed = _MergeFilter(vocabulary, frozenset(plan.base_added_tokens), config.max_token_length)
    merges = _learn_merges(plan, allowed, texts, config.min_frequency)
    model["merges"] += merges
    entries = dict.fromkeys(entry for entry in map("".join, merges) if entry not in vocabulary)
    vocabulary.update({entry: size + index for index, entry in enumerate([*entries, *plan.new_tokens])})
    made = tokenizers.Tokenizer.from_str(json.dumps(plan.tokenizer_json))
    made.add_special_tokens(recipe.make_added_tokens(plan.requested_tokens))
    _save_extension(made, config, plan, folder)
    return size + len(entries) + len(plan.new_tokens)


class _MergeFilter(NamedTuple):
    """What a merge may make."""

    vocabulary: Mapping[str, int]
    reserved: frozenset[str]
    """Added tokens: no merge may spell one, or text would become it."""
    max_bytes: int | None
    """Bytes."""

    def select(self, merges: list[tuple[str, str]], room: int) -> tuple[list[tuple[str, str]], int]:
        """The allowed merges, as far as they make `room` new entries, and how many they make."""
        made: set[str] = set()
        allowed: list[tuple[str, str]] = []
        for left, right in merges:
            entry = left + right
            if self._is_forbidden(entry) or not all(
                part in made or (part in self.vocabulary and part not in self.reserved)
                for part in (left, right)
            ):
                continue
            if entry not in self.vocabulary and entry not in made:
                if len(made) == room:
                    break
                made.add(entry)
            allowed.append((left, right))
        return allowed, len(made)

    def _is_forbidden(self, entry: str) -> bool:
        return entry in self.reserved or (self.max_bytes is not None and len(entry) > self.max_bytes)


def _learn_merges(
    plan: TokenizerExtension, allowed: _MergeFilter, texts: Iterable[str], min_frequency: int
) -> list[tuple[str, str]]:
    """New merges in order, as the tokens that they join are spelled: for all the room, or all there are."""
    surplus = plan.merge_slots // 10 + 64  # some are not allowed, and two ways to spell an entry make one
    while plan.merge_slots:
        found, more = _train_merges(plan.base, texts, plan.merge_slots + surplus, min_frequency)
        merges, made = allowed.select(found, plan.merge_slots)
        if made == plan.merge_slots or not more:
            return merges
        surplus *= 8
    return []


def _train_merges(
    base: TokenizerFolder, texts: Iterable[str], wanted: int, min_frequency: int
) -> tuple[list[tuple[str, str]], bool]:
    """`wanted` merges, or all there are, and whether there may be more."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = base.vocab_size + wanted
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        initial_alphabet=[chr(_FIRST_LETTER + token) for token in range(base.vocab_size)],
        show_progress=False,
    )
    learner.train_from_iterator(_encode_as_letters(base.backend, texts), trainer)

    def spelled(letters: str) -> str:
        return "".join(base.backend.id_to_token(ord(letter) - _FIRST_LETTER) or "" for letter in letters)

    found: list[list[str]] = json.loads(learner.to_str())["model"]["merges"]
    return [(spelled(left), spelled(right)) for left, right in found], learner.get_vocab_size() == size


def _encode_as_letters(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """Each text with one letter per token, a space between what is never merged."""
    cutter = tokenizers.Tokenizer.from_str(backend.to_str())
    cutter.encode_special_tokens = True
    cutter.no_truncation()
    cutter.no_padding()
    for batch in batch_by_size(chunk_texts(texts), ENCODE_BATCH_CHARACTERS, len):
        for encoding in cutter.encode_batch(batch, add_special_tokens=False):
            letters = np.array(encoding.ids, "<u4") + _FIRST_LETTER
            words = np.array(encoding.word_ids, np.int64)
            borders = np.flatnonzero(words[1:] != words[:-1]) + 1
            yield np.insert(letters, borders, ord(" ")).astype("<u4").tobytes().decode("utf-32-le")


def _require_byte_level(content: dict[str, Any], place: Path) -> None:
    kind = content["model"]["type"]
    byte_level = all("ByteLevel" in json.dumps(content[part]) for part in ("pre_tokenizer", "decoder"))
    if kind != "BPE" or not byte_level:
        kind = "BPE of characters" if kind == "BPE" else kind
        raise UsageError(
            f"tokenizer.base={place}: is no byte-level BPE (but {kind}), so no merges can be added to it; train "
            "one: tokenizer=bpe_32k"
        )


def _save_extension(
    made: tokenizers.Tokenizer, config: TokenizerConfig, plan: TokenizerExtension, folder: Path
) -> None:
    place = plan.base.folder
    for name in TOKENIZER_FILES:
        if (place / name).is_file() and name != "record.json":
            shutil.copyfile(place / name, folder / name)
    (folder / "tokenizer.json").write_text(made.to_str(pretty=True), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if plan.requested_tokens:
        settings["extra_special_tokens"] = [*_pop_extra_special_tokens(settings), *plan.requested_tokens]
    specials = [token.content for token in made.get_added_tokens_decoder().values()]
    recipe.save_tokenizer_config(settings, config.chat_template, specials, folder)


def _pop_extra_special_tokens(settings: dict[str, Any]) -> list[str]:
    """The special tokens beside bos, eos and pad, as any version of transformers has written them."""
    found = settings.pop("additional_special_tokens", None) or settings.get("extra_special_tokens") or []
    tokens = list(found.values()) if isinstance(found, dict) else found
    return [token["content"] if isinstance(token, dict) else token for token in tokens]
