"""Honorific agreement of the verb with its subject (-시-) and with the recipient (드리다)."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.korean.actions import DAILY_ACTIONS
from krill.evaluation.minimal_pairs.korean.words import choose_topic
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_RESPECTED_PEOPLE = (
    "할머니",
    "할아버지",
    "외할머니",
    "외할아버지",
    "선생님",
    "어머니",
    "아버지",
    "교수님",
    "사장님",
    "교장 선생님",
    "원장님",
    "회장님",
    "큰아버지",
    "작은어머니",
    "목사님",
    "과장님",
    "부장님",
)
_OTHER_PEOPLE = ("동생", "아이", "친구", "조카", "후배", "막냇동생", "어린 사촌", "이웃 아이", "짝꿍", "꼬마")
_HONORIFIC_TIMES = ("", "어제 ", "그저께 ", "지난주에 ", "어제 오후에 ", "지난 일요일에 ")
_PLAIN_SUBJECTS = ("나는", "내가")
_POLITE_SUBJECTS = ("저는", "제가")
_HONORIFIC_ENDINGS = ("다.", "습니다.", "어요.")

_GIFTS = (
    "선물을", "꽃을", "편지를", "사과를", "손수건을", "사진을", "떡을", "책을", "장갑을", "모자를", "과자를",
    "따뜻한 차를", "물 한 잔을", "목도리를", "우산을", "달력을", "안경을", "연필을", "귤을",
)  # fmt: skip
_FAVORS = (
    "책을 읽어", "길을 가르쳐", "사진을 보여", "점심을 사", "노래를 불러", "우산을 빌려", "편지를 써", "소식을 알려",
    "컴퓨터를 고쳐", "짐을 들어", "문을 열어", "신문을 읽어", "그림을 그려", "저녁을 만들어", "사진을 찍어",
    "프로그램을 설치해", "휴대폰을 고쳐", "결과를 설명해", "과일을 깎아", "꽃을 사",
)  # fmt: skip


def _draw_subject_honorific(random: Random, side: int) -> Pair:
    action = random.choice(DAILY_ACTIONS)
    ending = random.choice(_HONORIFIC_ENDINGS)
    if side == 0:
        subject = random.choice(_RESPECTED_PEOPLE) + "께서"
    else:
        subject = random.choice(_PLAIN_SUBJECTS if ending == "다." else _POLITE_SUBJECTS)
    beginning = f"{subject} {random.choice(_HONORIFIC_TIMES)}"
    honorific, plain = beginning + action.honorific_past + ending, beginning + action.past + ending
    return Pair(honorific, plain) if side == 0 else Pair(plain, honorific)


def _draw_recipient_honorific(random: Random, side: int) -> Pair:
    ending = random.choice(_HONORIFIC_ENDINGS)
    recipient = random.choice((_RESPECTED_PEOPLE, _OTHER_PEOPLE)[side])
    giver = choose_topic(random, recipient) if ending == "다." or random.random() < 0.5 else "저는"
    given = random.choice(random.choice((_GIFTS, _FAVORS)))
    beginning = f"{giver} {recipient}{('께', '에게')[side]} {given} "
    honorific, plain = f"{beginning}드렸{ending}", f"{beginning}주었{ending}"
    return Pair(honorific, plain) if side == 0 else Pair(plain, honorific)


HONORIFICS = (
    Phenomenon(
        "subject_honorific",
        "ko",
        "A verb takes -시- if its subject has the honorific particle 께서, and never if it is the speaker.",
        Pair("할머니께서 신문을 읽으셨다.", "할머니께서 신문을 읽었다."),
        2,
        _draw_subject_honorific,
    ),
    Phenomenon(
        "recipient_honorific",
        "ko",
        "Giving takes 드리다 for a respected recipient, whose particle is 께, and 주다 for others.",
        Pair("나는 할머니께 꽃을 드렸다.", "나는 할머니께 꽃을 주었다."),
        2,
        _draw_recipient_honorific,
    ),
)
