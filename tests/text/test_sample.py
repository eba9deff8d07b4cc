"""A sample does not depend on the order of the text, is even over its sources, and has the requested size."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from source_files import make_files, write_json_lines

from krill.config.schema import FilesDataConfig
from krill.sources.registry import open_source
from krill.sources.source import Document, Part, SkippedRecords, Source
from krill.text import documents
from krill.text.dedup import assign_split, hash_text
from krill.text.sample import TextSample

DOCUMENT_BYTES = 400


class ListSource(Source):
    """Sources given as lists of texts, each divided into parts."""

    def __init__(
        self, *sources: Sequence[str], weights: list[float] | None = None, documents_per_part: int = 10
    ) -> None:
        super().__init__([f"source {index}" for index in range(len(sources))], weights)
        self._sources, self._step = sources, documents_per_part
        self.read_parts: list[tuple[int, int]] = []

    def compute_fingerprint(self) -> Any:
        return None

    def list_parts(self) -> list[Part]:
        return [
            Part(source, start, sum(len(text.encode()) for text in texts[start : start + self._step]))
            for source, texts in enumerate(self._sources)
            for start in range(0, len(texts), self._step)
        ]

    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        self.read_parts.append((part.source, part.span))
        for text in self._sources[part.source][part.span : part.span + self._step]:
            yield Document(text, (0, 0))

    def describe_location(self, part: Part, location: tuple[int, int]) -> str:
        return "somewhere"


def make_texts(count: int, name: str) -> list[str]:
    """Returns `count` different texts of 400 bytes."""
    return [f"{name} {index} ".ljust(DOCUMENT_BYTES, "x") for index in range(count)]


def make_data(**keys: Any) -> FilesDataConfig:
    return make_files("unused").model_copy(update={"min_chars": 1, "validation_fraction": 0.1, **keys})


def sample_texts(source: Source, limit: int, split: Any = "train", **keys: Any) -> list[str]:
    return list(TextSample(source, make_data(**keys), split, limit, SkippedRecords()).iterate_texts())


def get_split(text: str) -> str:
    return assign_split(hash_text(text.encode()), 0.1)


def compute_shares(sample: TextSample) -> dict[int, float]:
    """Returns the share of each source of the bytes of the sample."""
    sizes: dict[int, int] = {}
    for document in sample:
        sizes[document.source] = sizes.get(document.source, 0) + len(document.content)
    return {source: size / sum(sizes.values()) for source, size in sizes.items()}


def test_does_not_depend_on_the_order_of_documents_parts_and_sources() -> None:
    first, second = make_texts(400, "a"), make_texts(300, "b")
    expected = sample_texts(ListSource(first, second), 30_000)
    for seed in range(3):
        rng = random.Random(seed)
        shuffled = [rng.sample(part, len(part)) for part in (second, first)]
        assert sample_texts(ListSource(*shuffled, documents_per_part=seed + 3), 30_000) == expected


@pytest.mark.parametrize("limit", [1, 399, 400, 401, 20_000])
def test_only_the_last_document_exceeds_the_limit(limit: int) -> None:
    texts = sample_texts(ListSource(make_texts(400, "a")), limit)
    assert limit <= sum(len(text.encode()) for text in texts) < limit + DOCUMENT_BYTES


def test_a_limit_above_the_size_of_the_text_selects_the_whole_split() -> None:
    everything = make_texts(300, "a")
    source = ListSource(everything[:100], everything[100:], weights=[3.0, 1.0])
    train, validation = (sample_texts(source, 10**9, name) for name in ("train", "validation"))
    assert sorted([*train, *validation]) == sorted(everything)
    assert {get_split(text) for text in train} == {"train"}
    assert {get_split(text) for text in validation} == {"validation"}


def test_a_small_sample_is_a_prefix_of_a_larger_one() -> None:
    source = ListSource(make_texts(400, "a"))
    small, large = sample_texts(source, 16_000), sample_texts(source, 100_000)
    assert large[: len(small)] == small


def test_can_be_iterated_repeatedly() -> None:
    sample = TextSample(ListSource(make_texts(200, "a")), make_data(), "train", 10_000, SkippedRecords())
    assert list(sample) == list(sample)
    assert list(sample.iterate_texts()) == [document.text for document in sample]


def test_each_source_has_its_share_of_the_sample() -> None:
    source = ListSource(make_texts(3000, "a"), make_texts(1000, "b"))
    shares = compute_shares(TextSample(source, make_data(), "train", 300_000, SkippedRecords()))
    assert shares[0] == pytest.approx(0.75, abs=0.05)


def test_weights_change_the_shares() -> None:
    source = ListSource(
        make_texts(2000, "a"), make_texts(2000, "b"), make_texts(2000, "c"), weights=[1.0, 3.0, 0.0]
    )
    shares = compute_shares(TextSample(source, make_data(), "train", 300_000, SkippedRecords()))
    assert shares == {0: pytest.approx(0.25, abs=0.05), 1: pytest.approx(0.75, abs=0.05)}


def test_with_a_weight_below_one_only_documents_of_training_are_sampled() -> None:
    """Training excludes the documents whose digest has its second word in the upper half."""
    everything = make_texts(300, "a")
    expected = {
        text
        for text in everything
        if get_split(text) == "train" and hash_text(text.encode())[8:] < b"\x80" + bytes(7)
    }
    assert {*sample_texts(ListSource(everything, weights=[0.5]), 10**9)} == expected
    assert sample_texts(ListSource(everything[::-1], weights=[0.5]), 10**9) == sample_texts(
        ListSource(everything, weights=[0.5]), 10**9
    )


def test_equal_texts_are_sampled_once_whatever_their_weights() -> None:
    first, second = make_texts(200, "a"), make_texts(200, "b")
    source = ListSource([*first, *second, *first], [*first, "  " + first[0]], weights=[1.0, 2.0])
    reordered = ListSource(first, [*second, *first], weights=[2.0, 1.0])
    for limit in (40_000, 10**9):
        texts = sample_texts(source, limit)
        assert len(texts) == len({*texts})
        assert texts == sample_texts(reordered, limit)
        assert sum(len(text) for text in texts) >= min(limit, 300 * DOCUMENT_BYTES)


def test_texts_are_cleaned_and_dropped_as_in_training() -> None:
    texts = sample_texts(
        ListSource(["  kept text\r\n and more  ", "short", "", "\x00"]),
        10**9,
        min_chars=10,
        validation_fraction=0,
    )
    assert texts == ["kept text\n and more"]


def test_rules_are_applied_only_to_documents_that_may_be_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    find_dropping_rule = documents.DocumentRules.find_dropping_rule

    def record_call(self: documents.DocumentRules, text: str) -> str | None:
        calls.append(text)
        return find_dropping_rule(self, text)

    monkeypatch.setattr(documents.DocumentRules, "find_dropping_rule", record_call)
    everything = make_texts(2000, "a")
    sample = TextSample(ListSource(everything), make_data(), "train", 80_000, SkippedRecords())
    assert len(calls) < 1000
    assert {get_split(text) for text in calls} == {"train"}
    num_calls = len(calls)
    assert len([*sample]) == 200
    assert len(calls) == num_calls


def test_memory_is_bounded_by_the_size_of_the_sample() -> None:
    class LargeSource(ListSource):
        def list_parts(self) -> list[Part]:
            return [Part(0, 0, 1)]

        def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
            for index in range(3000):
                yield Document(f"{index} ".ljust(10_000, "x"), (0, 0))

    tracemalloc.start()
    sample = TextSample(LargeSource([]), make_data(), "train", 1_000_000, SkippedRecords())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len([*sample]) == 100
    assert peak < 2_000_000, "of 30 MB"


def test_a_huge_document_does_not_cause_many_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document is larger than the rest of the sample."""
    sizes: list[int] = []
    trim = TextSample._trim
    monkeypatch.setattr(TextSample, "_trim", lambda self: sizes.append(trim(self)) or sizes[-1])
    candidates = (f"{index} ".ljust(2_000_000, "x") for index in range(30))
    huge = sorted(candidates, key=lambda text: hash_text(text.encode())[8:])[9]
    texts = sample_texts(ListSource([huge, *make_texts(2000, "a")]), 300_000, validation_fraction=0)
    assert huge in texts
    assert len(sizes) < 30


def test_only_some_parts_of_a_huge_source_are_read_and_small_sources_keep_their_share() -> None:
    source = ListSource(make_texts(9000, "a"), make_texts(1000, "b"), documents_per_part=1000)
    sample = TextSample(source, make_data(), "train", 100_000, SkippedRecords())
    assert len({part for part in source.read_parts if part[0] == 0}) < 9
    assert {part[0] for part in source.read_parts} == {0, 1}
    assert compute_shares(sample)[1] == pytest.approx(0.1, abs=0.06)


def test_without_text_the_sample_is_empty() -> None:
    assert sample_texts(ListSource([]), 1000) == []
    assert sample_texts(ListSource(["", " "]), 1000) == []


def test_does_not_depend_on_the_order_of_files(tmp_path: Any) -> None:
    paths = [
        write_json_lines(tmp_path / f"{name}.jsonl", *({"text": text} for text in make_texts(100, name)))
        for name in "abc"
    ]
    first, second = (sample_texts(open_source(make_files(*order)), 10_000) for order in (paths, paths[::-1]))
    assert first == second
    assert len(first) == 25


def test_unreadable_records_are_counted_once(tmp_path: Any) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", b"{", {"text": "a text"}, {"no": "text"})
    skipped = SkippedRecords()
    sample = TextSample(
        open_source(make_files(path)), make_data(validation_fraction=0), "train", 1000, skipped
    )
    assert [*sample.iterate_texts()] == [*sample.iterate_texts()] == ["a text"]
    assert sum(counts["records"] for counts in skipped.reasons.values()) == 2
