"""A ready byte-level BPE tokenizer with more entries: a new language, more special tokens; its ids stay.

New merges are learned on the text as the tokenizer cuts it today, and come after its own: every text is first cut
as before, then merged further. The trainer is Hugging Face's: it sees each token as one letter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from krill.config.schema import Tokenizer
from krill.errors import UsageError
from krill.tokenizer import recipe
from krill.tokenizer.folder import FILES, load_tokenizer, ready_folder
from krill.tokenizer.ranks import batches

_FIRST_LETTER = 0x10000
"""Token 0 as a letter: from here on no code point is a space or a surrogate."""


def extended(config: Tokenizer, texts: Iterable[str], folder: Path) -> int:
    """Save config.base with config.special_tokens and new merges in `folder`; returns how many entries there are.

    Fewer than config.vocab_size where the text yields no more. Raises UsageError for a base that is no
    byte-level BPE, or that leaves no room.
    """
    assert config.base is not None
    place = ready_folder(config.base, "tokenizer.base")
    base = load_tokenizer(place)
    content = json.loads(base.backend.to_str())
    _demand_byte_level(content, place)
    known = base.backend.get_vocab(with_added_tokens=True)
    specials = [token for token in config.special_tokens if token not in known]
    for token in specials:
        recipe.demand_special(token)
    wanted = recipe.size_of(config) - base.vocab_size - len(specials)
    if wanted < 0:
        raise UsageError(
            f"tokenizer.vocab_size={recipe.size_of(config)}: {place} has {base.vocab_size} entries, and "
            f"{len(specials)} special tokens are new; set tokenizer.vocab_size={base.vocab_size + len(specials)} or "
            "more"
        )
    merges = _learned(base.backend, base.vocab_size, texts, wanted, config.min_frequency)
    vocabulary = content["model"]["vocab"]
    # In the vocabulary, too: an added token that is not gets its id from the vocabulary's size.
    vocabulary.update({token: known[token] for token in known if token not in vocabulary})
    size = base.vocab_size
    for left, right in merges:
        if left + right not in vocabulary:
            if size == base.vocab_size + wanted:
                break
            vocabulary[left + right] = size
            size += 1
        content["model"]["merges"].append([left, right])
    for token in specials:
        vocabulary[token] = size
        size += 1
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    made.add_special_tokens(recipe.added(specials))
    _save(made, config, place, specials, folder)
    return size


def _learned(
    backend: tokenizers.Tokenizer, size: int, texts: Iterable[str], wanted: int, min_frequency: int
) -> list[tuple[str, str]]:
    """New merges in order, as the tokens that they join are spelled; a few more than wanted."""
    if not wanted:
        return []
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=size + wanted + wanted // 10 + 64,  # two ways to spell an entry make one
        min_frequency=min_frequency,
        initial_alphabet=[chr(_FIRST_LETTER + token) for token in range(size)],
        show_progress=False,
    )
    learner.train_from_iterator(_letters(backend, texts), trainer)

    def spelled(letters: str) -> str:
        return "".join(backend.id_to_token(ord(letter) - _FIRST_LETTER) or "" for letter in letters)

    found: list[list[str]] = json.loads(learner.to_str())["model"]["merges"]
    return [(spelled(left), spelled(right)) for left, right in found]


def _letters(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """Each text with one letter per token, a space between what is never merged."""
    cutter = tokenizers.Tokenizer.from_str(backend.to_str())
    cutter.encode_special_tokens = True
    cutter.no_truncation()
    cutter.no_padding()
    for batch in batches(texts):
        for encoding in cutter.encode_batch(batch, add_special_tokens=False):
            letters = np.array(encoding.ids, "<u4") + _FIRST_LETTER
            words = np.array(encoding.word_ids, np.int64)
            borders = np.flatnonzero(words[1:] != words[:-1]) + 1
            yield np.insert(letters, borders, ord(" ")).astype("<u4").tobytes().decode("utf-32-le")


def _demand_byte_level(content: dict[str, Any], place: Path) -> None:
    model = content["model"]
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(content["decoder"]):
        raise UsageError(
            f"tokenizer.base={place}: is no byte-level BPE ({model['type']}), so no merges can be added to it; train "
            "one: tokenizer=bpe_32k"
        )


def _save(made: tokenizers.Tokenizer, config: Tokenizer, place: Path, new: list[str], folder: Path) -> None:
    for name in FILES:
        if (place / name).is_file() and name != "record.json":
            shutil.copyfile(place / name, folder / name)
    (folder / "tokenizer.json").write_text(made.to_str(pretty=True), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if new:
        settings["extra_special_tokens"] = [*_extra(settings), *new]
    specials = [token.content for token in made.get_added_tokens_decoder().values()]
    recipe.save_settings(settings, config.chat_template, specials, folder)


def _extra(settings: dict[str, Any]) -> list[str]:
    """The special tokens beside bos, eos and pad, as any version of transformers has written them."""
    found = settings.pop("additional_special_tokens", None) or settings.get("extra_special_tokens") or []
    tokens = list(found.values()) if isinstance(found, dict) else found
    return [token["content"] if isinstance(token, dict) else token for token in tokens]
