"""A sample is the same in whatever order the text is read, even over its sources, and as large as asked for."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from reading import files, json_lines

from krill.config.schema import FilesDataConfig
from krill.sources.registry import open_source
from krill.sources.source import Document, Part, SkippedRecords, Source
from krill.text import documents
from krill.text.dedup import assign_split, hash_text
from krill.text.sample import TextSample

DOCUMENT_BYTES = 400


class ListSource(Source):
    """Sources of texts, each cut into parts of some documents."""

    def __init__(
        self, *sources: Sequence[str], weights: list[float] | None = None, documents_per_part: int = 10
    ) -> None:
        super().__init__([f"source {index}" for index in range(len(sources))], weights)
        self._sources, self._step = sources, documents_per_part
        self.read_parts: list[tuple[int, int]] = []

    def fingerprint(self) -> Any:
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

    def describe_location(self, part: Part, place: tuple[int, int]) -> str:
        return "somewhere"


def make_texts(count: int, name: str) -> list[str]:
    """Different texts of 400 bytes."""
    return [f"{name} {index} ".ljust(DOCUMENT_BYTES, "x") for index in range(count)]


def make_data(**keys: Any) -> FilesDataConfig:
    return files("unused").model_copy(update={"min_chars": 1, "validation_fraction": 0.1, **keys})


def sample_texts(source: Source, limit: int, split: Any = "train", **keys: Any) -> list[str]:
    return list(TextSample(source, make_data(**keys), split, limit, SkippedRecords()).iterate_texts())


def get_split(text: str) -> str:
    return assign_split(hash_text(text.encode()), 0.1)


def compute_shares(sample: TextSample) -> dict[int, float]:
    """Share of the sample's bytes by source."""
    sizes: dict[int, int] = {}
    for document in sample:
        sizes[document.source] = sizes.get(document.source, 0) + len(document.content)
    return {source: size / sum(sizes.values()) for source, size in sizes.items()}


def test_the_same_in_any_order_of_documents_parts_and_sources() -> None:
    first, second = make_texts(400, "a"), make_texts(300, "b")
    expected = sample_texts(ListSource(first, second), 30_000)
    for seed in range(3):
        draw = random.Random(seed)
        shuffled = [draw.sample(part, len(part)) for part in (second, first)]
        assert sample_texts(ListSource(*shuffled, documents_per_part=seed + 3), 30_000) == expected


@pytest.mark.parametrize("limit", [1, 399, 400, 401, 20_000])
def test_as_many_bytes_as_asked_for_the_last_document_passes_them(limit: int) -> None:
    found = sample_texts(ListSource(make_texts(400, "a")), limit)
    assert limit <= sum(len(text.encode()) for text in found) < limit + DOCUMENT_BYTES


def test_a_limit_above_the_text_takes_all_of_the_split() -> None:
    everything = make_texts(300, "a")
    source = ListSource(everything[:100], everything[100:], weights=[3.0, 1.0])
    train, validation = (sample_texts(source, 10**9, name) for name in ("train", "validation"))
    assert sorted([*train, *validation]) == sorted(everything)
    assert {get_split(text) for text in train} == {"train"}
    assert {get_split(text) for text in validation} == {"validation"}


def test_a_small_sample_is_part_of_a_larger_one() -> None:
    source = ListSource(make_texts(400, "a"))
    small, large = sample_texts(source, 16_000), sample_texts(source, 100_000)
    assert large[: len(small)] == small


def test_iterates_any_number_of_times_alike() -> None:
    sample = TextSample(ListSource(make_texts(200, "a")), make_data(), "train", 10_000, SkippedRecords())
    assert list(sample) == list(sample)
    assert list(sample.iterate_texts()) == [document.text for document in sample]


def test_each_source_has_its_share() -> None:
    source = ListSource(make_texts(3000, "a"), make_texts(1000, "b"))
    found = compute_shares(TextSample(source, make_data(), "train", 300_000, SkippedRecords()))
    assert found[0] == pytest.approx(0.75, abs=0.05)


def test_weights_change_the_shares() -> None:
    source = ListSource(
        make_texts(2000, "a"), make_texts(2000, "b"), make_texts(2000, "c"), weights=[1.0, 3.0, 0.0]
    )
    found = compute_shares(TextSample(source, make_data(), "train", 300_000, SkippedRecords()))
    assert found == {0: pytest.approx(0.25, abs=0.05), 1: pytest.approx(0.75, abs=0.05)}


def test_of_a_weight_below_one_only_what_training_sees() -> None:
    """Training leaves out those whose digest's second word is in the upper half."""
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


def test_equal_texts_come_once_whatever_their_weights() -> None:
    first, second = make_texts(200, "a"), make_texts(200, "b")
    source = ListSource([*first, *second, *first], [*first, "  " + first[0]], weights=[1.0, 2.0])
    turned = ListSource(first, [*second, *first], weights=[2.0, 1.0])
    for limit in (40_000, 10**9):
        found = sample_texts(source, limit)
        assert len(found) == len({*found})
        assert found == sample_texts(turned, limit)
        assert sum(len(text) for text in found) >= min(limit, 300 * DOCUMENT_BYTES)


def test_texts_are_cleaned_and_dropped_as_training_does() -> None:
    found = sample_texts(
        ListSource(["  kept text\r\n and more  ", "short", "", "\x00"]),
        10**9,
        min_chars=10,
        validation_fraction=0,
    )
    assert found == ["kept text\n and more"]


def test_filters_run_only_where_they_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    dropped_by = documents.DocumentRules.find_dropping_rule

    def counted(self: documents.DocumentRules, text: str) -> str | None:
        calls.append(text)
        return dropped_by(self, text)

    monkeypatch.setattr(documents.DocumentRules, "find_dropping_rule", counted)
    everything = make_texts(2000, "a")
    sample = TextSample(ListSource(everything), make_data(), "train", 80_000, SkippedRecords())
    assert len(calls) < 1000, "only what may be in the sample is judged"
    assert {get_split(text) for text in calls} == {"train"}
    before = len(calls)
    assert len([*sample]) == 200
    assert len(calls) == before


def test_holds_no_more_than_the_sample() -> None:
    class Endless(ListSource):
        def parts(self) -> list[Part]:
            return [Part(0, 0, 1)]

        def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
            for index in range(3000):
                yield Document(f"{index} ".ljust(10_000, "x"), (0, 0))

    tracemalloc.start()
    sample = TextSample(Endless([]), make_data(), "train", 1_000_000, SkippedRecords())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len([*sample]) == 100
    assert peak < 2_000_000, "of 30 MB"


def test_after_a_huge_document_few_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be larger than all that is held beside it."""
    cuts: list[int] = []
    cut = TextSample._trim
    monkeypatch.setattr(TextSample, "_trim", lambda self: cuts.append(cut(self)) or cuts[-1])
    several = (f"{index} ".ljust(2_000_000, "x") for index in range(30))
    huge = sorted(several, key=lambda text: hash_text(text.encode())[8:])[9]
    found = sample_texts(ListSource([huge, *make_texts(2000, "a")]), 300_000, validation_fraction=0)
    assert huge in found
    assert len(cuts) < 30


def test_of_a_huge_source_some_parts_are_read_and_small_ones_keep_their_share() -> None:
    source = ListSource(make_texts(9000, "a"), make_texts(1000, "b"), documents_per_part=1000)
    sample = TextSample(source, make_data(), "train", 100_000, SkippedRecords())
    assert len({part for part in source.read_parts if part[0] == 0}) < 9
    assert {part[0] for part in source.read_parts} == {0, 1}
    assert compute_shares(sample)[1] == pytest.approx(0.1, abs=0.06)


def test_no_text_is_an_empty_sample() -> None:
    assert sample_texts(ListSource([]), 1000) == []
    assert sample_texts(ListSource(["", " "]), 1000) == []


def test_files_in_any_order(tmp_path: Any) -> None:
    paths = [
        json_lines(tmp_path / f"{name}.jsonl", *({"text": text} for text in make_texts(100, name)))
        for name in "abc"
    ]
    first, second = (sample_texts(open_source(files(*order)), 10_000) for order in (paths, paths[::-1]))
    assert first == second
    assert len(first) == 25


def test_records_that_cannot_be_read_are_counted_once(tmp_path: Any) -> None:
    path = json_lines(tmp_path / "a.jsonl", b"{", {"text": "a text"}, {"no": "text"})
    skipped = SkippedRecords()
    sample = TextSample(open_source(files(path)), make_data(validation_fraction=0), "train", 1000, skipped)
    assert [*sample.iterate_texts()] == [*sample.iterate_texts()] == ["a text"]
    assert sum(found["records"] for found in skipped.reasons.values()) == 2
