"""Compares tokenizers on the same text: compression, round trips, usage of the vocabulary, speed.

Every metric is a JSON value. Bytes and words are counted in the original text, before a tokenizer's normalizer, and
special tokens written in it are text; so all tokenizers are compared on the same numbers.

Memory is bounded by a batch of a million characters and the timed text. 20 MB of Korean and English take 10 s per
tokenizer (two cores), most of it for encoding and decoding by Hugging Face, and 330 MB of memory in total.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from krill.data.encoding import Encoder, build_unicode_normalizer, find_first_differing_character
from krill.data.engines import GigatokenEngine, HuggingFaceEngine, check_same_ids
from krill.inspection.token_display import TokenRenderer
from krill.resources import count_cpu_cores
from krill.text.batching import batch_by_size
from krill.text.features import TextFeatures
from krill.text.sample import SampledText
from krill.tokenizer.artifact import TokenizerFolder
from krill.tokenizer.chunking import ENCODE_BATCH_CHARACTERS

LANGUAGE_CODES = ("ko", "en", "other")
"""By script: at least half of the letters are Hangul, Latin, or neither. As in the language filter, letters that are
not Latin count twice."""

RARE_THRESHOLD = 10
"""An entry that is used fewer times than this is rare."""

MAX_FAILURE_EXAMPLES = 3
"""Maximum number of round-trip failures that are reported per tokenizer."""

MAX_TIMED_CHARS = 2_000_000
"""Maximum number of characters on which speed is measured, sampled evenly from the text."""

_CONTEXT_CHARS = 20
"""Number of characters to report before and after the first difference."""


def evaluate_tokenizers(
    folders: Mapping[str, TokenizerFolder], sample: Iterable[SampledText], source_names: list[str]
) -> dict[str, Any]:
    """Evaluates the tokenizers, label → folder, on `sample`, which is read once; `source_names`: its sources.

    Returns documents, bytes and words of the text, and as tokenizers, in the given order, the results of
    `_TokenizerEvaluator.compute_metrics` and `measure_speeds`. Raises UsageError for a tokenizer that encodes
    ordinary text as a special token.
    """
    evaluators = [
        _TokenizerEvaluator(label, tokenizer, len(source_names)) for label, tokenizer in folders.items()
    ]
    speed_sample = _SpeedSample()
    total = np.zeros(3, np.int64)
    for batch in _iterate_batches(sample):
        speed_sample.add(batch.texts)
        total += batch.counts.sum(0)
        for evaluator in evaluators:
            evaluator.add_batch(batch, source_names)
    return {
        **dict(zip(("documents", "bytes", "words"), total.tolist(), strict=True)),
        "tokenizers": [
            {
                **evaluator.compute_metrics(source_names),
                "speed": measure_speeds(evaluator.backend, speed_sample.texts),
            }
            for evaluator in evaluators
        ],
    }


def measure_speeds(backend: tokenizers.Tokenizer, texts: list[str]) -> dict[str, Any]:
    """Measures MB of text per second, best of three, to compare tokenizers on the same machine in the same run.

    hf: Hugging Face tokenizers on all threads. gigatoken: on one thread, as in krill-preprocess; null if it is not
    installed or not exact for this tokenizer.
    """
    reference = HuggingFaceEngine(backend)
    size = sum(len(text.encode()) for text in texts)
    speeds: dict[str, Any] = {"bytes": size, "cores": count_cpu_cores(), "hf": None, "gigatoken": None}
    if not size:
        return speeds
    speeds["hf"] = _measure_throughput(
        size, lambda: backend.encode_batch_fast(texts, add_special_tokens=False)
    )
    try:
        fast = GigatokenEngine(backend)
        check_same_ids(fast, reference, texts)
    except Exception:  # ImportError, EngineMismatch, or gigatoken's error for an unsupported tokenizer
        return speeds
    return {**speeds, "gigatoken": _measure_throughput(size, lambda: fast.encode_batch(texts))}


# --- the text ----------------------------------------------------------------------------------------------


class _TextBatch(NamedTuple):
    """A batch of documents; the arrays have a row for each."""

    texts: list[str]
    sources: np.ndarray
    """Index of the source; int64 (documents,)."""
    languages: np.ndarray
    """Index in LANGUAGE_CODES; int64 (documents,)."""
    counts: np.ndarray
    """1, UTF-8 bytes, words (separated by white space); int64 (documents, 3)."""


def _iterate_batches(sample: Iterable[SampledText]) -> Iterator[_TextBatch]:
    sources: list[int] = []

    def iterate_texts() -> Iterator[str]:
        for document in sample:
            sources.append(document.source)
            yield document.text

    for batch in batch_by_size(iterate_texts(), ENCODE_BATCH_CHARACTERS, len):
        counts = [(1, len(text.encode()), len(text.split())) for text in batch]
        languages = [LANGUAGE_CODES.index(detect_language(text)) for text in batch]
        yield _TextBatch(batch, np.array(sources), np.array(languages), np.array(counts, np.int64))
        sources.clear()


def detect_language(text: str) -> str:
    """Returns one of LANGUAGE_CODES, by the script of the letters."""
    scripts = TextFeatures(text).script_shares
    return next((code for code in ("ko", "en") if scripts[code] >= 0.5), "other")


class _SpeedSample:
    """An even sample of at most MAX_TIMED_CHARS characters: every document, then every second, every fourth, …"""

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
    """Counts tokens, round-trip failures and used entries of one tokenizer."""

    def __init__(self, label: str, tokenizer: TokenizerFolder, num_sources: int) -> None:
        self._label, self._tokenizer = label, tokenizer
        self._encoder = Encoder(tokenizer)
        self.backend = self._encoder.backend
        self._normalize = build_unicode_normalizer(self.backend)
        self._is_text_entry, self._is_partial_character = _classify_entries(tokenizer)
        self._occurrences = np.zeros(tokenizer.vocab_size, np.int64)
        self._source_counts = np.zeros((num_sources, 6), np.int64)
        self._language_counts = np.zeros((len(LANGUAGE_CODES), 6), np.int64)
        self._examples: list[dict[str, Any]] = []

    def add_batch(self, batch: _TextBatch, source_names: list[str]) -> None:
        """Counts the documents of a batch."""
        ids, lengths = self._encode(batch.texts)
        self._occurrences += np.bincount(ids, minlength=len(self._occurrences))
        documents = np.repeat(np.arange(len(lengths)), lengths)
        partial = np.bincount(documents[self._is_partial_character[ids]], minlength=len(lengths))
        failures = self._find_round_trip_failures(batch, source_names, np.split(ids, np.cumsum(lengths)[:-1]))
        counts = np.column_stack([batch.counts, lengths, partial, failures])
        np.add.at(self._source_counts, batch.sources, counts)
        np.add.at(self._language_counts, batch.languages, counts)

    def compute_metrics(self, source_names: list[str]) -> dict[str, Any]:
        """Returns label, folder, signature, vocab_size, all, sources, languages, round_trip and vocabulary.

        all, sources, languages: `_compute_ratios` of the text, each source and each language with documents.
        round_trip: the number of documents that are not decoded to the original text, and the first of them.
        vocabulary: the number of entries other than special tokens, of those never used, and of those used fewer
        than RARE_THRESHOLD times.
        """
        counts = self._occurrences[self._is_text_entry]
        total = _compute_ratios(self._source_counts.sum(0))
        return {
            "label": self._label,
            "folder": str(self._tokenizer.folder),
            "signature": self._tokenizer.signature,
            "vocab_size": self._tokenizer.vocab_size,
            "all": total,
            "sources": _compute_ratios_by_name(source_names, self._source_counts),
            "languages": _compute_ratios_by_name(LANGUAGE_CODES, self._language_counts),
            "round_trip": {"failures": total["round_trip_failures"], "examples": self._examples},
            "vocabulary": {
                "entries": len(counts),
                "never": int(np.count_nonzero(counts == 0)),
                "rare": int(np.count_nonzero((counts > 0) & (counts < RARE_THRESHOLD))),
            },
        }

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the concatenated ids of all texts without bos and eos, and the number of ids of each text."""
        tokens, lengths = self._encoder.encode(texts)
        ends = np.cumsum(lengths)
        is_text = np.ones(len(tokens), bool)
        is_text[ends - lengths] = is_text[ends - 1] = False
        return tokens[is_text], lengths - 2

    def _find_round_trip_failures(
        self, batch: _TextBatch, source_names: list[str], ids: list[np.ndarray]
    ) -> np.ndarray:
        """Returns which documents are not decoded to the original text; bool (documents,)."""
        decoded = self.backend.decode_batch([part.tolist() for part in ids], skip_special_tokens=False)
        expected = [*map(self._normalize, batch.texts)]
        failed = [text != actual for text, actual in zip(expected, decoded, strict=True)]
        for index in np.flatnonzero(failed)[: MAX_FAILURE_EXAMPLES - len(self._examples)].tolist():
            position = find_first_differing_character(expected[index], decoded[index])
            context = slice(max(0, position - _CONTEXT_CHARS), position + _CONTEXT_CHARS)
            self._examples.append(
                {
                    "source": source_names[batch.sources[index]], "character": position,
                    "text": expected[index][context], "decoded": decoded[index][context],
                }
            )  # fmt: skip
        return np.array(failed)


def _classify_entries(tokenizer: TokenizerFolder) -> tuple[np.ndarray, np.ndarray]:
    """Returns which ids are entries of text, and which are not valid UTF-8 alone; bool (vocab_size,) each."""
    renderer = TokenRenderer(tokenizer)
    contents = [*map(renderer.get_text_bytes, range(tokenizer.vocab_size))]
    return np.array([*map(bool, contents)]), np.array(
        [not _is_valid_utf8(content or b"") for content in contents]
    )


def _is_valid_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _compute_ratios_by_name(names: Iterable[str], counts: np.ndarray) -> dict[str, Any]:
    return {name: _compute_ratios(row) for name, row in zip(names, counts, strict=True) if row[0]}


def _compute_ratios(counts: np.ndarray) -> dict[str, Any]:
    """Returns the counts and their ratios; a ratio is null if its denominator is 0."""
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
    """Returns MB per second, best of three."""
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        encode()
        durations.append(time.perf_counter() - start)
    return size / 1e6 / min(durations)
