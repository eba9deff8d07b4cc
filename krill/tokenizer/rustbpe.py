"""Trains BPE with rustbpe, several times as fast as Hugging Face's trainer, and converts the result to tokenizers.

rustbpe (Karpathy, github.com/karpathy/rustbpe) returns byte strings by rank, as in tiktoken. The two parts that a
string was merged of are recovered by applying the earlier merges to its bytes. rustbpe has neither a maximum token
length nor a minimum frequency: longer tokens and all that were merged of them are removed, for which a surplus is
trained, and the frequency of the last entry is counted on the text.
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
from krill.extras import format_install_command
from krill.tokenizer import recipe
from krill.tokenizer.chunking import chunk_texts

log = logging.getLogger("krill")

COUNT_BUFFER_TEXTS = 1024
"""Number of texts that rustbpe counts at once; its default of 8192 takes 20 % longer."""


def train_with_rustbpe(config: TokenizerConfig, texts: Iterable[str]) -> tokenizers.Tokenizer | None:
    """Trains a tokenizer; returns None and logs a warning if rustbpe cannot train one for `config` on this text.

    Raises UsageError if rustbpe is not installed.
    """
    special_tokens = recipe.list_special_tokens(config)
    num_entries = recipe.compute_vocab_size(config) - len(special_tokens)
    ranks = _learn_token_ranks(config, texts, num_entries + num_entries // 50 + 64)
    if ranks is None:
        log.warning("tokenizer   rustbpe cannot split this text; using Hugging Face's trainer instead")
        return None
    merges = recover_merges(ranks, config.max_token_length)[: num_entries - 256]
    tokenizer = _build_tokenizer(config, special_tokens, merges)
    last = b"".join(merges[-1]) if merges else b""
    if len(merges) < num_entries - 256 or (
        merges and not _is_frequent(tokenizer, last, _iterate_chunks(config, texts), config.min_frequency)
    ):
        log.warning(
            "tokenizer   rustbpe found too few entries in this text; using Hugging Face's trainer instead"
        )
        return None
    return tokenizer


def get_rustbpe_version() -> str:
    """Returns the version of rustbpe. Raises UsageError if it is not installed."""
    try:
        return importlib.metadata.version("rustbpe")
    except importlib.metadata.PackageNotFoundError as error:
        raise _build_missing_rustbpe_error() from error


def _learn_token_ranks(config: TokenizerConfig, texts: Iterable[str], size: int) -> list[bytes] | None:
    """Returns at most `size` byte strings by rank; None if the pattern overflows on the text."""
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
        if type(error).__name__ != "PanicException":  # of pyo3; not an Exception, and cannot be imported
            raise
        return None
    return [content for content, _ in trainer.get_mergeable_ranks()]


def _build_missing_rustbpe_error() -> UsageError:
    return UsageError(
        f"tokenizer.trainer=rustbpe needs rustbpe: {format_install_command('fast')}, or use Hugging Face's trainer: "
        "tokenizer.trainer=hf"
    )


def recover_merges(ranks: list[bytes], max_bytes: int | None = None) -> list[tuple[bytes, bytes]]:
    """Returns the merges, in order, that create the byte strings `ranks` (by rank, the 256 bytes first).

    Strings of more than `max_bytes` bytes, repeated strings, and strings that are not merged of two are left out.
    """
    known = {content: rank for rank, content in enumerate(ranks[:256])}
    merges: list[tuple[bytes, bytes]] = []
    for content in ranks[256:]:
        if content in known or (max_bytes is not None and len(content) > max_bytes):
            continue
        parts = _split_entry(content, known)
        if len(parts) == 2:
            known[content] = len(known)
            merges.append((parts[0], parts[1]))
    return merges


def _split_entry(content: bytes, known: dict[bytes, int]) -> list[bytes]:
    """Returns the strings that `content` was merged of: the only known pair, or the result of BPE on its bytes."""
    pairs = [
        (content[:index], content[index:])
        for index in range(1, len(content))
        if content[:index] in known and content[index:] in known
    ]
    if len(pairs) == 1:
        return [*pairs[0]]
    parts = [content[index : index + 1] for index in range(len(content))]
    while len(parts) > 2:
        ranks = [known.get(left + right, len(known)) for left, right in pairwise(parts)]
        best = min(ranks)
        if best == len(known):
            break
        parts = _apply_merge(parts, ranks, best)
    return parts


def _apply_merge(parts: list[bytes], ranks: list[int], best: int) -> list[bytes]:
    """Merges all pairs of rank `best` from left to right, as in training; `ranks` has the rank of each pair."""
    merged: list[bytes] = []
    index = 0
    while index < len(parts):
        width = 2 if index < len(ranks) and ranks[index] == best else 1
        merged.append(b"".join(parts[index : index + width]))
        index += width
    return merged


def _iterate_chunks(config: TokenizerConfig, texts: Iterable[str]) -> Iterator[str]:
    for text in chunk_texts(texts):
        yield unicodedata.normalize("NFC", text) if config.normalizer == "nfc" else text


def _build_tokenizer(
    config: TokenizerConfig, special_tokens: list[str], merges: list[tuple[bytes, bytes]]
) -> tokenizers.Tokenizer:
    letters = recipe.bytes_to_unicode()
    left, right = (["".join(letters[byte] for byte in merge[side]) for merge in merges] for side in (0, 1))
    merge_pairs = [*zip(left, right, strict=True)]
    entries = [*special_tokens, *recipe.get_byte_alphabet(), *map(operator.add, left, right)]
    vocabulary = {entry: token for token, entry in enumerate(entries)}
    tokenizer = recipe.build_bpe_tokenizer(config, models.BPE(vocabulary, merge_pairs))
    tokenizer.add_special_tokens(recipe.make_added_tokens(special_tokens))
    return tokenizer


def _is_frequent(
    tokenizer: tokenizers.Tokenizer, content: bytes, texts: Iterable[str], min_count: int
) -> bool:
    """Returns whether the last entry, `content`, the rarest when it was merged, occurs at least `min_count` times."""
    last, count = tokenizer.get_vocab_size(with_added_tokens=True) - 1, 0
    tokenizer.encode_special_tokens = True
    for text in texts:
        if content in text.encode():
            count += tokenizer.encode(text, add_special_tokens=False).ids.count(last)
            if count >= min_count:
                break
    tokenizer.encode_special_tokens = False
    return count >= min_count
