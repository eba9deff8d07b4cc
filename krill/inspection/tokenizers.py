"""Tokenizers judged side by side on the same text: how well they compress it, and whether they give it back.

Every figure is a JSON value. Bytes and words are those of the text as it is, whatever a tokenizer's normalizer makes
of it, and special tokens written in it are text; so the tokenizers are compared on the same numbers.

Memory is bounded by batches of a million characters, and what is timed. 20 MB of Korean and English take 10 s per
tokenizer (two cores), most of it Hugging Face's encoding and decoding, and 330 MB with all that is loaded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from krill.data.encoding import Encoder
from krill.data.engines import Fast, Reference, compare
from krill.data.workers import cores
from krill.inspection.pieces import Speller
from krill.text.batches import batches
from krill.text.measures import Text
from krill.text.sample import Drawn
from krill.tokenizer.feed import BATCH
from krill.tokenizer.folder import TokenizerFolder

LANGUAGES = ("ko", "en", "other")
"""By script: at least half of the letters are Hangul, Latin, or neither; as in the language filter, letters that are
not Latin count twice."""

RARE = 10
"""An entry that is used less often is rare."""

EXAMPLES = 3
"""So many documents that do not come back are shown."""

TIMED = 2_000_000
"""Characters of text on which speed is measured, drawn evenly from all of it."""

_EXCERPT = 20
"""Characters before and after the first that differs."""


def judged(
    chosen: Mapping[str, TokenizerFolder], sample: Iterable[Drawn], names: list[str]
) -> dict[str, Any]:
    """Figures of the tokenizers, label → folder, on `sample`, which is read once; `names`: its sources.

    documents, bytes and words of the text; tokenizers: `_Judge.verdict` and `speeds` of each, in the given order.
    Raises UsageError for a tokenizer that makes a control token of ordinary text.
    """
    judges = [_Judge(label, tokenizer, len(names)) for label, tokenizer in chosen.items()]
    timed = _Timed()
    total = np.zeros(3, np.int64)
    for batch in _batches(sample):
        timed.take(batch.texts)
        total += batch.counts.sum(0)
        for judge in judges:
            judge.take(batch, names)
    return {
        **dict(zip(("documents", "bytes", "words"), total.tolist(), strict=True)),
        "tokenizers": [
            {**judge.verdict(names), "speed": speeds(judge.backend, timed.texts)} for judge in judges
        ],
    }


def speeds(backend: tokenizers.Tokenizer, texts: list[str]) -> dict[str, Any]:
    """MB of text a second, best of three: what this machine does, and only beside others of the same run.

    hf: Hugging Face tokenizers on all threads. gigatoken: on one, as krill-preprocess runs it; null where it is not
    installed, or not exact for this tokenizer.
    """
    reference = Reference(backend)
    size = sum(len(text.encode()) for text in texts)
    found: dict[str, Any] = {"bytes": size, "cores": cores(), "hf": None, "gigatoken": None}
    if not size:
        return found
    found["hf"] = _rate(size, lambda: backend.encode_batch_fast(texts, add_special_tokens=False))
    try:
        fast = Fast(backend)
        compare(fast, reference, texts)
    except Exception:  # ImportError, its own for a tokenizer that it does not know, Differs
        return found
    return {**found, "gigatoken": _rate(size, lambda: fast.ids(texts))}


# --- the text ----------------------------------------------------------------------------------------------


class _Batch(NamedTuple):
    """Some documents; arrays have a row for each."""

    texts: list[str]
    sources: np.ndarray
    """Index of the source; int64 (documents,)."""
    languages: np.ndarray
    """Index in LANGUAGES; int64 (documents,)."""
    counts: np.ndarray
    """1, UTF-8 bytes, words (what stands between white space); int64 (documents, 3)."""


def _batches(sample: Iterable[Drawn]) -> Iterator[_Batch]:
    sources: list[int] = []

    def texts() -> Iterator[str]:
        for drawn in sample:
            sources.append(drawn.source)
            yield drawn.text

    for batch in batches(texts(), BATCH, len):
        counts = [(1, len(text.encode()), len(text.split())) for text in batch]
        languages = [LANGUAGES.index(language_of(text)) for text in batch]
        yield _Batch(batch, np.array(sources), np.array(languages), np.array(counts, np.int64))
        sources.clear()


def language_of(text: str) -> str:
    """One of LANGUAGES."""
    scripts = Text(text).scripts
    return next((code for code in ("ko", "en") if scripts[code] >= 0.5), "other")


class _Timed:
    """At most TIMED characters of all documents that pass: every document, every second, every fourth, …"""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._step, self._seen = 1, 0

    def take(self, texts: list[str]) -> None:
        for text in texts:
            if self._seen % self._step == 0:
                self.texts.append(text[:TIMED])
            self._seen += 1
        while sum(map(len, self.texts)) > TIMED and len(self.texts) > 1:
            self.texts, self._step = self.texts[::2], 2 * self._step


# --- one tokenizer -----------------------------------------------------------------------------------------


class _Judge:
    """Counts for one tokenizer what becomes of the text."""

    def __init__(self, label: str, tokenizer: TokenizerFolder, sources: int) -> None:
        self._label, self._tokenizer = label, tokenizer
        self._encoder = Encoder(tokenizer)
        self.backend = self._encoder.backend
        self._comes_back_as = _canonical(self.backend)
        self._ordinary, self._partial = _kinds(tokenizer)
        self._occurrences = np.zeros(tokenizer.vocab_size, np.int64)
        self._by_source = np.zeros((sources, 6), np.int64)
        self._by_language = np.zeros((len(LANGUAGES), 6), np.int64)
        self._examples: list[dict[str, Any]] = []

    def take(self, batch: _Batch, names: list[str]) -> None:
        """Count the documents of a batch."""
        ids, lengths = self._ids(batch.texts)
        self._occurrences += np.bincount(ids, minlength=len(self._occurrences))
        documents = np.repeat(np.arange(len(lengths)), lengths)
        partial = np.bincount(documents[self._partial[ids]], minlength=len(lengths))
        failures = self._failures(batch, names, np.split(ids, np.cumsum(lengths)[:-1]))
        counts = np.column_stack([batch.counts, lengths, partial, failures])
        np.add.at(self._by_source, batch.sources, counts)
        np.add.at(self._by_language, batch.languages, counts)

    def verdict(self, names: list[str]) -> dict[str, Any]:
        """label, folder, signature, vocab_size; all, sources, languages: `_ratios` of each that has documents.

        round_trip: documents that do not come back as they were, and the first of them. vocabulary: entries that
        are no special token, how many of them were never used, and how many less than RARE times.
        """
        used = self._occurrences[self._ordinary]
        everything = _ratios(self._by_source.sum(0))
        return {
            "label": self._label,
            "folder": str(self._tokenizer.folder),
            "signature": self._tokenizer.signature,
            "vocab_size": self._tokenizer.vocab_size,
            "all": everything,
            "sources": _named(names, self._by_source),
            "languages": _named(LANGUAGES, self._by_language),
            "round_trip": {"failures": everything["round_trip_failures"], "examples": self._examples},
            "vocabulary": {
                "entries": len(used),
                "never": int(np.count_nonzero(used == 0)),
                "rare": int(np.count_nonzero((used > 0) & (used < RARE))),
            },
        }

    def _ids(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts one after the other, and how many each has, without bos and eos."""
        tokens, lengths = self._encoder.encode(texts)
        ends = np.cumsum(lengths)
        inner = np.ones(len(tokens), bool)
        inner[ends - lengths] = inner[ends - 1] = False
        return tokens[inner], lengths - 2

    def _failures(self, batch: _Batch, names: list[str], ids: list[np.ndarray]) -> np.ndarray:
        """Whether a document does not come back; bool (documents,)."""
        decoded = self.backend.decode_batch([part.tolist() for part in ids], skip_special_tokens=False)
        expected = [*map(self._comes_back_as, batch.texts)]
        failed = [text != back for text, back in zip(expected, decoded, strict=True)]
        for index in np.flatnonzero(failed)[: EXAMPLES - len(self._examples)].tolist():
            place = _first_difference(expected[index], decoded[index])
            around = slice(max(0, place - _EXCERPT), place + _EXCERPT)
            self._examples.append(
                {
                    "source": names[batch.sources[index]], "character": place,
                    "text": expected[index][around], "decoded": decoded[index][around],
                }
            )  # fmt: skip
        return np.array(failed)


def _canonical(backend: tokenizers.Tokenizer) -> Callable[[str], str]:
    """What a text should come back as: itself, or its NFC (NFD) where the tokenizer normalizes to that.

    What any other normalizer does to a text, NFKC or lower case, is a loss.
    """
    normalizer = json.loads(backend.to_str())["normalizer"]
    parts = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if normalizer and {part["type"] for part in parts} <= {"NFC", "NFD"}:
        return backend.normalizer.normalize_str
    return str


def _kinds(tokenizer: TokenizerFolder) -> tuple[np.ndarray, np.ndarray]:
    """Which ids are entries that stand for text, and which of them for no whole characters; bool (vocab_size,)."""
    speller = Speller(tokenizer)
    contents = [*map(speller.content, range(tokenizer.vocab_size))]
    return np.array([*map(bool, contents)]), np.array([not _decodes(content or b"") for content in contents])


def _decodes(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _first_difference(one: str, other: str) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _named(names: Iterable[str], counts: np.ndarray) -> dict[str, Any]:
    return {name: _ratios(row) for name, row in zip(names, counts, strict=True) if row[0]}


def _ratios(counts: np.ndarray) -> dict[str, Any]:
    """Counts and what follows from them; a ratio is null where there is nothing to divide by."""
    documents, size, words, tokens, partial, failures = counts.tolist()
    return {
        "documents": documents,
        "bytes": size,
        "words": words,
        "tokens": tokens,
        "bytes_per_token": size / tokens if tokens else None,
        "tokens_per_word": tokens / words if words else None,
        "undecodable": partial / tokens if tokens else None,
        "round_trip_failures": failures,
    }


def _rate(size: int, encode: Callable[[], Any]) -> float:
    """MB a second, best of three."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        encode()
        seconds.append(time.perf_counter() - began)
    return size / 1e6 / min(seconds)
