"""Documents to token ids: bos, the text's tokens, eos.

The text can never make a control token: a literal `<|eos|>` in a document is spelled out in ordinary tokens,
as any other text is. Otherwise whoever writes a training text decides where documents end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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
    """uint16 where every id fits, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class EncodedDocuments(NamedTuple):
    """Some documents, one after the other."""

    tokens: np.ndarray
    """uint16 or uint32 (tokens,), each document's bos first, its eos last."""
    lengths: np.ndarray
    """Tokens of each document, bos and eos counted; int64 (documents,)."""

    def select(self, keep: np.ndarray) -> EncodedDocuments:
        """The documents where `keep`, bool (documents,)."""
        return (
            self
            if keep.all()
            else EncodedDocuments(self.tokens[np.repeat(keep, self.lengths)], self.lengths[keep])
        )


class Encoder:
    """Encodes cleaned text with a tokenizer; boundaries come from here, never from the text."""

    def __init__(self, tokenizer: TokenizerFolder, engine: Literal["hf", "fast"] = "hf") -> None:
        self.dtype = get_token_dtype(tokenizer.vocab_size)
        self._bos_id, self._eos_id = tokenizer.bos_id, tokenizer.eos_id
        self._folder = tokenizer.folder
        self._control_ids = np.unique([tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id])
        self.backend, self._literals = _build_text_only_backend(tokenizer)
        self._reference = HuggingFaceEngine(self.backend)
        self._engine: Engine = self._reference
        if engine == "fast":
            self._engine = VerifiedEngine(GigatokenEngine(self.backend), self._reference)
        normalizer = self.backend.normalizer
        self._normalizer = normalizer if type(normalizer).__name__ in _UNICODE_FORMS else None

    def count_text_bytes(self, text: str, content: bytes) -> int:
        """UTF-8 bytes of `text` (its UTF-8 is `content`) as its tokens spell it.

        That is after the tokenizer's Unicode normalization, if it has one. Normalizers that mark word borders
        (Metaspace and the like) are not applied: they change the spelling of spaces, not the text.
        """
        return len(content if self._normalizer is None else self._normalizer.normalize_str(text).encode())

    def encode(self, texts: list[str]) -> EncodedDocuments:
        """The tokens of some documents.

        Raises UsageError if the tokenizer cannot but make a control token of some text, Differs if the fast
        engine is not to be trusted.
        """
        ids, lengths = self._engine.encode_batch(texts)
        control = np.flatnonzero(np.logical_or.reduce([ids == token for token in self._control_ids]))
        if len(control):
            affected = np.unique(np.searchsorted(np.cumsum(lengths), control, "right"))
            ids, lengths = self._remove_control_ids(texts, ids, lengths, affected)
        return self._add_boundaries(ids, lengths)

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield per text its ids, bos first, eos last; uint16 or uint32 (n + 2,)."""
        for text in texts:
            yield self.encode([text]).tokens

    def _add_boundaries(self, ids: np.ndarray, lengths: np.ndarray) -> EncodedDocuments:
        """bos before and eos after each document."""
        whole = lengths + 2
        ends = np.cumsum(whole)
        tokens = np.empty(int(whole.sum()), self.dtype)
        inner = np.ones(len(tokens), bool)
        inner[ends - whole] = inner[ends - 1] = False
        tokens[inner] = ids
        tokens[ends - whole], tokens[ends - 1] = self._bos_id, self._eos_id
        return EncodedDocuments(tokens, whole)

    def _remove_control_ids(
        self, texts: list[str], ids: np.ndarray, lengths: np.ndarray, affected: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids with the `affected` documents spelled out."""
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        for index in affected.tolist():
            parts[index] = self._encode_literally(texts[index])
        return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)

    def _encode_literally(self, text: str) -> np.ndarray:
        """Ids of `text`, the literal control tokens in it cut after their first character; uint32.

        For models whose own vocabulary holds the literal (Unigram, WordLevel), which no flag keeps from it.
        """
        for literal in self._literals:
            text = text.replace(literal, f"{literal[0]}\0{literal[1:]}")
        ids, _ = self._reference.encode_batch(text.split("\0"))
        if np.isin(ids, self._control_ids).any():
            raise UsageError(
                f"{self._folder}: this tokenizer turns ordinary text into its bos, eos or pad token "
                f"(in a document that begins {text[:40]!r}); use a byte-level tokenizer, or one whose "
                "unk_token is a token of its own"
            )
        return ids


@lru_cache(maxsize=1)
def _build_text_only_backend(tokenizer: TokenizerFolder) -> tuple[Tokenizer, list[str]]:
    """A copy of the tokenizer that reads special tokens as text, and the literals of its control tokens.

    `encode_special_tokens` covers the tokens flagged special; some tokenizers do not flag theirs.
    """
    control = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    content = json.loads(tokenizer.backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["id"] in control
    copy = Tokenizer.from_str(json.dumps(content))
    copy.encode_special_tokens = True
    copy.no_padding()
    copy.no_truncation()
    literals = sorted(filter(None, map(copy.id_to_token, control)), key=len, reverse=True)
    return copy, [literal for literal in literals if len(literal) > 1]
