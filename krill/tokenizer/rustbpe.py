"""Training by rustbpe, several times as fast as Hugging Face's trainer, and what it yields as a tokenizer.json.

rustbpe (Karpathy, github.com/karpathy/rustbpe) gives byte strings by rank, as tiktoken has them. The two parts that
a string was merged of are found by merging its bytes with the strings before it. rustbpe knows no longest token and
no least frequency: longer ones are left out, as is all that was merged of them, and more are asked for in advance;
that the last entry is frequent enough is counted on the text.
"""

from __future__ import annotations

import importlib.metadata
import logging
import operator
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise

import tokenizers
from tokenizers import models

from krill.config.schema import TokenizerConfig
from krill.errors import UsageError
from krill.tokenizer import recipe
from krill.tokenizer.chunking import chunk_texts

log = logging.getLogger("krill")

COUNT_BUFFER_TEXTS = 1024
"""Texts that rustbpe counts at once: with its default of 8192 counting takes a fifth longer."""


def train_with_rustbpe(config: TokenizerConfig, texts: Iterable[str]) -> tokenizers.Tokenizer | None:
    """The tokenizer; None, with a word why, where rustbpe cannot do what `config` asks.

    Raises UsageError where rustbpe is not installed.
    """
    specials = recipe.list_special_tokens(config)
    wanted = recipe.compute_vocab_size(config) - len(specials)
    ranks = _learn_token_ranks(config, texts, wanted + wanted // 50 + 64)
    if ranks is None:
        log.warning("tokenizer: rustbpe cannot cut this text; Hugging Face's trainer takes over")
        return None
    merges = recover_merges(ranks, config.max_token_length)[: wanted - 256]
    tokenizer = _build_tokenizer(config, specials, merges)
    last = b"".join(merges[-1]) if merges else b""
    if len(merges) < wanted - 256 or (
        merges and not _is_frequent(tokenizer, last, _iterate_chunks(config, texts), config.min_frequency)
    ):
        log.warning(
            "tokenizer: rustbpe finds too few entries in this text; Hugging Face's trainer takes over"
        )
        return None
    return tokenizer


def get_rustbpe_version() -> str:
    """rustbpe's. Raises UsageError where it is not installed."""
    try:
        return importlib.metadata.version("rustbpe")
    except importlib.metadata.PackageNotFoundError as error:
        raise _build_missing_rustbpe_error() from error


def _learn_token_ranks(config: TokenizerConfig, texts: Iterable[str], size: int) -> list[bytes] | None:
    """The byte strings by rank, `size` of them if the text has so many; None if the pattern fails on it."""
    try:
        import rustbpe
    except ImportError as error:
        raise _build_missing_rustbpe_error() from error
    trainer = rustbpe.Tokenizer()
    try:
        trainer.train_from_iterator(
            _iterate_chunks(config, texts), size, COUNT_BUFFER_TEXTS, recipe.SPLIT_PATTERNS[config.pattern]
        )
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # no Exception, and its class is nowhere to be imported
            raise
        return None
    return [content for content, _ in trainer.get_mergeable_ranks()]


def _build_missing_rustbpe_error() -> UsageError:
    return UsageError(
        "tokenizer.trainer=rustbpe needs rustbpe: pip install 'krill[fast]', or let Hugging Face tokenizers train: "
        "tokenizer.trainer=hf"
    )


def recover_merges(ranks: list[bytes], longest: int | None = None) -> list[tuple[bytes, bytes]]:
    """The merges, in order, that make the byte strings `ranks` (by rank, the 256 bytes first).

    Left out are strings of more than `longest` bytes, those that come twice, and those that are not merged of two.
    """
    known = {content: rank for rank, content in enumerate(ranks[:256])}
    merges: list[tuple[bytes, bytes]] = []
    for content in ranks[256:]:
        if content in known or (longest is not None and len(content) > longest):
            continue
        parts = _split_entry(content, known)
        if len(parts) == 2:
            known[content] = len(known)
            merges.append((parts[0], parts[1]))
    return merges


def _split_entry(content: bytes, known: dict[bytes, int]) -> list[bytes]:
    """The two strings that `content` was merged of: the only two known ones, or what BPE makes of its bytes."""
    pairs = [
        (content[:place], content[place:])
        for place in range(1, len(content))
        if content[:place] in known and content[place:] in known
    ]
    if len(pairs) == 1:
        return [*pairs[0]]
    parts = [content[place : place + 1] for place in range(len(content))]
    while len(parts) > 2:
        ranks = [known.get(left + right, len(known)) for left, right in pairwise(parts)]
        best = min(ranks)
        if best == len(known):
            break
        parts = _apply_merge(parts, ranks, best)
    return parts


def _apply_merge(parts: list[bytes], ranks: list[int], best: int) -> list[bytes]:
    """The parts, all pairs of rank `best` merged from left to right, as training did; `ranks`: of each pair."""
    merged: list[bytes] = []
    place = 0
    while place < len(parts):
        width = 2 if place < len(ranks) and ranks[place] == best else 1
        merged.append(b"".join(parts[place : place + width]))
        place += width
    return merged


def _iterate_chunks(config: TokenizerConfig, texts: Iterable[str]) -> Iterator[str]:
    for text in chunk_texts(texts):
        yield unicodedata.normalize("NFC", text) if config.normalizer == "nfc" else text


def _build_tokenizer(
    config: TokenizerConfig, specials: list[str], merges: list[tuple[bytes, bytes]]
) -> tokenizers.Tokenizer:
    letters = recipe.bytes_to_unicode()
    left, right = (["".join(letters[byte] for byte in merge[side]) for merge in merges] for side in (0, 1))
    spelled = [*zip(left, right, strict=True)]
    entries = [*specials, *recipe.get_byte_alphabet(), *map(operator.add, left, right)]
    vocabulary = {entry: token for token, entry in enumerate(entries)}
    tokenizer = recipe.build_bpe_tokenizer(config, models.BPE(vocabulary, spelled))
    tokenizer.add_special_tokens(recipe.make_added_tokens(specials))
    return tokenizer


def _is_frequent(tokenizer: tokenizers.Tokenizer, content: bytes, texts: Iterable[str], least: int) -> bool:
    """Whether the last entry, `content`, which was the rarest when it was merged, comes at least so often."""
    last, seen = tokenizer.get_vocab_size(with_added_tokens=True) - 1, 0
    tokenizer.encode_special_tokens = True
    for text in texts:
        if content in text.encode():
            seen += tokenizer.encode(text, add_special_tokens=False).ids.count(last)
            if seen >= least:
                break
    tokenizer.encode_special_tokens = False
    return seen >= least
