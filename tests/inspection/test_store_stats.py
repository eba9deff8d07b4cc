"""The statistics of a store agree with its documents; rendered rows have the original text."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import ENGLISH, KOREAN, encode, make_tokenizer, write_store

from krill.data.packing import pack
from krill.data.store import Store
from krill.errors import KrillError
from krill.inspection import store_report, store_stats
from krill.inspection.render_rows import RowDisplayOptions, render_row
from krill.inspection.token_display import TokenRenderer, escape_unprintable
from krill.tokenizer.artifact import TokenizerFolder

DOCUMENTS = [("책", KOREAN * 3), ("web", ENGLISH), ("책", KOREAN), ("web", "ab"), ("web", ENGLISH * 9)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "test")


@pytest.fixture(scope="module")
def renderer(tokenizer: TokenizerFolder) -> TokenRenderer:
    return TokenRenderer(tokenizer)


@pytest.fixture(params=["uint16", "uint32"])
def store(tmp_path: Path, tokenizer: TokenizerFolder, request: pytest.FixtureRequest) -> Store:
    return write_store(tmp_path / "store", tokenizer, DOCUMENTS, [("web", ENGLISH * 2)], request.param)


class FakeSplit:
    """A split of documents of the given lengths."""

    pad_id = 2

    def __init__(self, lengths: list[int]) -> None:
        self.ends = np.cumsum(lengths).astype(np.uint64)
        self.documents, self.tokens = len(lengths), sum(lengths)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop)


# --- statistics --------------------------------------------------------------------------------------------


def test_bytes_per_token_exclude_bos_and_eos(store: Store):
    counts = store_stats.compute_counts(store)
    train = counts["splits"]["train"]
    texts = [text for _, text in DOCUMENTS]
    assert train["documents"] == 5
    assert train["text_bytes"] == sum(len(text.encode()) for text in texts)
    assert train["bytes_per_token"] == pytest.approx(train["text_bytes"] / (train["tokens"] - 10))
    assert counts["total"]["documents"] == 6
    assert counts["sources"]["web"]["documents"] == 4
    for group in (counts["splits"], counts["sources"]):
        assert sum(one["share"] for one in group.values()) == pytest.approx(1)


def test_an_empty_validation_split_and_one_document(tmp_path: Path, tokenizer: TokenizerFolder):
    store = write_store(tmp_path / "store", tokenizer, [("web", "가")])
    assert store_stats.compute_counts(store)["splits"]["validation"] == {
        "documents": 0, "tokens": 0, "text_bytes": 0, "share": 0.0, "bytes_per_token": None
    }  # fmt: skip
    stats = store_stats.compute_length_stats(store.train)
    assert stats["mean"] == stats["median"] == stats["p95"] == stats["max"] == store.train.tokens
    assert [entry["documents"] for entry in stats["bins"]] == [1]
    assert store_stats.compute_packing_stats(store.train, 64, "best_fit")["rows"] == 1


def test_a_split_without_documents_has_no_lengths_and_no_rows(tmp_path: Path, tokenizer: TokenizerFolder):
    empty = write_store(tmp_path / "store", tokenizer, [("web", "가")]).validation
    assert store_stats.compute_length_stats(empty)["mean"] is None
    for packing in ("wrapped", "best_fit"):
        filled = store_stats.compute_packing_stats(empty, 64, packing)
        assert (filled["rows"], filled["padding"], filled["documents_cut"]) == (0, 0, 0)
    assert store_stats.compute_vocabulary_usage(empty, 10, None, 3)["never"] == 10


def test_bins_begin_at_powers_of_two():
    lengths = [1, 2, 3, 4, 7, 8, 2**20 - 1, 2**20]
    stats = store_stats.compute_length_stats(FakeSplit(lengths))
    filled = {entry["from"]: entry["documents"] for entry in stats["bins"] if entry["documents"]}
    assert filled == {1: 1, 2: 2, 4: 2, 8: 1, 2**19: 1, 2**20: 1}
    assert sum(entry["tokens"] for entry in stats["bins"]) == sum(lengths)
    assert all(following["from"] == entry["to"] + 1 for entry, following in pairwise(stats["bins"]))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(8, 20))
def test_a_document_is_cut_if_it_is_in_two_rows(lengths: list[int], sequence_len: int):
    ends = np.cumsum(lengths)
    starts = ends - lengths
    wrapped = sum(
        int(a // sequence_len != (b - 1) // sequence_len) for a, b in zip(starts, ends, strict=True)
    )
    too_long = sum(length > sequence_len for length in lengths)
    for packing, expected_cut in (("wrapped", wrapped), ("best_fit", too_long)):
        stats = store_stats.compute_packing_stats(FakeSplit(lengths), sequence_len, packing)
        assert stats["documents_cut"] == expected_cut
        assert stats["tokens"] == sum(lengths)
        assert stats["padding"] == pytest.approx(1 - sum(lengths) / (stats["rows"] * sequence_len))


def test_the_vocabulary_counts_every_token(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_stats, "TOKENS_PER_BLOCK", 7)
    expected = Counter(store.train.read(0, store.train.tokens).tolist())
    stats = store_stats.compute_vocabulary_usage(store.train, store.vocab_size, None, 5)
    assert {entry["id"]: entry["count"] for entry in stats["most_frequent"]} == dict(
        sorted(expected.items(), key=lambda item: (-item[1], item[0]))[:5]
    )
    assert (stats["used"], stats["never"]) == (len(expected), store.vocab_size - len(expected))
    assert stats["counted"] == stats["tokens"] == store.train.tokens


@pytest.mark.parametrize("max_tokens", [1, 7, 20, 29, 10**9])
def test_vocabulary_usage_is_counted_on_an_even_bounded_sample(
    store: Store, monkeypatch: pytest.MonkeyPatch, max_tokens: int
):
    monkeypatch.setattr(store_stats, "TOKENS_PER_BLOCK", 7)
    blocks = [*store_stats._iterate_blocks(store.train.tokens, max_tokens)]
    assert all(stop <= start for (_, stop), (start, _) in pairwise(blocks))
    assert blocks[0][0] == 0
    if len(blocks) > 1:
        assert blocks[-1][1] == store.train.tokens
    counted = store_stats.compute_vocabulary_usage(store.train, store.vocab_size, max_tokens, 1)["counted"]
    assert counted == sum(stop - start for start, stop in blocks) <= max_tokens


def test_an_id_outside_the_vocabulary_is_an_error(store: Store):
    with pytest.raises(KrillError, match=r"token id \d+ among tokens \[0, \d+\), .* has 10 entries"):
        store_stats.compute_vocabulary_usage(store.train, 10, None, 1)


def test_numbers_in_the_manifest_are_counts():
    manifest: dict[str, Any] = {
        "dropped": {"duplicate": {"documents": 2, "bytes": 9, "tokens": 0}, "short": 3},
        "skipped": {"invalid JSON": 4},
    }
    assert store_stats.collect_exclusions(manifest) == {
        "dropped": {"duplicate": {"documents": 2, "bytes": 9, "tokens": 0}, "short": {"documents": 3}},
        "skipped": {"invalid JSON": {"records": 4}},
        "repeated": None,
        "leaks": None,
    }
    assert store_stats.collect_exclusions({}) == {
        "dropped": {},
        "skipped": {},
        "repeated": None,
        "leaks": None,
    }


# --- spans -------------------------------------------------------------------------------------------------


@given(st.text(max_size=60))
def test_spans_have_every_id_once_and_the_text(tokenizer: TokenizerFolder, text: str):
    ids = encode(tokenizer, text.encode("utf-8", "replace").decode())
    spans = TokenRenderer(tokenizer).render(ids)
    assert [token for span in spans for token in span.ids] == ids
    assert (spans[0].kind, spans[-1].kind) == ("special", "special")
    assert "".join(span.text for span in spans[1:-1]) == text.encode("utf-8", "replace").decode()


def test_a_character_of_several_tokens_is_one_span(tokenizer: TokenizerFolder, renderer: TokenRenderer):
    ids = encode(tokenizer, "뷁")[1:-1]
    assert len(ids) == 3
    assert renderer.render(ids) == [("word", "뷁", tuple(ids))]


def test_a_part_of_a_character_is_undecodable(tokenizer: TokenizerFolder, renderer: TokenRenderer):
    first, second, third = encode(tokenizer, "뷁")[1:-1]
    after = encode(tokenizer, "a")[1]
    assert renderer.render([second, third, after, first, second]) == [
        ("undecodable", r"\xb7\x81", (second, third)),
        ("word", "a", (after,)),
        ("undecodable", r"\xeb\xb7", (first, second)),
    ]


def test_punctuation_is_joined_and_words_are_not(tokenizer: TokenizerFolder, renderer: TokenRenderer):
    ids = encode(tokenizer, "text words… ?! ----\n")
    kinds = [span.kind for span in renderer.render(ids)]
    assert ("other", "other") not in pairwise(kinds)
    assert kinds[-2:] == ["other", "special"]
    assert ("word", "word") in pairwise(kinds)


def test_a_special_token_written_in_text_is_not_special(tokenizer: TokenizerFolder, renderer: TokenRenderer):
    (special,) = renderer.render([tokenizer.eos_id])
    assert special == ("special", "eos", (tokenizer.eos_id,))
    backend = tokenizer.backend
    backend.encode_special_tokens = True
    ids = backend.encode("<|eos|>", add_special_tokens=False).ids
    backend.encode_special_tokens = False
    assert "special" not in {span.kind for span in renderer.render(ids)}


def test_control_characters_are_escaped():
    assert escape_unprintable("a\x1b[31m\u202e\xa0\tb\n") == r"a\x1b[31m\u202e\xa0\tb↵"


# --- rows and the report -----------------------------------------------------------------------------------


def render_plain_row(
    store: Store, renderer: TokenRenderer, index: int, sequence_len: int, **options: Any
) -> str:
    rows = pack(store.train, sequence_len, "wrapped")
    display_options = RowDisplayOptions(**{"show_ids": False, "width": 80, "max_lines": None, **options})
    return render_row(rows, index, store.train, store.sources, renderer, display_options).plain


def test_a_row_has_the_text_of_its_documents(store: Store, renderer: TokenRenderer):
    text = render_plain_row(store, renderer, 0, store.train.tokens + 5)
    first, *lines = text.splitlines()
    assert first == f"row 0 of 1: {store.train.tokens:,} tokens in 5 segments, 5 padding"
    assert lines[0].startswith("── document 0 (책), ")
    assert lines[1] == f"⟨bos⟩{KOREAN * 3}⟨eos⟩"
    assert lines[-1] == "⟨padding⟩ × 5"
    assert [line for line in lines if line.startswith("⟨bos⟩")] == [
        f"⟨bos⟩{text}⟨eos⟩" for _, text in DOCUMENTS
    ]


def test_a_cut_document_names_the_range_of_its_tokens(store: Store, renderer: TokenRenderer):
    size = int(store.train.ends[0])
    assert f"document 0 (책), {size:,} tokens, tokens 8 to 15\n" in render_plain_row(store, renderer, 1, 8)


def test_ids_follow_their_text(store: Store, renderer: TokenRenderer, tokenizer: TokenizerFolder):
    lines = render_plain_row(store, renderer, 0, store.train.tokens, show_ids=True).splitlines()
    (line,) = [line for line in lines if "⟨bos⟩[0]a" in line]
    a, b = encode(tokenizer, "ab")[1:-1]
    assert line == f"⟨bos⟩[0]a[{a}]b[{b}]⟨eos⟩[1]"


@pytest.mark.parametrize("width", [20, 40, 200])
def test_a_long_row_is_truncated_to_the_screen(store: Store, renderer: TokenRenderer, width: int):
    total = store.train.tokens
    text = render_plain_row(store, renderer, 0, total, show_ids=True, width=width, max_lines=8)
    assert f" of {total:,} tokens; use full=true for all" in text.splitlines()[-1]
    assert sum(max(1, -(-len(line) // width)) for line in text.splitlines()[:-1]) <= 12


def test_a_long_run_does_not_fill_the_screen(
    tmp_path: Path, tokenizer: TokenizerFolder, renderer: TokenRenderer
):
    store = write_store(tmp_path / "store", tokenizer, [("web", "=" * 999 + "end")])
    short, full = (
        render_plain_row(store, renderer, 0, 2000, show_ids=True, max_lines=max_lines)
        for max_lines in (20, None)
    )
    assert "full=true" not in short
    assert len(short) < 400 < len(full)
    assert "=" * 999 in full


MANIFEST_EXTRAS: dict[str, Any] = {
    "dropped": {
        "duplicate": {
            "documents": 2, "bytes": 5110, "tokens": 0, "examples": [{"place": "a.jsonl:3", "text": "가\n나"}]
        },
        "min_chars": {"documents": 7, "bytes": 69, "tokens": 0},
    },
    "repeated": {"documents": 3, "tokens": 40},
    "skipped": {"invalid JSON": {"records": 4, "places": ["a.jsonl:1"]}, "invalid UTF-8": 1},
    "leaks": {
        "ngram": 13, "validation_tokens": 200, "leaked_tokens": 3, "documents": 2, "leaked_documents": 1
    },
}  # fmt: skip


def compute_all_stats(store: Store) -> dict[str, Any]:
    """Returns the result of `compute_store_stats` without a configuration."""
    vocabulary = store_stats.compute_vocabulary_usage(store.train, store.vocab_size, None, 3)
    for token in vocabulary["most_frequent"]:
        token["text"] = None
    return {
        "folder": "f", "signature": "s", "dtype": "uint16", "tokenizer": store.manifest["tokenizer"],
        "verified": True, "counts": store_stats.compute_counts(store),
        "exclusions": store_stats.collect_exclusions(store.manifest),
        "lengths": store_stats.compute_length_stats(store.train),
        "packing": [store_stats.compute_packing_stats(store.train, 64, "best_fit")], "vocabulary": vocabulary,
    }  # fmt: skip


def test_the_report_lists_dropped_and_skipped_documents(tmp_path: Path, tokenizer: TokenizerFolder):
    store = write_store(tmp_path / "store", tokenizer, DOCUMENTS, **MANIFEST_EXTRAS)
    stats = compute_all_stats(store)
    text = store_report.format_store_report(stats)
    assert json.loads(json.dumps(stats, allow_nan=False)) == stats
    lines = [line.split() for line in text.splitlines()]
    assert ["duplicate", "2", "5,110", "0", "a.jsonl:3:", "가↵나"] in lines
    assert ["min_chars", "7", "69", "0"] in lines
    assert ["invalid", "JSON", "4", "a.jsonl:1"] in lines
    assert ["invalid", "UTF-8", "1"] in lines
    assert "repeated    3 documents (40 tokens) " in text
    assert "3 of 200 validation tokens (1.50 %) and 1 of 2 documents" in text
    assert "every hash" in text


def test_the_report_lists_the_largest_sources(tmp_path: Path, tokenizer: TokenizerFolder):
    documents = [(f"source {index:02d}", "가" * (index + 1)) for index in range(30)]
    text = store_report.format_store_report(
        compute_all_stats(write_store(tmp_path / "store", tokenizer, documents))
    )
    assert "source 29" in text
    assert "source 05" not in text
    assert "… 10 more sources; use format=json for all" in text


def test_the_plot_is_a_png_file(tmp_path: Path, tokenizer: TokenizerFolder):
    store = write_store(tmp_path / "store", tokenizer, [("web", ENGLISH), ("책", KOREAN)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        store_report.plot_store(compute_all_stats(store), tmp_path / "store.png")
    assert (tmp_path / "store.png").read_bytes().startswith(b"\x89PNG")
    assert not [*tmp_path.glob(".*partial")]
