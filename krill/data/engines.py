"""The engines that encode text: Hugging Face tokenizers, and gigatoken, which gives the same ids many times faster.

gigatoken supports a fixed list of split patterns and no NFKC. It is used only where its ids equal the reference's:
`select_engine` compares both on a sample of the run's text, `VerifiedEngine` on an excerpt of every batch.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from tokenizers import Tokenizer

from krill.errors import KrillError, UsageError, get_first_line
from krill.extras import format_install_command

log = logging.getLogger("krill")

VERIFIED_CHARACTERS = 1000
"""Characters of each batch that both engines encode; about a thousandth of the text."""
MIN_REPORTED_BYTES = 2**25
"""Input from which the log says why the slower engine is used: smaller input takes seconds with either."""


class EngineMismatch(KrillError):
    """The fast engine returned different ids than the reference."""


class Engine(Protocol):
    """Encodes plain text without bos and eos; control tokens occur only if the vocabulary contains their literal."""

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the concatenated ids of all texts, uint32 (tokens,), and the number per text, int64 (texts,)."""


class HuggingFaceEngine:
    """Hugging Face tokenizers; RAYON_NUM_THREADS and TOKENIZERS_PARALLELISM control the number of threads."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids_per_text = [
            encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ]
        lengths = np.fromiter(map(len, ids_per_text), np.int64, len(ids_per_text))
        arrays = [np.array(ids, np.uint32) for ids in ids_per_text]
        return np.concatenate(arrays) if arrays else np.zeros(0, np.uint32), lengths


class GigatokenEngine:
    """gigatoken on one thread. Raises gigatoken's exceptions for a tokenizer that it does not support.

    On batches of a few million characters its threads gain nothing, and two encoders on two threads gain no more
    than each loses by caching the same words (gigatoken 0.10, two cores).
    """

    def __init__(self, backend: Tokenizer) -> None:
        import gigatoken

        content = json.loads(backend.to_str())
        # Special tokens in the text are plain text; gigatoken has no option for that, so they are removed.
        content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
        self._backend = gigatoken.Tokenizer.from_json(json.dumps(content))

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        layout = self._backend.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)


class VerifiedEngine:
    """The fast engine, compared with the reference on an excerpt of every batch."""

    def __init__(self, fast: Engine, reference: Engine) -> None:
        self._fast, self._reference = fast, reference

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        check_same_ids(self._fast, self._reference, [text[:VERIFIED_CHARACTERS] for text in texts[:1]])
        return self._fast.encode_batch(texts)


def check_same_ids(fast: Engine, reference: Engine, texts: list[str]) -> None:
    """Raises EngineMismatch, quoting a text, unless both engines give the same ids."""
    (fast_ids, fast_lengths), (ids, lengths) = fast.encode_batch(texts), reference.encode_batch(texts)
    if np.array_equal(fast_lengths, lengths) and np.array_equal(fast_ids, ids):
        return
    ends, fast_ends = np.cumsum(lengths), np.cumsum(fast_lengths)
    for text, end, length, fast_end, fast_length in zip(
        texts, ends, lengths, fast_ends, fast_lengths, strict=True
    ):
        if not np.array_equal(fast_ids[fast_end - fast_length : fast_end], ids[end - length : end]):
            raise EngineMismatch(f"gigatoken gives different ids in a document that begins {text[:40]!r}")


def select_engine(
    engine: Literal["auto", "hf", "fast"], backend: Tokenizer, sample: Callable[[], list[str]], size: int
) -> Literal["hf", "fast"]:
    """Returns the engine to use for `size` bytes of input; both engines must agree on the texts of `sample`.

    Raises UsageError with the reason if `engine` is "fast" and gigatoken cannot be used.
    """
    if engine == "hf":
        return "hf"
    try:
        if importlib.util.find_spec("gigatoken") is None:
            raise KrillError(f"gigatoken is not installed: {format_install_command('fast')}")
        check_same_ids(GigatokenEngine(backend), HuggingFaceEngine(backend), sample())
    except Exception as error:
        reason = get_first_line(error)
        if engine == "fast":
            raise UsageError(
                f"data.engine=fast: {reason}; or use Hugging Face tokenizers: data.engine=hf"
            ) from error
        if size > MIN_REPORTED_BYTES:
            log.info("engine      Hugging Face tokenizers (%s)", reason)
        return "hf"
    log.info("engine      gigatoken (same ids as Hugging Face tokenizers on a sample of this text)")
    return "fast"
