"""Korean minimal pairs: balanced, different, always the same, and right by rules that do not use their generator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from random import Random

import pytest

from krill.evaluation.minimal_pairs.korean.phenomena import PHENOMENA
from krill.evaluation.minimal_pairs.phenomenon import Pair, draw_pairs

COUNT = 1000
NAMES = [phenomenon.name for phenomenon in PHENOMENA]
BY_NAME = {phenomenon.name: phenomenon for phenomenon in PHENOMENA}
every_phenomenon = pytest.mark.parametrize("name", NAMES)


@cache
def get_pairs(name: str) -> list[Pair]:
    return draw_pairs(BY_NAME[name], COUNT, seed=1)


def parse_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def find_spans(pair: Pair) -> tuple[int, str, str]:
    """Returns the index of the first character that differs, and the characters that differ."""
    good, bad = pair.good, pair.bad
    start = end = 0
    while start < min(len(good), len(bad)) and good[start] == bad[start]:
        start += 1
    while end < min(len(good), len(bad)) - start and good[-1 - end] == bad[-1 - end]:
        end += 1
    return start, good[start : len(good) - end], bad[start : len(bad) - end]


def get_final(syllable: str) -> str:
    """Returns the final consonant as a conjoining letter, by the decomposition of Unicode."""
    letters = unicodedata.normalize("NFD", syllable)
    return letters[2] if len(letters) == 3 else ""


RIEUL = "\u11af"


def test_the_phenomena_are_named_and_described() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 16
    for phenomenon in PHENOMENA:
        assert phenomenon.language == "ko"
        assert re.fullmatch(r"[A-Z].*\.", phenomenon.description)
        assert CHECKS[phenomenon.name](phenomenon.example.good, phenomenon.example)
        assert not CHECKS[phenomenon.name](phenomenon.example.bad, phenomenon.example)


@every_phenomenon
def test_pairs_differ_and_are_sentences(name: str) -> None:
    pairs = get_pairs(name)
    assert len(set(pairs)) == COUNT
    assert len({pair.good for pair in pairs}) >= 0.8 * COUNT
    for pair in pairs:
        assert pair.good != pair.bad
        for sentence in (pair.good, pair.bad):
            assert re.fullmatch(r"[가-힣]+( [가-힣]+)*\.", sentence), sentence


@every_phenomenon
def test_nobody_meets_themselves(name: str) -> None:
    for pair in get_pairs(name):
        people = r"동생|사촌|학생|이모|누나|삼촌|형|기자|배우|가수|직원|개발자|청년|아저씨|아주머니"
        assert not re.search(rf"\b({people})(은|는) (.* )?\1", pair.good), pair.good


@every_phenomenon
def test_a_unigram_model_solves_half_of_the_pairs(name: str) -> None:
    letters = [
        [Counter(unicodedata.normalize("NFD", text)) for text in (pair.good, pair.bad)]
        for pair in get_pairs(name)
    ]
    differences = [(good - bad, bad - good) for good, bad in letters]
    vocabulary = sorted({letter for pair in differences for side in pair for letter in side})
    for seed in range(10):
        random = Random(seed)
        cost = {letter: random.uniform(1, 12) for letter in vocabulary}
        solved = 0.0
        for good, bad in differences:
            costs = [sum(cost[letter] * count for letter, count in side.items()) for side in (good, bad)]
            solved += 0.5 if costs[0] == costs[1] else costs[0] < costs[1]
        assert solved / COUNT == pytest.approx(0.5, abs=0.05)


@every_phenomenon
def test_the_good_sentence_is_as_often_longer_as_shorter(name: str) -> None:
    longer = sum(
        (len(pair.good) > len(pair.bad)) - (len(pair.good) < len(pair.bad)) for pair in get_pairs(name)
    )
    assert abs(longer) <= 0.06 * COUNT


@pytest.mark.parametrize("name", [name for name in NAMES if name != "modifier_order"])
def test_what_is_right_in_one_pair_is_wrong_in_another(name: str) -> None:
    if name in ROOTS:
        spans = Counter((ROOTS[name](pair.good), ROOTS[name](pair.bad)) for pair in get_pairs(name))
    else:
        spans = Counter(find_spans(pair)[1:] for pair in get_pairs(name))
    one_way = sum(count for (good, bad), count in spans.items() if not spans[bad, good])
    assert one_way <= 0.2 * COUNT


def test_pairs_are_the_same_in_every_process() -> None:
    code = (
        "from hashlib import sha256\n"
        "from krill.evaluation.minimal_pairs.korean.phenomena import PHENOMENA\n"
        "from krill.evaluation.minimal_pairs.phenomenon import draw_pairs\n"
        "print(sha256(repr([draw_pairs(p, 100) for p in PHENOMENA]).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@every_phenomenon
def test_the_good_sentence_follows_the_rule_and_the_bad_one_breaks_it(name: str) -> None:
    for pair in get_pairs(name):
        assert CHECKS[name](pair.good, pair), pair
        assert not CHECKS[name](pair.bad, pair), pair


def check_particle(after_consonant: str, after_vowel: str) -> Callable[[str, Pair], bool]:
    """Returns the check of a particle with two forms; 으로 and 로 follow the rule of ㄹ."""

    def check(sentence: str, pair: Pair) -> bool:
        start = find_spans(pair)[0]
        noun = pair.good[start - 1]
        form = after_consonant if sentence.startswith(after_consonant, start) else after_vowel
        assert sentence.startswith(form, start), sentence
        final = get_final(noun)
        is_closed = bool(final) and not (after_consonant == "으로" and final == RIEUL)
        return (form == after_consonant) == is_closed

    return check


NATIVE = parse_words("세 네 다섯 여섯 일곱 여덟 아홉")
AFTER_NATIVE = set(parse_words("개 권 장 잔 마리 명 번 시간 켤레 송이 그루 그릇 곡 가지 달"))
AFTER_SINO = set(parse_words("년 층 천 만 백 인분 호선 등 위 교시 초 퍼센트"))


def check_numeral(sentence: str, pair: Pair) -> bool:
    numerals = "|".join((*NATIVE, *"삼사오육칠팔구"))
    start = find_spans(pair)[0]
    match = re.compile(rf"({numerals}) ?(천|만|백|[가-힣]+?)(?=[ .을에]|원|천|짜리|을| |를|에|선을|$)").match(
        sentence, start
    )
    assert match, sentence
    rest = sentence[match.end(1) :].strip()
    counters = [counter for counter in AFTER_NATIVE | AFTER_SINO if rest.startswith(counter)]
    counter = max(counters, key=len)
    return (match[1] in NATIVE) == (counter in AFTER_NATIVE)


COUNTED = {
    "명": "학생 친구 의사 기자 손님 아이 개발자 배우 군인 직원 가수 선생님 간호사 관객",
    "마리": "고양이 강아지 토끼 닭 오리 새 소 말 돼지 물고기 거북이 염소 양 나비",
    "권": "책 소설책 공책 사전 잡지 만화책 시집 동화책 교과서 수첩 일기장",
    "대": "자동차 컴퓨터 자전거 버스 비행기 카메라 냉장고 세탁기 텔레비전 노트북 서버 트럭",
    "잔": "커피 녹차 홍차 주스 물 우유 보리차 코코아",
    "켤레": "양말 구두 운동화 장갑 장화 등산화 실내화",
    "송이": "장미 꽃 국화 튤립 백합 해바라기",
    "그루": "나무 소나무 감나무 사과나무 은행나무 벚나무",
    "채": "집 기와집 초가집 한옥 별장 오두막",
    "벌": "옷 양복 한복 정장 외투 원피스 교복",
    "장": "사진 표 엽서 수건 우표 손수건 색종이 영화표",
}


def check_counter(sentence: str, pair: Pair) -> bool:
    del pair
    match = re.search(r"(\w+)[을를이가] (?:두|세|네|다섯|여섯|일곱) (\w+) ", sentence)
    assert match, sentence
    return match[1] in COUNTED[match[2]].split()


def has_honorific(sentence: str) -> bool:
    return re.search(r"셨(다|습니다|어요)\.$", sentence) is not None


def check_subject(sentence: str, pair: Pair) -> bool:
    del pair
    is_speaker = sentence.split()[0] in ("나는", "내가", "저는", "제가")
    assert is_speaker != ("께서 " in sentence)
    return has_honorific(sentence) != is_speaker


def check_recipient(sentence: str, pair: Pair) -> bool:
    del pair
    assert ("께 " in sentence) != ("에게 " in sentence)
    return ("께 " in sentence) == (re.search(r" 드렸\w+\.$", sentence) is not None)


def check_tense(sentence: str, pair: Pair) -> bool:
    del pair
    is_future = re.search(r" (내일|모레|내년|내후년)", sentence) is not None
    assert is_future != (re.search(r" (어제|그저께|지난|작년|재작년)", sentence) is not None)
    says_future = re.search(r"[가-힣] (것이다|것입니다|거예요)\.$", sentence) is not None
    if says_future:
        assert get_final(re.split(r" 것| 거예요", sentence)[0][-1]) == RIEUL, sentence
    return says_future == is_future


DURATION = re.compile(r"(시간째|줄곧|계속|오래전부터|며칠째|일주일째) ")


def check_aspect(sentence: str, pair: Pair) -> bool:
    del pair
    is_state = DURATION.search(sentence) is not None
    return (re.search(r"고 있[가-힣]+\.$", sentence) is None) == is_state


def check_command(sentence: str, pair: Pair) -> bool:
    del pair
    match = re.search(
        r"지 ([말않])(자|아라|아 주세요|아 주십시오|았다|았습니다|았어요|았다고 한다)\.$", sentence
    )
    assert match, sentence
    return (match[1] == "않") == match[2].startswith("았")


def is_negated(sentence: str) -> bool:
    return re.search(r"지 않았\w+( 한다| 말했다)?\.$", sentence) is not None


def check_negated_verb(sentence: str, pair: Pair) -> bool:
    del pair
    asks = re.search(r"(아무도|결코) ", sentence) is not None
    assert asks != (re.search(r"(벌써|이미) ", sentence) is not None)
    return is_negated(sentence) == asks


def check_polarity(sentence: str, pair: Pair) -> bool:
    del pair
    asks = re.search(r" (전혀|별로|그다지|조금도) ", sentence) is not None
    assert asks != (re.search(r" (꽤|제법) ", sentence) is not None)
    return is_negated(sentence) == asks


def check_not_yet(sentence: str, pair: Pair) -> bool:
    del pair
    assert (" 아직 " in sentence) != (re.search(r" (벌써|이미) ", sentence) is not None)
    return is_negated(sentence) == (" 아직 " in sentence)


def check_negation_spelling(sentence: str, pair: Pair) -> bool:
    del pair
    words = sentence.split()
    position = next(index for index, word in enumerate(words) if word[0] in "안않" and index > 0)
    follows_ji, is_auxiliary = words[position - 1].endswith("지"), words[position].startswith("않")
    assert (len(words[position]) == 1) != follows_ji
    return follows_ji == is_auxiliary


DEGREES = parse_words("아주 매우 꽤 무척")
MODIFIERS = parse_words(
    "새 빨간 예쁜 비싼 작은 멋진 검은 낡은 긴 어려운 재미있는 유명한 짧은 간단한 복잡한 유용한 중요한 큰 따뜻한 "
    "맛있는 매운 특별한 값싼 만든 준비한 산 쓴 고친 좋아하는 추천한 고른"
)


def check_order(sentence: str, pair: Pair) -> bool:
    """Finds a modifier before the last noun, and a degree only before a modifier."""
    del pair
    *_, before, last = sentence.split()[:-1]
    degrees = [first in DEGREES and second not in MODIFIERS for first, second in pairwise(sentence.split())]
    return before in MODIFIERS and last not in MODIFIERS and not any(degrees)


NOUNS_LIKE_VERBS = ("어른", "사실")
"""Nouns whose last consonant is that of an adnominal form."""


def check_spacing_bound_noun(sentence: str, pair: Pair) -> bool:
    start = find_spans(pair)[0]
    before = re.split(r"[ .]", pair.good[:start])[-1]
    is_verb = before == "시키는" or get_final(before[-1]) in ("\u11ab", RIEUL)
    if before in NOUNS_LIKE_VERBS or re.search(r"(사람은|사람이) \w+$", pair.good[:start]):
        is_verb = False
    return (sentence[start] == " ") == is_verb


def check_spacing_particle(sentence: str, pair: Pair) -> bool:
    start = find_spans(pair)[0]
    rest = sentence[start:].strip()
    is_bound_noun = rest.startswith(("수 있", "수 없", "적이 있", "적이 없"))
    assert is_bound_noun != rest.startswith(("에서", "까지", "도 ", "만 ", "부터", "보다", "에게", "처럼"))
    return sentence[start].isspace() == is_bound_noun


def find_tense(sentence: str) -> str:
    return "future" if re.search(r" (것이다|것입니다|거예요)\.$", sentence) else "past"


ROOTS: dict[str, Callable[[str], object]] = {
    "subject_honorific": has_honorific,
    "tense": find_tense,
    "aspect": lambda sentence: re.search(r"고 있[가-힣]+\.$", sentence) is not None,
    "negated_verb": is_negated,
}
"""What differs in the pairs whose verbs change with it."""

CHECKS: dict[str, Callable[[str, Pair], bool]] = {
    "subject_particle": check_particle("이", "가"),
    "topic_particle": check_particle("은", "는"),
    "object_particle": check_particle("을", "를"),
    "and_particle": check_particle("과", "와"),
    "direction_particle": check_particle("으로", "로"),
    "or_particle": check_particle("이나", "나"),
    "quotation_particle": check_particle("이라고", "라고"),
    "subject_honorific": check_subject,
    "recipient_honorific": check_recipient,
    "tense": check_tense,
    "aspect": check_aspect,
    "numeral_system": check_numeral,
    "counter": check_counter,
    "negative_command": check_command,
    "negated_verb": check_negated_verb,
    "polarity_adverb": check_polarity,
    "not_yet": check_not_yet,
    "negation_spelling": check_negation_spelling,
    "modifier_order": check_order,
    "spacing_bound_noun": check_spacing_bound_noun,
    "spacing_particle": check_spacing_particle,
}
