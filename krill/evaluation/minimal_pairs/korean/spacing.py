"""Spacing: a bound noun is separate from the verb before it, a particle is joined to its noun."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.korean.actions import DAILY_ACTIONS, TRANSITIVE_ACTIONS
from krill.evaluation.minimal_pairs.korean.words import (
    CODE_NOUNS,
    GIVEN_NAMES,
    KNOWN_PEOPLE,
    PLACE_NOUNS,
    SMALL_THING_NOUNS,
    choose_topic,
    read_lines,
)
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_AFTER_VERB = read_lines("""
    {who} 아는_대로 대답했다.
    {who} 들은_대로 전했다.
    {who} 본_대로 그렸다.
    {who} 배운_대로 설명했다.
    {who} 시키는_대로 움직였다.
    {who} 느낀_대로 말했다.
    {who} 먹을_만큼 먹었다.
    {who} 필요한_만큼 준비했다.
    {who} 일한_만큼 돈을 받았다.
    {who} 노력한_만큼 좋은 결과를 얻었다.
    {who} 가질_만큼 가졌다.
    {who} 웃을_뿐 대답하지 않았다.
    {who} 조용히 들을_뿐이다.
    {who} 할 일을 했을_뿐이다.
    {who} 가만히 바라볼_뿐이었다.
    {who} 고개를 끄덕일_뿐이었다.
""")
_AFTER_NOUN = read_lines("""
    {who} 약속_대로 일찍 왔다.
    {who} 계획_대로 여행을 떠났다.
    {who} 사실_대로 대답했다.
    {who} 규칙_대로 움직였다.
    {who} 순서_대로 설명했다.
    {who} 설명서_대로 가구를 조립했다.
    {who} 형_만큼 키가 크다.
    {who} 어른_만큼 많이 먹었다.
    {who} 전문가_만큼 잘 안다.
    {who} 아나운서_만큼 말을 잘한다.
    {who} 선배_만큼 일을 잘한다.
    {who} 가족_뿐 아니라 친구도 초대했다.
    {who} 빵_뿐 아니라 국수도 만든다.
    {who} 영어_뿐 아니라 일본어도 배운다.
    그 일을 아는 사람은 {name}_뿐이다.
    {who} 믿는 사람이 {name}_뿐이었다.
""")
"""An underscore is where a space is right or wrong."""

_POSSIBILITIES = ("수 있다.", "수 있습니다.", "수 없다.", "수 없었다.")
_JOINED = (
    (
        PLACE_NOUNS,
        read_lines("""
            {who} {}_에서 친구를 기다렸다.
            {who} {}_까지 걸어갔다.
            {who} {}_에서 나왔다.
            그 사고는 {}_에서 일어났다.
        """),
    ),
    (
        SMALL_THING_NOUNS,
        read_lines("""
            {who} {}_도 샀다.
            {who} {}_만 골랐다.
            {who} {}_까지 챙겼다.
        """),
    ),
    (
        CODE_NOUNS,
        read_lines("""
            {who} {}_부터 확인했다.
            {who} {}_도 고쳤다.
            {who} {}_만 지웠다.
        """),
    ),
    (
        (*GIVEN_NAMES, *KNOWN_PEOPLE),
        read_lines("""
            {who} {}_보다 키가 크다.
            {who} {}_에게 책을 빌려주었다.
            {who} {}_처럼 말한다.
        """),
    ),
)


def _join(sentence: str, is_joined: bool) -> str:
    return sentence.replace("_", "" if is_joined else " ")


def _draw_bound_noun(random: Random, side: int) -> Pair:
    sentence = random.choice((_AFTER_VERB, _AFTER_NOUN)[side])
    name = random.choice(GIVEN_NAMES)
    sentence = sentence.replace("{who}", choose_topic(random, name)).replace("{name}", name)
    return Pair(_join(sentence, side == 1), _join(sentence, side == 0))


def _draw_particle(random: Random, side: int) -> Pair:
    if side == 1:
        nouns, sentences = random.choice(_JOINED)
        noun = random.choice(nouns)
        sentence = random.choice(sentences).replace("{who}", choose_topic(random, noun)).replace("{}", noun)
        return Pair(_join(sentence, True), _join(sentence, False))
    action = random.choice((*DAILY_ACTIONS, *TRANSITIVE_ACTIONS))
    if random.random() < 0.5:
        sentence = f"{choose_topic(random)} {action.future}_{random.choice(_POSSIBILITIES)}"
    else:
        ending = random.choice(("있다.", "없다.", "있습니다.", "없습니다."))
        sentence = f"{choose_topic(random)} {action.past_adnominal}_적이 {ending}"
    return Pair(_join(sentence, False), _join(sentence, True))


SPACING = (
    Phenomenon(
        "spacing_bound_noun",
        "ko",
        "The words 대로, 만큼 and 뿐 are separate after a verb and joined to a noun.",
        Pair("민수는 아는 대로 대답했다.", "민수는 아는대로 대답했다."),
        2,
        _draw_bound_noun,
    ),
    Phenomenon(
        "spacing_particle",
        "ko",
        "A particle is joined to its noun, the bound nouns of -(으)ㄹ 수 있다 and -(으)ㄴ 적이 있다 are separate.",
        Pair("민수는 도서관에서 친구를 기다렸다.", "민수는 도서관 에서 친구를 기다렸다."),
        2,
        _draw_particle,
    ),
)
