"""Word order: what modifies a noun stands before it, and a degree before what it modifies."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.korean.hangul import attach_particle
from krill.evaluation.minimal_pairs.korean.words import GIVEN_NAMES, choose_topic
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_DESCRIBED = (
    (
        "새 빨간 예쁜 비싼 작은 멋진 검은 낡은",
        "모자를 구두를 가방을 치마를 시계를 장갑을 우산을",
        "샀다 골랐다 빌렸다 찾았다 받았다",
    ),
    (
        "새 긴 어려운 재미있는 유명한 짧은",
        "책을 소설을 보고서를 기사를 논문을 시를",
        "읽었다 썼다 소개했다 찾았다 번역했다",
    ),
    (
        "새 간단한 복잡한 유용한 중요한 큰",
        "프로그램을 함수를 클래스를 모델을 모듈을 파일을",
        "만들었다 지웠다 고쳤다 시험했다 설명했다",
    ),
    (
        "따뜻한 맛있는 매운 특별한 값싼",
        "국수를 음식을 찌개를 떡볶이를 요리를 국을",
        "먹었다 만들었다 주문했다 준비했다",
    ),
)
"""Adjectives, objects and verbs of one meaning each."""
_MADE = (
    ("음식은 국수는 떡은 김치는", "만든 준비한 산", "맛있다 맵다 짜다 특별하다"),
    ("프로그램은 코드는 보고서는 기사는", "쓴 만든 고친", "길다 간단하다 훌륭하다 유용하다"),
    ("책은 영화는 노래는 음악은", "좋아하는 추천한 고른", "좋다 길다 지루하다 유명하다"),
)
_NOT_GRADABLE = ("새",)


def _draw_adjective(random: Random) -> Pair:
    adjectives, things, verbs = (words.split() for words in random.choice(_DESCRIBED))
    adjective, thing, verb = random.choice(adjectives), random.choice(things), random.choice(verbs)
    topic = choose_topic(random)
    return Pair(f"{topic} {adjective} {thing} {verb}.", f"{topic} {thing} {adjective} {verb}.")


def _draw_clause(random: Random) -> Pair:
    things, made, qualities = (words.split() for words in random.choice(_MADE))
    thing, participle = random.choice(things), random.choice(made)
    quality = random.choice(qualities)
    maker = attach_particle(random.choice(GIVEN_NAMES), "이/가")
    return Pair(f"{maker} {participle} {thing} {quality}.", f"{maker} {thing} {participle} {quality}.")


def _draw_degree(random: Random) -> Pair:
    adjectives, things, verbs = (words.split() for words in random.choice(_DESCRIBED))
    adjective = random.choice([adjective for adjective in adjectives if adjective not in _NOT_GRADABLE])
    degree = random.choice(("아주", "매우", "꽤", "무척"))
    thing, verb, topic = random.choice(things), random.choice(verbs), choose_topic(random)
    return Pair(
        f"{topic} {degree} {adjective} {thing} {verb}.", f"{topic} {adjective} {degree} {thing} {verb}."
    )


def _draw_order(random: Random, side: int) -> Pair:
    return (_draw_adjective, _draw_clause, _draw_degree)[side](random)


MODIFIER_ORDER = (
    Phenomenon(
        "modifier_order",
        "ko",
        "Adjectives and clauses stand before the noun that they modify, adverbs of degree before the adjective.",
        Pair("민수는 빨간 모자를 샀다.", "민수는 모자를 빨간 샀다."),
        3,
        _draw_order,
    ),
)
