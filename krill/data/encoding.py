"""Documents to token ids: bos, the text's tokens, eos.

The text can never make a control token: a literal `<|eos|>` in a document is spelled out in ordinary tokens,
as any other text is. Otherwise whoever writes a training text decides where documents end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from krill.errors import UsageError

if TYPE_CHECKING:
    from krill.tokenizer import TokenizerFolder

BATCH_CHARACTERS = 4_000_000
"""Documents are encoded in batches of about so many characters: enough work for every thread, flat memory."""

_UNICODE_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where every id fits, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class Encoder:
    """Encodes cleaned text with a tokenizer; boundaries come from here, never from the text."""

    def __init__(self, tokenizer: TokenizerFolder) -> None:
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._bos = np.array([tokenizer.bos_id], self.dtype)
        self._eos = np.array([tokenizer.eos_id], self.dtype)
        self._folder = tokenizer.folder
        self._control = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
        self._backend, self._literals = _text_only(tokenizer.backend, self._control)
        normalizer = self._backend.normalizer
        self._normalizer = normalizer if type(normalizer).__name__ in _UNICODE_FORMS else None

    def normalized(self, text: str) -> str:
        """`text` as its tokens spell it: after the tokenizer's Unicode normalization, if it has one.

        The text whose UTF-8 bytes the token store counts. Normalizers that mark word borders (Metaspace and
        the like) are not applied: they change the spelling of spaces, not the text.
        """
        return text if self._normalizer is None else self._normalizer.normalize_str(text)

    def documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield per text its ids, bos first, eos last; uint16 or uint32 (n + 2,).

        `texts` is read one batch ahead. Raises UsageError if the tokenizer cannot but make a control token
        of some text.
        """
        for batch in _batches(texts):
            for text, encoding in zip(
                batch, self._backend.encode_batch_fast(batch, add_special_tokens=False), strict=True
            ):
                ids = encoding.ids
                if not self._control.isdisjoint(ids):
                    ids = self._spelled_out(text)
                yield np.concatenate((self._bos, np.array(ids, self.dtype), self._eos))

    def _spelled_out(self, text: str) -> list[int]:
        """Ids of `text`, the literal control tokens in it cut after their first character.

        For models whose own vocabulary holds the literal (Unigram, WordLevel), which no flag keeps from it.
        """
        for literal in self._literals:
            text = text.replace(literal, f"{literal[0]}\0{literal[1:]}")
        parts = self._backend.encode_batch_fast(text.split("\0"), add_special_tokens=False)
        ids = [token for part in parts for token in part.ids]
        if not self._control.isdisjoint(ids):
            raise UsageError(
                f"{self._folder}: this tokenizer turns ordinary text into its bos, eos or pad token "
                f"(in a document that begins {text[:40]!r}); use a byte-level tokenizer, or one whose "
                "unk_token is a token of its own"
            )
        return ids


def _text_only(backend: Tokenizer, control: set[int]) -> tuple[Tokenizer, list[str]]:
    """A copy of `backend` that reads special tokens as text, and the literals of the `control` ids.

    `encode_special_tokens` covers the tokens flagged special; some tokenizers do not flag theirs.
    """
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["id"] in control
    copy = Tokenizer.from_str(json.dumps(content))
    copy.encode_special_tokens = True
    copy.no_padding()
    copy.no_truncation()
    literals = sorted(filter(None, map(copy.id_to_token, control)), key=len, reverse=True)
    return copy, [literal for literal in literals if len(literal) > 1]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
