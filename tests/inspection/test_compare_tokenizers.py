"""The figures of tokenizers are those of a plain recount; what does not come back is found and shown."""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from stores import ENGLISH, KOREAN, make_tokenizer

from krill.inspection import compare_report
from krill.inspection import compare_tokenizers as judging
from krill.inspection.compare_tokenizers import detect_language, evaluate_tokenizers
from krill.text.sample import SampledText
from krill.tokenizer import chunking
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer


def document(text: str, source: int) -> SampledText:
    return SampledText(text.encode(), source)


NAMES = ["책", "web", "empty"]
SAMPLE = [
    document(KOREAN * 3, 0),
    document(ENGLISH, 1),
    document("뷁 쀍 ㅋㅋㅋ x² ½", 0),
    document("<|eos|> is text here, <think> too", 1),
    document("12 34", 1),
    document("\n", 1),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "test")


@pytest.fixture(scope="module")
def nfkc(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """What the original's tokenizers did."""
    folder = make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "nfkc").folder
    file = folder / "tokenizer.json"
    content = {**json.loads(file.read_text(encoding="utf-8")), "normalizer": {"type": "NFKC"}}
    file.write_text(json.dumps(content), encoding="utf-8")
    return load_tokenizer(folder)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "ENCODE_BATCH_CHARACTERS", 60)


def test_the_figures_are_those_of_a_plain_recount(tokenizer: TokenizerFolder):
    found = evaluate_tokenizers({"mine": tokenizer}, SAMPLE, NAMES)
    (one,) = found["tokenizers"]
    backend = tokenizer.backend
    backend.encode_special_tokens = True
    ids = [backend.encode(drawn.text, add_special_tokens=False).ids for drawn in SAMPLE]
    decodes = {token: "\ufffd" not in backend.decode([token]) for token in range(tokenizer.vocab_size)}

    def recount(*chosen: int) -> dict[str, Any]:
        texts = [SAMPLE[index].text for index in chosen]
        tokens = [token for index in chosen for token in ids[index]]
        size, words = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
        return {
            "documents": len(texts), "bytes": size, "words": words, "tokens": len(tokens),
            "bytes_per_token": size / len(tokens), "tokens_per_word": len(tokens) / words,
            "undecodable": sum(not decodes[token] for token in tokens) / len(tokens), "round_trip_failures": 0,
        }  # fmt: skip

    assert one["all"] == recount(*range(6))
    assert one["sources"] == {"책": recount(0, 2), "web": recount(1, 3, 4, 5)}
    assert one["languages"] == {"ko": recount(0, 2), "en": recount(1, 3), "other": recount(4, 5)}
    assert one["all"]["undecodable"] > 0
    assert {key: found[key] for key in ("documents", "bytes", "words")} == {
        key: one["all"][key] for key in ("documents", "bytes", "words")
    }
    counts = Counter(chain.from_iterable(ids))
    assert not {0, 1, 2, 3}.intersection(counts), "the special tokens are text"
    assert one["vocabulary"] == {
        "entries": tokenizer.vocab_size - 4,
        "never": tokenizer.vocab_size - 4 - len(counts),
        "rare": sum(count < 10 for count in counts.values()),
    }


def test_what_does_not_come_back_is_found_and_shown(tokenizer: TokenizerFolder, nfkc: TokenizerFolder):
    sample = [*SAMPLE, *(document(f"{'가' * number} ㅋ!", 1) for number in range(30, 40))]
    mine, original = evaluate_tokenizers({"mine": tokenizer, "nfkc": nfkc}, sample, NAMES)["tokenizers"]
    assert mine["round_trip"] == {"failures": 0, "examples": []}
    changed = [drawn for drawn in sample if unicodedata.normalize("NFKC", drawn.text) != drawn.text]
    assert original["round_trip"]["failures"] == original["all"]["round_trip_failures"] == len(changed)
    assert original["sources"]["책"]["round_trip_failures"] == 2
    assert len(original["round_trip"]["examples"]) == judging.MAX_FAILURE_EXAMPLES
    assert original["round_trip"]["examples"][1] == {
        "source": "책", "character": 4, "text": "뷁 쀍 ㅋㅋㅋ x² ½", "decoded": "뷁 쀍 ᄏᄏᄏ x2 1⁄2"
    }  # fmt: skip


def test_under_nfc_the_nfc_comes_back(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path / "nfc", normalizer="nfc")
    decomposed = unicodedata.normalize("NFD", "한국어 café")
    (one,) = evaluate_tokenizers({"nfc": tokenizer}, [document(decomposed, 0)], NAMES)["tokenizers"]
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
def test_a_language_is_known_by_its_script(text: str, language: str):
    assert detect_language(text) == language


def test_speed_is_measured_on_text_from_everywhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging, "MAX_TIMED_CHARS", 1000)
    timed = judging._SpeedSample()
    for start in range(0, 2000, 20):
        timed.add([f"{number:05d}" for number in range(start, start + 20)])
    numbers = [*map(int, timed.texts)]
    assert 500 <= sum(map(len, timed.texts)) <= 1000
    assert numbers == [*range(0, 2000, numbers[1])]


def test_gigatoken_is_timed_only_where_it_is_there_and_exact(
    tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch
):
    class Wrong:
        def __init__(self, backend: object) -> None:
            self.ids = lambda texts: (judging.np.zeros(1), judging.np.ones(1))

    monkeypatch.setattr(judging, "GigatokenEngine", Wrong)
    found = judging.measure_speeds(tokenizer.backend, [KOREAN])
    assert found["hf"] > 0
    assert found["gigatoken"] is None
    monkeypatch.setattr(judging, "GigatokenEngine", judging.HuggingFaceEngine)
    assert judging.measure_speeds(tokenizer.backend, [KOREAN])["gigatoken"] > 0
    assert judging.measure_speeds(tokenizer.backend, [])["hf"] is None


# --- the report --------------------------------------------------------------------------------------------


def test_the_report_stands_side_by_side(tokenizer: TokenizerFolder, nfkc: TokenizerFolder):
    long = f"outputs/{'tokenizers/' * 5}nfkc"
    found = evaluate_tokenizers({"mine": tokenizer, long: nfkc}, SAMPLE, NAMES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    blocks = [block.splitlines() for block in compare_report.format_tokenizer_report(found).split("\n\n")]
    titles = [block[0].partition(":")[0] for block in blocks]
    assert titles[1:6] == ["all text", "ko (Hangul)", "en (Latin)", "other scripts", "source 책"]
    for block in blocks[1:-1]:
        assert [line.split()[0] for line in block[2:]] == ["mine", f"…{long[-39:]}"]
    assert "뷁 쀍 ᄏᄏᄏ x2 1⁄2" in blocks[-1][-1]


def test_one_language_and_one_source_are_said_in_one_line(tokenizer: TokenizerFolder):
    text = compare_report.format_tokenizer_report(
        evaluate_tokenizers({"mine": tokenizer}, [document(KOREAN, 0)], NAMES)
    )
    assert text.count("bytes/token") == 1
    assert "; all of it ko (Hangul); all of it source 책" in text


def test_the_largest_sources_are_listed(tokenizer: TokenizerFolder):
    sample = [document("가" * (index + 1), index) for index in range(30)]
    text = compare_report.format_tokenizer_report(
        evaluate_tokenizers({"mine": tokenizer}, sample, [f"number {index:02d}" for index in range(30)])
    )
    assert "source number 29" in text
    assert "source number 05" not in text
    assert "… 10 more sources; all of them: format=json" in text


def test_the_plot_is_a_picture(tmp_path: Path, tokenizer: TokenizerFolder, nfkc: TokenizerFolder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compare_report.plot_tokenizers(
            evaluate_tokenizers({"내 것": tokenizer, "nfkc": nfkc}, SAMPLE, NAMES), tmp_path / "a.png"
        )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not [*tmp_path.glob(".*partial")]
