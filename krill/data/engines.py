"""What turns text into ids: Hugging Face tokenizers, or gigatoken, which gives the same ids many times faster.

gigatoken knows a list of split patterns and no NFKC; what it cannot do exactly as the reference does, it is not
used for: `select_engine` compares both on the run's own text before, `VerifiedEngine` a piece of every batch while it works.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from tokenizers import Tokenizer

from krill.errors import KrillError, UsageError

log = logging.getLogger("krill")

VERIFIED_CHARACTERS = 1000
"""So much of each batch is encoded by both engines; about a thousandth of the text."""


class EngineMismatch(KrillError):
    """The fast engine gave other ids than the reference."""


class Engine(Protocol):
    """Encodes text as text: no bos, no eos, no control token but where the vocabulary itself spells one."""

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after the other, uint32 (tokens,), and how many each has, int64 (texts,)."""


class HuggingFaceEngine:
    """Hugging Face tokenizers; RAYON_NUM_THREADS and TOKENIZERS_PARALLELISM say on how many threads."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = [
            encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        parts = [np.array(ids, np.uint32) for ids in found]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32), lengths


class GigatokenEngine:
    """gigatoken, on one thread. Raises Exception (its own) for a tokenizer that it does not know.

    On batches of a few million characters its own threads gain nothing, and two encoders on two threads no more
    than what each loses by learning the same words (gigatoken 0.10, two cores).
    """

    def __init__(self, backend: Tokenizer) -> None:
        import gigatoken

        content = json.loads(backend.to_str())
        # Special tokens in the text are text; gigatoken has no switch for that, but it need not know them.
        content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
        self._backend = gigatoken.Tokenizer.from_json(json.dumps(content))

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        layout = self._backend.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)


class VerifiedEngine:
    """The fast engine, compared with the reference on a piece of every batch."""

    def __init__(self, fast: Engine, reference: Engine) -> None:
        self._fast, self._reference = fast, reference

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        check_same_ids(self._fast, self._reference, [text[:VERIFIED_CHARACTERS] for text in texts[:1]])
        return self._fast.encode_batch(texts)


def check_same_ids(fast: Engine, reference: Engine, texts: list[str]) -> None:
    """Raise Differs, naming a text, unless both engines give the same ids."""
    (found, found_lengths), (expected, lengths) = fast.encode_batch(texts), reference.encode_batch(texts)
    if np.array_equal(found_lengths, lengths) and np.array_equal(found, expected):
        return
    ends, found_ends = np.cumsum(lengths), np.cumsum(found_lengths)
    for text, end, length, found_end, found_length in zip(
        texts, ends, lengths, found_ends, found_lengths, strict=True
    ):
        if not np.array_equal(found[found_end - found_length : found_end], expected[end - length : end]):
            raise EngineMismatch(f"gigatoken gives other ids in a document that begins {text[:40]!r}")


def select_engine(
    wanted: Literal["auto", "hf", "fast"], backend: Tokenizer, texts: Callable[[], list[str]], size: int
) -> Literal["hf", "fast"]:
    """The engine to use for `size` bytes of input; `texts` gives the sample that both must agree on.

    Raises UsageError where engine=fast was asked for and cannot be had, with the reason.
    """
    if wanted == "hf":
        return "hf"
    try:
        if importlib.util.find_spec("gigatoken") is None:
            raise KrillError("gigatoken is not installed: pip install 'krill[fast]'")
        check_same_ids(GigatokenEngine(backend), HuggingFaceEngine(backend), texts())
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        if wanted == "fast":
            raise UsageError(
                f"data.engine=fast: {reason}; or let Hugging Face encode: data.engine=hf"
            ) from error
        if size > 2**25:
            log.info("engine: Hugging Face tokenizers (%s)", reason)
        return "hf"
    log.info("engine: gigatoken (the same ids as Hugging Face tokenizers on a sample of this text)")
    return "fast"
