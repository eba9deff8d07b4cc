"""The metrics of tokenizers agree with a plain recount; round-trip failures are found and reported."""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import ENGLISH, KOREAN, make_tokenizer

from krill.inspection import compare_report, compare_tokenizers
from krill.inspection.compare_tokenizers import detect_language, evaluate_tokenizers
from krill.text.sample import SampledText
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer


def make_document(text: str, source: int) -> SampledText:
    return SampledText(text.encode(), source)


SOURCE_NAMES = ["책", "web", "empty"]
SAMPLE = [
    make_document(KOREAN * 3, 0),
    make_document(ENGLISH, 1),
    make_document("뷁 쀍 ㅋㅋㅋ x² ½", 0),
    make_document("<|eos|> is text here, <think> too", 1),
    make_document("12 34", 1),
    make_document("\n", 1),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "test")


@pytest.fixture(scope="module")
def nfkc_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """Normalizes to NFKC, as the tokenizers of the original project."""
    folder = make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "nfkc").folder
    file = folder / "tokenizer.json"
    content = {**json.loads(file.read_text(encoding="utf-8")), "normalizer": {"type": "NFKC"}}
    file.write_text(json.dumps(content), encoding="utf-8")
    (folder / "record.json").unlink()
    return load_tokenizer(folder)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every sample take several batches."""
    monkeypatch.setattr(compare_tokenizers, "ENCODE_BATCH_CHARACTERS", 60)


def test_the_sample_is_read_in_several_batches():
    batches = [batch.texts for batch in compare_tokenizers._iterate_batches(SAMPLE)]
    assert len(batches) > 2
    assert [*chain.from_iterable(batches)] == [document.text for document in SAMPLE]


def test_the_metrics_agree_with_a_plain_recount(tokenizer: TokenizerFolder):
    metrics = evaluate_tokenizers({"mine": tokenizer}, SAMPLE, SOURCE_NAMES)
    (one,) = metrics["tokenizers"]
    backend = tokenizer.backend
    backend.encode_special_tokens = True
    ids = [backend.encode(document.text, add_special_tokens=False).ids for document in SAMPLE]
    is_decodable = {token: "\ufffd" not in backend.decode([token]) for token in range(tokenizer.vocab_size)}

    def recount(*indices: int) -> dict[str, Any]:
        texts = [SAMPLE[index].text for index in indices]
        tokens = [token for index in indices for token in ids[index]]
        size, words = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
        return {
            "documents": len(texts), "bytes": size, "words": words, "tokens": len(tokens),
            "bytes_per_token": size / len(tokens), "tokens_per_word": len(tokens) / words,
            "undecodable": sum(not is_decodable[token] for token in tokens) / len(tokens), "round_trip_failures": 0,
        }  # fmt: skip

    assert one["all"] == recount(*range(6))
    assert one["sources"] == {"책": recount(0, 2), "web": recount(1, 3, 4, 5)}
    assert one["languages"] == {"ko": recount(0, 2), "en": recount(1, 3), "other": recount(4, 5)}
    assert one["all"]["undecodable"] > 0
    assert {key: metrics[key] for key in ("documents", "bytes", "words")} == {
        key: one["all"][key] for key in ("documents", "bytes", "words")
    }
    counts = Counter(chain.from_iterable(ids))
    assert not {0, 1, 2, 3}.intersection(counts), "special tokens in the sample are text"
    assert one["vocabulary"] == {
        "entries": tokenizer.vocab_size - 4,
        "never": tokenizer.vocab_size - 4 - len(counts),
        "rare": sum(count < 10 for count in counts.values()),
    }


def test_round_trip_failures_are_found_and_reported(
    tokenizer: TokenizerFolder, nfkc_tokenizer: TokenizerFolder
):
    sample = [*SAMPLE, *(make_document(f"{'가' * number} ㅋ!", 1) for number in range(30, 40))]
    metrics = evaluate_tokenizers({"mine": tokenizer, "nfkc": nfkc_tokenizer}, sample, SOURCE_NAMES)
    exact, nfkc = metrics["tokenizers"]
    assert exact["round_trip"] == {"failures": 0, "examples": []}
    texts = [document.text for document in sample]
    changed = [text for text in texts if unicodedata.normalize("NFKC", text) != text]
    assert nfkc["round_trip"]["failures"] == nfkc["all"]["round_trip_failures"] == len(changed)
    assert nfkc["sources"]["책"]["round_trip_failures"] == 2
    assert len(nfkc["round_trip"]["examples"]) == compare_tokenizers.MAX_FAILURE_EXAMPLES
    assert nfkc["round_trip"]["examples"][1] == {
        "source": "책", "character": 4, "text": "뷁 쀍 ㅋㅋㅋ x² ½", "decoded": "뷁 쀍 ᄏᄏᄏ x2 1⁄2"
    }  # fmt: skip


def test_with_nfc_the_nfc_of_a_text_is_expected(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path / "nfc", normalizer="nfc")
    decomposed = unicodedata.normalize("NFD", "한국어 café")
    (one,) = evaluate_tokenizers({"nfc": tokenizer}, [make_document(decomposed, 0)], SOURCE_NAMES)[
        "tokenizers"
    ]
    assert one["round_trip"]["failures"] == 0
    assert one["all"]["bytes"] == len(decomposed.encode())


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("한국어 text", "ko"),
        ("한 mostly English", "en"),
        ("русский", "other"),
        ("日本語 かな", "other"),
        ("1 + 1 = 2", "other"),
        ("", "other"),
    ],
)
def test_languages_are_detected_by_script(text: str, language: str):
    assert detect_language(text) == language


def test_speed_is_measured_on_an_even_sample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare_tokenizers, "MAX_TIMED_CHARS", 1000)
    speed_sample = compare_tokenizers._SpeedSample()
    for start in range(0, 2000, 20):
        speed_sample.add([f"{number:05d}" for number in range(start, start + 20)])
    numbers = [*map(int, speed_sample.texts)]
    assert 500 <= sum(map(len, speed_sample.texts)) <= 1000
    assert numbers == [*range(0, 2000, numbers[1])]


def test_gigatoken_is_timed_only_if_it_is_installed_and_exact(
    tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch
):
    class WrongEngine:
        def __init__(self, backend: object) -> None:
            pass

        def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros(1, np.uint32), np.ones(1, np.int64)

    monkeypatch.setattr(compare_tokenizers, "GigatokenEngine", WrongEngine)
    speeds = compare_tokenizers.measure_speeds(tokenizer.backend, [KOREAN])
    assert speeds["hf"] > 0
    assert speeds["gigatoken"] is None
    monkeypatch.setattr(compare_tokenizers, "GigatokenEngine", compare_tokenizers.HuggingFaceEngine)
    assert compare_tokenizers.measure_speeds(tokenizer.backend, [KOREAN])["gigatoken"] > 0
    assert compare_tokenizers.measure_speeds(tokenizer.backend, [])["hf"] is None


# --- the report --------------------------------------------------------------------------------------------


def test_the_report_lists_the_tokenizers_in_every_block(
    tokenizer: TokenizerFolder, nfkc_tokenizer: TokenizerFolder
):
    long_label = f"outputs/{'tokenizers/' * 5}nfkc"
    metrics = evaluate_tokenizers({"mine": tokenizer, long_label: nfkc_tokenizer}, SAMPLE, SOURCE_NAMES)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    blocks = [block.splitlines() for block in compare_report.format_tokenizer_report(metrics).split("\n\n")]
    titles = [block[0].partition(":")[0] for block in blocks]
    assert titles[1:6] == ["all text", "ko (Hangul)", "en (Latin)", "other scripts", "source 책"]
    for block in blocks[1:-1]:
        assert [line.split()[0] for line in block[2:]] == ["mine", f"…{long_label[-39:]}"]
    assert "뷁 쀍 ᄏᄏᄏ x2 1⁄2" in blocks[-1][-1]


def test_a_single_language_and_source_are_named_in_one_line(tokenizer: TokenizerFolder):
    text = compare_report.format_tokenizer_report(
        evaluate_tokenizers({"mine": tokenizer}, [make_document(KOREAN, 0)], SOURCE_NAMES)
    )
    assert text.count("bytes/token") == 1
    assert "; all of it ko (Hangul); all of it source 책" in text


def test_the_largest_sources_are_listed(tokenizer: TokenizerFolder):
    sample = [make_document("가" * (index + 1), index) for index in range(30)]
    text = compare_report.format_tokenizer_report(
        evaluate_tokenizers({"mine": tokenizer}, sample, [f"number {index:02d}" for index in range(30)])
    )
    assert "source number 29" in text
    assert "source number 05" not in text
    assert "… 10 more sources; use format=json for all" in text


def test_the_plot_is_a_png_file(tmp_path: Path, tokenizer: TokenizerFolder, nfkc_tokenizer: TokenizerFolder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compare_report.plot_tokenizers(
            evaluate_tokenizers({"내 것": tokenizer, "nfkc": nfkc_tokenizer}, SAMPLE, SOURCE_NAMES),
            tmp_path / "a.png",
        )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not [*tmp_path.glob(".*partial")]
