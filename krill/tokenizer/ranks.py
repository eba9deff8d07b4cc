"""Training by rustbpe, several times as fast as Hugging Face's trainer, and what it yields as a tokenizer.json.

rustbpe (Karpathy, github.com/karpathy/rustbpe) gives byte strings by rank, as tiktoken has them. The two parts that
a string was merged of are found by merging its bytes with the strings before it. rustbpe knows no longest token and
no least frequency: longer ones are left out, as is all that was merged of them, and more are asked for in advance;
that the last entry is frequent enough is counted on the text.
"""

from __future__ import annotations

import logging
import operator
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise

import tokenizers
from tokenizers import models

from krill.config.schema import Tokenizer
from krill.tokenizer import recipe

log = logging.getLogger("krill")

BATCH = 1_000_000
"""Characters that are encoded at once."""


def trained_by_rustbpe(config: Tokenizer, texts: Iterable[str]) -> tokenizers.Tokenizer | None:
    """The tokenizer; None, with a word why, where rustbpe cannot do what `config` asks."""
    import rustbpe

    specials = recipe.special_tokens(config)
    wanted = recipe.size_of(config) - len(specials)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(
        _normalized(config, texts), wanted + wanted // 20 + 64, pattern=recipe.PATTERNS[config.pattern]
    )
    ranks = [content for content, _ in trainer.get_mergeable_ranks()]
    merges = merges_of(ranks, config.max_token_length)[: wanted - 256]
    tokenizer = _tokenizer(config, specials, merges)
    if len(merges) < wanted - 256 or not _frequent(tokenizer, texts, config.min_frequency):
        log.warning(
            "tokenizer: rustbpe finds too few entries in this text; Hugging Face's trainer takes over"
        )
        return None
    return tokenizer


def merges_of(ranks: list[bytes], longest: int | None = None) -> list[tuple[bytes, bytes]]:
    """The merges, in order, that make the byte strings `ranks` (by rank, the 256 bytes first).

    Left out are strings of more than `longest` bytes, those that come twice, and those that are not merged of two.
    """
    known = {content: rank for rank, content in enumerate(ranks[:256])}
    merges: list[tuple[bytes, bytes]] = []
    for content in ranks[256:]:
        if content in known or (longest is not None and len(content) > longest):
            continue
        parts = _parts(content, known)
        if len(parts) == 2:
            known[content] = len(known)
            merges.append((parts[0], parts[1]))
    return merges


def _parts(content: bytes, known: dict[bytes, int]) -> list[bytes]:
    """What byte-level BPE with the strings in `known` makes of `content`."""
    parts = [content[place : place + 1] for place in range(len(content))]
    while len(parts) > 2:
        ranks = [known.get(left + right, len(known)) for left, right in pairwise(parts)]
        best = min(ranks)
        if best == len(known):
            break
        place = ranks.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def _normalized(config: Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield unicodedata.normalize("NFC", text) if config.normalizer == "nfc" else text


def _tokenizer(
    config: Tokenizer, specials: list[str], merges: list[tuple[bytes, bytes]]
) -> tokenizers.Tokenizer:
    letters = recipe.byte_letters()
    left, right = (["".join(letters[byte] for byte in merge[side]) for merge in merges] for side in (0, 1))
    spelled = [*zip(left, right, strict=True)]
    entries = [*specials, *recipe.alphabet(), *map(operator.add, left, right)]
    vocabulary = {entry: token for token, entry in enumerate(entries)}
    tokenizer = recipe.untrained(config, models.BPE(vocabulary, spelled))
    tokenizer.add_special_tokens(recipe.added(specials))
    return tokenizer


def _frequent(tokenizer: tokenizers.Tokenizer, texts: Iterable[str], least: int) -> bool:
    """Whether the last entry, the rarest when it was merged, comes at least so often."""
    last, seen = tokenizer.get_vocab_size(with_added_tokens=True) - 1, 0
    for batch in batches(texts):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            seen += encoding.ids.count(last)
        if seen >= least:
            return True
    return False


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts, about so many characters at a time as are encoded at once."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
