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
from krill.data.engines import GigatokenEngine, HuggingFaceEngine, check_same_ids
from krill.data.worker_pool import count_cpu_cores
from krill.inspection.token_display import TokenRenderer
from krill.text.batching import batch_by_size
from krill.text.features import TextFeatures
from krill.text.sample import SampledText
from krill.tokenizer.artifact import TokenizerFolder
from krill.tokenizer.chunking import ENCODE_BATCH_CHARACTERS

LANGUAGE_CODES = ("ko", "en", "other")
"""By script: at least half of the letters are Hangul, Latin, or neither; as in the language filter, letters that are
not Latin count twice."""

RARE_THRESHOLD = 10
"""An entry that is used less often is rare."""

MAX_FAILURE_EXAMPLES = 3
"""So many documents that do not come back are shown."""

MAX_TIMED_CHARS = 2_000_000
"""Characters of text on which speed is measured, drawn evenly from all of it."""

_CONTEXT_CHARS = 20
"""Characters before and after the first that differs."""


def evaluate_tokenizers(
    chosen: Mapping[str, TokenizerFolder], sample: Iterable[SampledText], names: list[str]
) -> dict[str, Any]:
    """Figures of the tokenizers, label → folder, on `sample`, which is read once; `names`: its sources.

    documents, bytes and words of the text; tokenizers: `_Judge.verdict` and `measure_speeds` of each, in the given order.
    Raises UsageError for a tokenizer that makes a control token of ordinary text.
    """
    judges = [_TokenizerEvaluator(label, tokenizer, len(names)) for label, tokenizer in chosen.items()]
    timed = _SpeedSample()
    total = np.zeros(3, np.int64)
    for batch in _iterate_batches(sample):
        timed.add(batch.texts)
        total += batch.counts.sum(0)
        for judge in judges:
            judge.add_batch(batch, names)
    return {
        **dict(zip(("documents", "bytes", "words"), total.tolist(), strict=True)),
        "tokenizers": [
            {**judge.compute_metrics(names), "speed": measure_speeds(judge.backend, timed.texts)}
            for judge in judges
        ],
    }


def measure_speeds(backend: tokenizers.Tokenizer, texts: list[str]) -> dict[str, Any]:
    """MB of text a second, best of three: what this machine does, and only beside others of the same run.

    hf: Hugging Face tokenizers on all threads. gigatoken: on one, as krill-preprocess runs it; null where it is not
    installed, or not exact for this tokenizer.
    """
    reference = HuggingFaceEngine(backend)
    size = sum(len(text.encode()) for text in texts)
    found: dict[str, Any] = {"bytes": size, "cores": count_cpu_cores(), "hf": None, "gigatoken": None}
    if not size:
        return found
    found["hf"] = _measure_throughput(
        size, lambda: backend.encode_batch_fast(texts, add_special_tokens=False)
    )
    try:
        fast = GigatokenEngine(backend)
        check_same_ids(fast, reference, texts)
    except Exception:  # ImportError, its own for a tokenizer that it does not know, Differs
        return found
    return {**found, "gigatoken": _measure_throughput(size, lambda: fast.encode_batch(texts))}


# --- the text ----------------------------------------------------------------------------------------------


class _TextBatch(NamedTuple):
    """Some documents; arrays have a row for each."""

    texts: list[str]
    sources: np.ndarray
    """Index of the source; int64 (documents,)."""
    languages: np.ndarray
    """Index in LANGUAGES; int64 (documents,)."""
    counts: np.ndarray
    """1, UTF-8 bytes, words (what stands between white space); int64 (documents, 3)."""


def _iterate_batches(sample: Iterable[SampledText]) -> Iterator[_TextBatch]:
    sources: list[int] = []

    def texts() -> Iterator[str]:
        for drawn in sample:
            sources.append(drawn.source)
            yield drawn.text

    for batch in batch_by_size(texts(), ENCODE_BATCH_CHARACTERS, len):
        counts = [(1, len(text.encode()), len(text.split())) for text in batch]
        languages = [LANGUAGE_CODES.index(detect_language(text)) for text in batch]
        yield _TextBatch(batch, np.array(sources), np.array(languages), np.array(counts, np.int64))
        sources.clear()


def detect_language(text: str) -> str:
    """One of LANGUAGES."""
    scripts = TextFeatures(text).script_shares
    return next((code for code in ("ko", "en") if scripts[code] >= 0.5), "other")


class _SpeedSample:
    """At most TIMED characters of all documents that pass: every document, every second, every fourth, …"""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._stride, self._num_seen = 1, 0

    def add(self, texts: list[str]) -> None:
        for text in texts:
            if self._num_seen % self._stride == 0:
                self.texts.append(text[:MAX_TIMED_CHARS])
            self._num_seen += 1
        while sum(map(len, self.texts)) > MAX_TIMED_CHARS and len(self.texts) > 1:
            self.texts, self._stride = self.texts[::2], 2 * self._stride


# --- one tokenizer -----------------------------------------------------------------------------------------


class _TokenizerEvaluator:
    """Counts for one tokenizer what becomes of the text."""

    def __init__(self, label: str, tokenizer: TokenizerFolder, sources: int) -> None:
        self._label, self._tokenizer = label, tokenizer
        self._encoder = Encoder(tokenizer)
        self.backend = self._encoder.backend
        self._get_expected_text = _build_expected_text(self.backend)
        self._is_text_entry, self._is_partial_character = _classify_entries(tokenizer)
        self._occurrences = np.zeros(tokenizer.vocab_size, np.int64)
        self._source_counts = np.zeros((sources, 6), np.int64)
        self._language_counts = np.zeros((len(LANGUAGE_CODES), 6), np.int64)
        self._examples: list[dict[str, Any]] = []

    def add_batch(self, batch: _TextBatch, names: list[str]) -> None:
        """Count the documents of a batch."""
        ids, lengths = self._encode(batch.texts)
        self._occurrences += np.bincount(ids, minlength=len(self._occurrences))
        documents = np.repeat(np.arange(len(lengths)), lengths)
        partial = np.bincount(documents[self._is_partial_character[ids]], minlength=len(lengths))
        failures = self._find_round_trip_failures(batch, names, np.split(ids, np.cumsum(lengths)[:-1]))
        counts = np.column_stack([batch.counts, lengths, partial, failures])
        np.add.at(self._source_counts, batch.sources, counts)
        np.add.at(self._language_counts, batch.languages, counts)

    def compute_metrics(self, names: list[str]) -> dict[str, Any]:
        """label, folder, signature, vocab_size; all, sources, languages: `_compute_ratios` of each that has documents.

        round_trip: documents that do not come back as they were, and the first of them. vocabulary: entries that
        are no special token, how many of them were never used, and how many less than RARE times.
        """
        used = self._occurrences[self._is_text_entry]
        everything = _compute_ratios(self._source_counts.sum(0))
        return {
            "label": self._label,
            "folder": str(self._tokenizer.folder),
            "signature": self._tokenizer.signature,
            "vocab_size": self._tokenizer.vocab_size,
            "all": everything,
            "sources": _compute_ratios_by_name(names, self._source_counts),
            "languages": _compute_ratios_by_name(LANGUAGE_CODES, self._language_counts),
            "round_trip": {"failures": everything["round_trip_failures"], "examples": self._examples},
            "vocabulary": {
                "entries": len(used),
                "never": int(np.count_nonzero(used == 0)),
                "rare": int(np.count_nonzero((used > 0) & (used < RARE_THRESHOLD))),
            },
        }

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts one after the other, and how many each has, without bos and eos."""
        tokens, lengths = self._encoder.encode(texts)
        ends = np.cumsum(lengths)
        inner = np.ones(len(tokens), bool)
        inner[ends - lengths] = inner[ends - 1] = False
        return tokens[inner], lengths - 2

    def _find_round_trip_failures(
        self, batch: _TextBatch, names: list[str], ids: list[np.ndarray]
    ) -> np.ndarray:
        """Whether a document does not come back; bool (documents,)."""
        decoded = self.backend.decode_batch([part.tolist() for part in ids], skip_special_tokens=False)
        expected = [*map(self._get_expected_text, batch.texts)]
        failed = [text != back for text, back in zip(expected, decoded, strict=True)]
        for index in np.flatnonzero(failed)[: MAX_FAILURE_EXAMPLES - len(self._examples)].tolist():
            place = _find_first_difference(expected[index], decoded[index])
            around = slice(max(0, place - _CONTEXT_CHARS), place + _CONTEXT_CHARS)
            self._examples.append(
                {
                    "source": names[batch.sources[index]], "character": place,
                    "text": expected[index][around], "decoded": decoded[index][around],
                }
            )  # fmt: skip
        return np.array(failed)


def _build_expected_text(backend: tokenizers.Tokenizer) -> Callable[[str], str]:
    """What a text should come back as: itself, or its NFC (NFD) where the tokenizer normalizes to that.

    What any other normalizer does to a text, NFKC or lower case, is a loss.
    """
    normalizer = json.loads(backend.to_str())["normalizer"]
    parts = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if normalizer and {part["type"] for part in parts} <= {"NFC", "NFD"}:
        return backend.normalizer.normalize_str
    return str


def _classify_entries(tokenizer: TokenizerFolder) -> tuple[np.ndarray, np.ndarray]:
    """Which ids are entries that stand for text, and which of them for no whole characters; bool (vocab_size,)."""
    speller = TokenRenderer(tokenizer)
    contents = [*map(speller.get_text_bytes, range(tokenizer.vocab_size))]
    return np.array([*map(bool, contents)]), np.array(
        [not _is_valid_utf8(content or b"") for content in contents]
    )


def _is_valid_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _find_first_difference(one: str, other: str) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _compute_ratios_by_name(names: Iterable[str], counts: np.ndarray) -> dict[str, Any]:
    return {name: _compute_ratios(row) for name, row in zip(names, counts, strict=True) if row[0]}


def _compute_ratios(counts: np.ndarray) -> dict[str, Any]:
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


def _measure_throughput(size: int, encode: Callable[[], Any]) -> float:
    """MB a second, best of three."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        encode()
        seconds.append(time.perf_counter() - began)
    return size / 1e6 / min(seconds)
