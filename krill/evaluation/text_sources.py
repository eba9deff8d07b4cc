"""The documents whose bits per byte are measured: held-out ones of a run, or those of any source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from krill.config.schema import DataConfig
from krill.data.encoding import Encoder
from krill.errors import UsageError
from krill.evaluation.evaluator import EvaluationSettings, MissingTextError
from krill.evaluation.rolling import EncodedText
from krill.evaluation.subject import BYTES_PER_TOKEN, Subject
from krill.evaluation.task import TEXT
from krill.sources.registry import open_source
from krill.sources.source import SkippedRecords
from krill.text.cleaning import compose
from krill.text.documents import DocumentRules, compute_data_signature

ENCODED_BATCH = 256
"""Number of documents that are encoded at once."""


@dataclass(frozen=True)
class DocumentSample:
    """Documents to score."""

    texts: tuple[EncodedText, ...]
    """At least one."""
    strings: tuple[str, ...]
    notes: dict[str, int]
    """What was left out, and what a tokenizer cannot represent."""


class TextSource(Protocol):
    """Where documents come from."""

    name: str
    """The name of the task."""

    def identify(self) -> Any:
        """Returns what the documents depend on, besides the settings and the tokens of the run; can be JSON."""
        ...

    def read(self, subject: Subject, settings: EvaluationSettings) -> DocumentSample:
        """Returns the documents, the same on every rank; raises UsageError, or MissingTextError, if there is none."""
        ...


class HeldOutText:
    """Documents of the validation split of the run."""

    name = TEXT

    def identify(self) -> Any:
        return None

    def read(self, subject: Subject, settings: EvaluationSettings) -> DocumentSample:
        texts = subject.read_held_out_texts(settings.text_tokens)
        if not texts:
            raise MissingTextError(self.name, subject)
        return DocumentSample(
            tuple(texts), tuple(subject.decode(texts)), _count_unknown(texts, subject.encoder)
        )


class SourceText:
    """Documents of the section data, cleaned, without those that its filters drop; near and exact copies are kept."""

    def __init__(self, data: DataConfig):
        """Opens the source; raises UsageError for files that cannot be used."""
        self.name = f"{HeldOutText.name}:{data.name}"
        self._data, self._source = data, open_source(data)

    def identify(self) -> Any:
        return compute_data_signature(self._data, self._source.fingerprint)

    def read(self, subject: Subject, settings: EvaluationSettings) -> DocumentSample:
        return subject.share.run_on_rank0(lambda: self._read(subject.encoder, settings))

    def _read(self, encoder: Encoder, settings: EvaluationSettings) -> DocumentSample:
        skipped, notes = SkippedRecords(), {"dropped": 0}
        documents = thin_documents(
            self._iterate_documents(skipped, notes), BYTES_PER_TOKEN * settings.text_tokens
        )
        skipped.warn()
        notes["unreadable"] = sum(counts["records"] for counts in skipped.reasons.values())
        texts = list(_encode(documents, encoder))
        kept = [index for index, text in enumerate(texts) if len(text.ids) > 1]
        notes["not_encoded"] = len(texts) - len(kept)
        if not kept:
            reasons = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in notes.items() if count)
            raise UsageError(f"{self.name}: no document of data= can be scored ({reasons or 'it has none'})")
        strings = [documents[index].text for index in kept]
        notes["unknown"] = sum(text != decoded for text, decoded in encoder.iterate_round_trips(strings))
        return DocumentSample(
            tuple(texts[index] for index in kept),
            tuple(strings),
            {name: count for name, count in notes.items() if count},
        )

    def _iterate_documents(self, skipped: SkippedRecords, notes: dict[str, int]) -> Iterator[SourceDocument]:
        rules = DocumentRules(self._data)
        for part in self._source.list_parts():
            for document in self._source.read(part, skipped):
                text = rules.clean(document.text)
                if rules.find_dropping_rule(compose(text)) is None:
                    yield SourceDocument(self._source.names[part.source], text)
                else:
                    notes["dropped"] += 1


class SourceDocument(NamedTuple):
    """A cleaned document and the name of its source."""

    source: str
    text: str


def thin_documents(documents: Iterable[SourceDocument], max_bytes: int) -> list[SourceDocument]:
    """Returns all documents if they have at most `max_bytes` bytes, otherwise every second, fourth, … of them.

    Which ones depends on the texts alone, so that every tokenizer scores the same. At least one is returned.
    """
    kept: dict[int, SourceDocument] = {}
    step, total = 1, 0
    for index, document in enumerate(documents):
        if index % step == 0:
            kept[index] = document
            total += len(document.text.encode())
        while total > max_bytes and len(kept) > 1:
            step *= 2
            kept = {index: one for index, one in kept.items() if index % step == 0}
            total = sum(len(one.text.encode()) for one in kept.values())
    return list(kept.values())


def _encode(documents: list[SourceDocument], encoder: Encoder) -> Iterator[EncodedText]:
    for start in range(0, len(documents), ENCODED_BATCH):
        batch = documents[start : start + ENCODED_BATCH]
        encoded = encoder.encode([document.text for document in batch])
        for document, end, length in zip(batch, np.cumsum(encoded.lengths), encoded.lengths, strict=True):
            ids = encoded.tokens[end - length : end - 1].tolist()  # without eos
            yield EncodedText(tuple(ids), len(document.text.encode()), document.source)


def _count_unknown(texts: Iterable[EncodedText], encoder: Encoder) -> dict[str, int]:
    count = sum(encoder.count_unknown(np.array(text.ids)) > 0 for text in texts)
    return {"unknown": count} if count else {}
