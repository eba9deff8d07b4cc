"""Negation: -지 않다 in statements and -지 말다 in commands, and words that ask for a negated verb or exclude it."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.korean.actions import TRANSITIVE_ACTIONS
from krill.evaluation.minimal_pairs.korean.conjugation import Predicate, parse_predicates
from krill.evaluation.minimal_pairs.korean.words import choose_topic, read_lines
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_COMMAND_TIMES = ("", "지금은 ", "오늘은 ", "아직 ", "절대로 ", "당분간 ")
_COMMAND_ENDINGS = ("자.", "아라.", "아 주세요.", "아 주십시오.")
_STATEMENT_TIMES = ("", "어제 ", "지난주에 ", "그날 ", "끝내 ")
_STATEMENT_ENDINGS = ("았다.", "았습니다.", "았어요.", "았다고 한다.")

_NOBODY_TIMES = ("", "어제 ", "지난주에 ", "그날 ", "처음에는 ", "우리 중에서 ", "회사에서 ", "그때는 ")
_EVERYBODY_TIMES = ("", "어제 ", "지난주에 ", "그날 ", "그때는 ", "회사에서 ", "우리는 ")
_PAST_ENDINGS = ("다.", "습니다.", "어요.")

_QUALITIES = (
    (
        read_lines("""
            이 영화는
            그 소설은
            이 드라마는
            그 만화는
            이 책은
            그 이야기는
        """),
        parse_predicates("""
            재미있다/재미있어
            길다/길어
            유명하다/유명해
            슬프다/슬퍼
            무섭다/무서워
            어렵다/어려워
            감동적이다/감동적이어
        """),
    ),
    (
        read_lines("""
            이 식당은
            이 섬은
            그 호텔은
            이 가게는
            그 카페는
            이 도서관은
            그 공원은
            이 미술관은
        """),
        parse_predicates("""
            크다/커
            멀다/멀어
            조용하다/조용해
            유명하다/유명해
        """),
    ),
    (
        read_lines("""
            이 프로그램은
            이 알고리즘은
            그 코드는
            새로운 방법은
            이 모델은
            그 라이브러리는
        """),
        parse_predicates("""
            빠르다/빨라
            느리다/느려
            복잡하다/복잡해
            간단하다/간단해
            유용하다/유용해
            어렵다/어려워
            새롭다/새로워
        """),
    ),
    (
        read_lines("""
            그 음식은
            이 김치는
            그 국은
            이 떡볶이는
            그 찌개는
            이 라면은
        """),
        parse_predicates("""
            맵다/매워
            짜다/짜
            비싸다/비싸
            맛있다/맛있어
            뜨겁다/뜨거워
        """),
    ),
)
_POLARITY_ADVERBS = (("전혀", "꽤"), ("별로", "꽤"), ("그다지", "제법"), ("조금도", "제법"), ("전혀", "제법"))
"""Those of negated predicates, and those of others."""

_SIMPLE_ACTIONS = tuple(action for action in TRANSITIVE_ACTIONS if not action.stem.endswith("하"))
"""Those whose verb is not a noun with 하다, which 안 would divide."""
_NEGATION_TIMES = ("", "어제 ", "지난주에 ", "그날 ", "결국 ", "그때 ")

_NOT_YET_ENDINGS = ("다.", "습니다.", "어요.", "다고 한다.", "다고 말했다.")


def _negate(action: Predicate) -> str:
    """책을 읽지 않았"""
    return f"{action.bare}지 않았"


def _draw_command(random: Random, side: int) -> Pair:
    action = random.choice(TRANSITIVE_ACTIONS)
    if side == 0:
        beginning, ending = random.choice(_COMMAND_TIMES), random.choice(_COMMAND_ENDINGS)
    else:
        beginning = f"{choose_topic(random)} {random.choice(_STATEMENT_TIMES)}"
        ending = random.choice(_STATEMENT_ENDINGS)
    command, statement = (f"{beginning}{action.bare}지 {negation}{ending}" for negation in ("말", "않"))
    return Pair(command, statement) if side == 0 else Pair(statement, command)


def _draw_negated_verb(random: Random, side: int) -> Pair:
    action, ending = random.choice(TRANSITIVE_ACTIONS), random.choice(_PAST_ENDINGS)
    if random.random() < 0.5:
        subject = "아무도" if side == 0 else f"{random.choice(('벌써', '이미'))} 모두"
        beginning = f"{random.choice((_NOBODY_TIMES, _EVERYBODY_TIMES)[side])}{subject} "
    else:
        beginning = f"{choose_topic(random)} {'결코' if side == 0 else random.choice(('벌써', '이미'))} "
    negated, affirmed = beginning + _negate(action) + ending, beginning + action.past + ending
    return Pair(negated, affirmed) if side == 0 else Pair(affirmed, negated)


def _draw_polarity_adverb(random: Random, side: int) -> Pair:
    subjects, qualities = random.choice(_QUALITIES)
    subject, quality = random.choice(subjects), random.choice(qualities)
    ending = random.choice(_PAST_ENDINGS)
    predicate = (_negate(quality) if side == 0 else quality.past) + ending
    negative, positive = (f"{subject} {adverb} {predicate}" for adverb in random.choice(_POLARITY_ADVERBS))
    return Pair(negative, positive) if side == 0 else Pair(positive, negative)


def _draw_not_yet(random: Random, side: int) -> Pair:
    action = random.choice(TRANSITIVE_ACTIONS)
    predicate = (_negate(action) if side == 0 else action.past) + random.choice(_NOT_YET_ENDINGS)
    topic = choose_topic(random)
    yet, already = (f"{topic} {time} {predicate}" for time in ("아직", random.choice(("벌써", "이미"))))
    return Pair(yet, already) if side == 0 else Pair(already, yet)


def _draw_negation_spelling(random: Random, side: int) -> Pair:
    action, ending = random.choice(_SIMPLE_ACTIONS), random.choice(_NOT_YET_ENDINGS)
    beginning = f"{choose_topic(random)} {random.choice(_NEGATION_TIMES)}{action.phrase}"
    if side == 0:
        good, bad = (f"{beginning}{negation} {action.past_stem}{ending}" for negation in ("안", "않"))
    else:
        good, bad = (f"{beginning}{action.stem}지 {negation}았{ending}" for negation in ("않", "안"))
    return Pair(good, bad)


NEGATION = (
    Phenomenon(
        "negative_command",
        "ko",
        "A command or a proposal is negated by -지 말다, a statement by -지 않다.",
        Pair("오늘은 그 책을 읽지 말자.", "오늘은 그 책을 읽지 않자."),
        2,
        _draw_command,
    ),
    Phenomenon(
        "negated_verb",
        "ko",
        "The words 아무도 and 결코 ask for a negated verb, 벌써 and 이미 exclude the negation of what has happened.",
        Pair("아무도 그 책을 읽지 않았다.", "아무도 그 책을 읽었다."),
        2,
        _draw_negated_verb,
    ),
    Phenomenon(
        "polarity_adverb",
        "ko",
        "The adverbs 전혀, 별로, 그다지 and 조금도 modify negated predicates, 꽤 and 제법 affirmed ones.",
        Pair("이 영화는 전혀 무섭지 않았다.", "이 영화는 꽤 무섭지 않았다."),
        2,
        _draw_polarity_adverb,
    ),
    Phenomenon(
        "not_yet",
        "ko",
        "What has not happened so far is said with 아직, what has happened with 벌써 or 이미.",
        Pair("민수는 아직 그 책을 읽지 않았다.", "민수는 벌써 그 책을 읽지 않았다."),
        2,
        _draw_not_yet,
    ),
    Phenomenon(
        "negation_spelling",
        "ko",
        "The adverb before a negated verb is written 안, the auxiliary verb after -지 is 않다.",
        Pair("민수는 어제 그 책을 안 읽었다.", "민수는 어제 그 책을 않 읽었다."),
        2,
        _draw_negation_spelling,
    ),
)
