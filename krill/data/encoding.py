"""Encodes documents to token ids: bos, the text's tokens, eos.

Text never produces a control token: a literal `<|eos|>` in a document is encoded as ordinary tokens, like any other
text. Otherwise the author of a training text could decide where documents end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from krill.data.engines import Engine, GigatokenEngine, HuggingFaceEngine, VerifiedEngine
from krill.errors import UsageError

if TYPE_CHECKING:
    from krill.tokenizer.artifact import TokenizerFolder

_UNICODE_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})


def get_token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns uint16 if every id fits, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class EncodedDocuments(NamedTuple):
    """The concatenated tokens of a batch of documents."""

    tokens: np.ndarray
    """uint16 or uint32 (tokens,); each document begins with bos and ends with eos."""
    lengths: np.ndarray
    """Number of tokens of each document, including bos and eos; int64 (documents,)."""

    def select(self, keep: np.ndarray) -> EncodedDocuments:
        """Returns the documents where `keep`, bool (documents,), is true."""
        return (
            self
            if keep.all()
            else EncodedDocuments(self.tokens[np.repeat(keep, self.lengths)], self.lengths[keep])
        )


class Encoder:
    """Encodes cleaned text with a tokenizer; boundaries are added here and never come from the text."""

    def __init__(self, tokenizer: TokenizerFolder, engine: Literal["hf", "fast"] = "hf") -> None:
        self.dtype = get_token_dtype(tokenizer.vocab_size)
        self._bos_id, self._eos_id = tokenizer.bos_id, tokenizer.eos_id
        self._folder = tokenizer.folder
        self._control_ids = np.unique([tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id])
        self.backend, self._literals, self._unknown_id = _build_text_only_backend(tokenizer)
        self._reference = HuggingFaceEngine(self.backend)
        self._engine: Engine = self._reference
        if engine == "fast":
            self._engine = VerifiedEngine(GigatokenEngine(self.backend), self._reference)
        normalizer = self.backend.normalizer
        self._normalizer = normalizer if type(normalizer).__name__ in _UNICODE_FORMS else None

    def count_text_bytes(self, text: str, content: bytes) -> int:
        """Returns the UTF-8 bytes of `text` as its tokens decode it; `content` is its UTF-8 encoding.

        Counts after the tokenizer's Unicode normalization, if any. Normalizers that mark word boundaries (such as
        Metaspace) are not applied: they change the representation of spaces, not the text.
        """
        return len(content if self._normalizer is None else self._normalizer.normalize_str(text).encode())

    def count_unknown(self, tokens: np.ndarray) -> int:
        """Returns the number of unk tokens, each of which represents text that the vocabulary does not have."""
        return 0 if self._unknown_id is None else int(np.count_nonzero(tokens == self._unknown_id))

    def iterate_round_trips(self, texts: list[str]) -> Iterator[tuple[str, str]]:
        """Yields each text, in the tokenizer's Unicode form, and what its tokens are decoded to."""
        if not texts:
            return
        ids, lengths = self._reference.encode_batch(texts)
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        decoded = self.backend.decode_batch([part.tolist() for part in parts], skip_special_tokens=False)
        yield from zip(map(build_unicode_normalizer(self.backend), texts), decoded, strict=True)

    def encode(self, texts: list[str]) -> EncodedDocuments:
        """Encodes a batch of documents.

        Raises UsageError if the tokenizer cannot avoid a control token for some text, EngineMismatch if the fast
        engine gives other ids than the reference.
        """
        ids, lengths = self._engine.encode_batch(texts)
        control = np.flatnonzero(np.logical_or.reduce([ids == token for token in self._control_ids]))
        if len(control):
            affected = np.unique(np.searchsorted(np.cumsum(lengths), control, "right"))
            ids, lengths = self._remove_control_ids(texts, ids, lengths, affected)
        return self._add_boundaries(ids, lengths)

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields the ids of each text with bos and eos; uint16 or uint32 (n + 2,)."""
        for text in texts:
            yield self.encode([text]).tokens

    def _add_boundaries(self, ids: np.ndarray, lengths: np.ndarray) -> EncodedDocuments:
        """Adds bos before and eos after each document."""
        full_lengths = lengths + 2
        ends = np.cumsum(full_lengths)
        starts = ends - full_lengths
        tokens = np.empty(int(full_lengths.sum()), self.dtype)
        is_text = np.ones(len(tokens), bool)
        is_text[starts] = is_text[ends - 1] = False
        tokens[is_text] = ids
        tokens[starts], tokens[ends - 1] = self._bos_id, self._eos_id
        return EncodedDocuments(tokens, full_lengths)

    def _remove_control_ids(
        self, texts: list[str], ids: np.ndarray, lengths: np.ndarray, affected: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and lengths with the `affected` documents encoded literally."""
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        for index in affected.tolist():
            parts[index] = self._encode_literally(texts[index])
        return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)

    def _encode_literally(self, text: str) -> np.ndarray:
        """Returns the ids of `text` with literal control tokens split after their first character; uint32.

        Needed for models whose vocabulary contains the literal (Unigram, WordLevel), which no flag prevents.
        """
        for literal in self._literals:
            text = text.replace(literal, f"{literal[0]}\0{literal[1:]}")
        ids, _ = self._reference.encode_batch(text.split("\0"))
        if np.isin(ids, self._control_ids).any():
            raise UsageError(
                f"{self._folder}: this tokenizer encodes ordinary text as its bos, eos or pad token "
                f"(in a document that begins {text[:40]!r}); use a byte-level tokenizer, or one whose "
                "unk_token is a separate token"
            )
        return ids


@lru_cache(maxsize=1)
def _build_text_only_backend(tokenizer: TokenizerFolder) -> tuple[Tokenizer, list[str], int | None]:
    """Returns a copy of the tokenizer that encodes special tokens as text, the literals of its control tokens, and
    the id of its unk token, if it has one.

    `encode_special_tokens` applies to tokens flagged as special; some tokenizers do not flag their control tokens.
    """
    control = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    content = json.loads(tokenizer.backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["id"] in control
    try:
        copy = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # tokenizers raises Exception itself
        raise UsageError(
            f"{tokenizer.folder / 'tokenizer.json'}: contradicts itself ({error}); restore it"
        ) from error
    copy.encode_special_tokens = True
    copy.no_padding()
    copy.no_truncation()
    literals = sorted(filter(None, map(copy.id_to_token, control)), key=len, reverse=True)
    return (
        copy,
        [literal for literal in literals if len(literal) > 1],
        _get_unknown_id(content["model"], copy),
    )


def build_unicode_normalizer(backend: Tokenizer) -> Callable[[str], str]:
    """Returns the function that brings a text to the tokenizer's Unicode form (NFC, NFD, or the text as it is).

    A decoded text should equal the result. The change of a text by any other normalizer, such as NFKC or lower case,
    counts as a loss.
    """
    normalizer = json.loads(backend.to_str())["normalizer"]
    parts = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if normalizer and {part["type"] for part in parts} <= {"NFC", "NFD"}:
        return backend.normalizer.normalize_str
    return str


def find_first_differing_character(one: str, other: str) -> int:
    """Returns the index of the first character in which two texts differ; that of its end if one begins the other."""
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _get_unknown_id(model: dict[str, Any], backend: Tokenizer) -> int | None:
    """Returns the id of the token that `model` of a tokenizer.json writes for text it has no other token for."""
    if model["type"] == "Unigram":
        return model["unk_id"]
    return None if model["unk_token"] is None else backend.token_to_id(model["unk_token"])
