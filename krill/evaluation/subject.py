"""What is evaluated: a model, its tokenizer, and the tokens of the run that trained it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from krill.data.encoding import Encoder
from krill.data.store import Store
from krill.errors import KrillError
from krill.evaluation.rank_share import ONLY_RANK, RankShare
from krill.evaluation.rolling import EncodedText
from krill.evaluation.token_scorer import TokenScorer
from krill.runs.find import find_run_folder
from krill.runs.record import read_status
from krill.tokenizer.artifact import TokenizerFolder

BYTES_PER_TOKEN = 4
"""Bytes of text that count as a token where documents are chosen, so that every tokenizer gets the same ones."""
SAMPLE_PIECES, SAMPLE_TOKENS = 64, 2**15
"""Number of pieces of a text, and of their tokens, that show its languages."""


@dataclass(frozen=True)
class Subject:
    """A model to evaluate."""

    name: str
    """Names the model in messages: its folder, or a Hub id."""
    model: Any
    """A causal language model of transformers, on its device and in evaluation mode."""
    tokenizer: TokenizerFolder
    store: Store | None
    """The tokens that it was trained on; None: unknown, or encoded by another tokenizer."""
    max_batch_tokens: int | None = None
    """Tokens that are computed at once; None: as many as suit the vocabulary and the device."""
    share: RankShare = ONLY_RANK
    contaminated_items: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    """Signature of texts → which of them occur in the tokens, bool (texts,)."""

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer)

    @cached_property
    def scorer(self) -> TokenScorer:
        return TokenScorer(self.model, self.tokenizer.vocab_size, self.max_batch_tokens, self.share)

    @property
    def context_length(self) -> int:
        """The number of tokens that the model reads at most."""
        length: int = self.model.config.max_position_embeddings
        return length

    def read_held_out_texts(self, max_tokens: int) -> list[EncodedText]:
        """Returns documents of the validation split with about `max_tokens` tokens, spread evenly; none without it.

        A token counts as BYTES_PER_TOKEN bytes. Documents without text tokens are left out.
        """
        if self.store is None:
            return []
        split = self.store.validation
        ends = split.ends.astype(np.int64)
        starts = np.append(0, ends)[:-1]
        step = max(1, -(-split.text_bytes // (BYTES_PER_TOKEN * max_tokens)))
        texts = []
        for document in range(0, len(ends), step):
            ids = split.read(int(starts[document]), int(ends[document]) - 1).tolist()  # without eos
            if len(ids) > 1:
                text = self._decode(ids)
                source = self.store.sources[int(split.sources[document])]
                texts.append(EncodedText(tuple(ids), len(text.encode()), source))
        return texts

    def decode(self, texts: Sequence[EncodedText]) -> list[str]:
        """Returns the documents as strings."""
        return [self._decode(text.ids) for text in texts]

    def _decode(self, ids: Sequence[int]) -> str:
        """Returns the text of bos and the tokens of a document."""
        text: str = self.tokenizer.backend.decode(list(ids[1:]), skip_special_tokens=False)
        return text


def sample_text(store: Store, tokenizer: TokenizerFolder) -> list[str]:
    """Returns pieces of the training text, spread evenly over it, which show its languages."""
    split = store.train
    pieces = [
        split.copy(start, min(start + SAMPLE_TOKENS // SAMPLE_PIECES, split.tokens)).tolist()
        for start in np.linspace(0, split.tokens, SAMPLE_PIECES, endpoint=False).astype(int).tolist()
    ]
    return [tokenizer.backend.decode(piece) for piece in pieces]


def find_training_store(model_folder: Path, tokenizer: TokenizerFolder) -> Store | None:
    """Returns the tokens that the model in `model_folder` was trained on; None if they are not there any more."""
    run = find_run_folder(model_folder)
    status = read_status(run) if run else None
    data = (status or {}).get("data")
    if not isinstance(data, dict) or not Path(str(data.get("folder"))).is_dir():
        return None
    try:
        store = Store.open(Path(data["folder"]))
    except KrillError:
        return None
    is_same = store.tokenizer_signature == tokenizer.signature and store.signature == data.get("signature")
    return store if is_same else None
