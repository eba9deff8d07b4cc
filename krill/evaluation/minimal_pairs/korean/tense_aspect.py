"""Tense with time words, and aspect: -고 있다 for an activity, -아/어 있다 for the state that an event leaves."""

from __future__ import annotations

from random import Random
from unicodedata import normalize

from krill.evaluation.minimal_pairs.korean.actions import DAILY_ACTIONS, LIFE_EVENTS
from krill.evaluation.minimal_pairs.korean.conjugation import Predicate, parse_predicates
from krill.evaluation.minimal_pairs.korean.words import choose_topic, read_lines
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_TIMES = (
    (
        DAILY_ACTIONS,
        ("어제", "그저께", "어제 아침에", "어제 오후에", "어제저녁에", "지난 일요일에", "지난주에"),
        ("내일", "모레", "내일 아침에", "내일 오후에", "내일 저녁에", "모레 아침에", "모레 오후에"),
    ),
    (
        LIFE_EVENTS,
        ("작년에", "재작년에", "작년 봄에", "작년 여름에", "작년 가을에", "작년 겨울에"),
        ("내년에", "내후년에", "내년 봄에", "내년 여름에", "내년 가을에", "내년 겨울에"),
    ),
)
_TENSE_ENDINGS = (("다.", " 것이다."), ("습니다.", " 것입니다."), ("어요.", " 거예요."))

_ACTIVITIES = parse_predicates("""
    방에서 책을 읽다/읽어
    거실에서 신문을 읽다/읽어
    식당에서 점심을 먹다/먹어
    부엌에서 그릇을 씻다/씻어
    공원에서 사진을 찍다/찍어
    도서관에서 자료를 찾다/찾아
    교실에서 책상을 닦다/닦아
    방에서 옷을 입다/입어
    카페에서 커피를 마시다/마셔
    교실에서 그림을 그리다/그려
    방에서 음악을 틀다/틀어
    회사에서 프로그램을 고치다/고쳐
    마당에서 빨래를 널다/널어
    마당에서 나무를 심다/심어
    공원에서 도시락을 먹다/먹어
    정류장에서 버스를 기다리다/기다려
    학교에서 영어를 가르치다/가르쳐
    방에서 낮잠을 자다/자
    옥상에서 연을 날리다/날려
    시장에서 과일을 사다/사
    카페에서 친구를 만나다/만나
    강에서 물고기를 잡다/잡아
    부엌에서 감자를 깎다/깎아
    부엌에서 고기를 굽다/구워
    마당에서 생선을 굽다/구워
""")
_STATES = parse_predicates("""
    책상 위에 책이 놓이다/놓여
    식탁 위에 꽃병이 놓이다/놓여
    벽에 그림이 걸리다/걸려
    벽에 달력이 걸리다/걸려
    옷장에 외투가 걸리다/걸려
    책장에 소설책이 꽂히다/꽂혀
    가방에 책이 들다/들어
    상자에 편지가 들다/들어
    지갑에 돈이 들다/들어
    냉장고에 우유가 남다/남아
    접시에 빵이 남다/남아
    프로그램에 오류가 남다/남아
    벽에 지도가 붙다/붙어
    봉투에 우표가 붙다/붙어
    벽에 사진이 붙다/붙어
    옆방이 비다/비어
    그 집이 비다/비어
    창고가 비다/비어
    가게 문이 닫히다/닫혀
    집 앞에 차가 서다/서
    길가에 트럭이 서다/서
""")
_POSTURES = parse_predicates("""
    의자에 앉다/앉아
    창가에 앉다/앉아
    침대에 눕다/누워
    소파에 눕다/누워
    문 앞에 서다/서
    나무 아래에 서다/서
    나무 뒤에 숨다/숨어
    문 뒤에 숨다/숨어
""")
_DURATIONS = read_lines("""
    한 시간째
    두 시간째
    세 시간째
    아침부터 줄곧
    아까부터 계속
""")
_STATE_TIMES = ("어제부터 계속", "오래전부터", "며칠째", "일주일째")
"""Rule out the event itself, for which -고 있다 would be right."""
_IS = ("있다.", "있습니다.", "있어요.", "있었다.", "있었습니다.")


def _draw_tense(random: Random, side: int) -> Pair:
    actions, past_times, future_times = random.choice(_TIMES)
    action = random.choice(actions)
    past_ending, future_ending = random.choice(_TENSE_ENDINGS)
    beginning = f"{choose_topic(random)} {random.choice((past_times, future_times)[side])} "
    past = beginning + action.past + past_ending
    future = beginning + action.future + future_ending
    return Pair(past, future) if side == 0 else Pair(future, past)


def _describe_change(predicate: Predicate) -> tuple[str, str]:
    """Returns what the infinitive replaces at the end of the stem, and by what: ㅣ and ㅕ for 놓이, 놓여."""
    stem, infinitive = (normalize("NFD", form) for form in (predicate.stem, predicate.infinitive))
    while stem and infinitive and stem[0] == infinitive[0]:
        stem, infinitive = stem[1:], infinitive[1:]
    return stem, infinitive


def _draw_aspect(random: Random, side: int) -> Pair:
    """Draws a state (side 1), or an activity whose forms differ in the same letters as those of a state (side 0)."""
    ending = random.choice(_IS)
    if random.random() < 0.6:
        event = random.choice(_STATES)
        beginning = random.choice(_STATE_TIMES)
    else:
        event = random.choice(_POSTURES)
        beginning = f"{choose_topic(random)} {random.choice(_DURATIONS)}"
    if side == 0:
        change = _describe_change(event)
        event = random.choice([action for action in _ACTIVITIES if _describe_change(action) == change])
        beginning = choose_topic(random)
    activity = f"{beginning} {event.bare}고 {ending}"
    state = f"{beginning} {event.connected} {ending}"
    return Pair(activity, state) if side == 0 else Pair(state, activity)


TENSE_AND_ASPECT = (
    Phenomenon(
        "tense",
        "ko",
        "A time word of the past goes with the past tense, one of the future with the future.",
        Pair("민수는 내일 친구를 만날 것이다.", "민수는 내일 친구를 만났다."),
        2,
        _draw_tense,
    ),
    Phenomenon(
        "aspect",
        "ko",
        "An activity in progress takes -고 있다, the state that an intransitive event leaves -아/어 있다.",
        Pair("며칠째 가방에 책이 들어 있다.", "며칠째 가방에 책이 들고 있다."),
        2,
        _draw_aspect,
    ),
)
