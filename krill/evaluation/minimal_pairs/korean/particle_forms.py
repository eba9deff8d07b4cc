"""Particles whose form depends on the final consonant of the noun: 이/가, 은/는, 을/를, 와/과, 으로/로, 이나/나."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from krill.evaluation.minimal_pairs.korean.hangul import attach_particle, get_final_consonant
from krill.evaluation.minimal_pairs.korean.words import (
    CODE_NOUNS,
    COMPUTER_NOUNS,
    DISH_NOUNS,
    DRINK_NOUNS,
    FILM_PART_NOUNS,
    GIVEN_NAMES,
    INGREDIENT_NOUNS,
    NEWS_NOUNS,
    PLACE_NOUNS,
    PROFESSION_NOUNS,
    ROLE_NOUNS,
    SMALL_THING_NOUNS,
    WORK_NOUNS,
    choose_topic,
    read_lines,
    read_words,
)
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon


@dataclass(frozen=True)
class SentenceGroup:
    """Nouns of one meaning, and sentences that any of them completes."""

    nouns: Sequence[str]
    sentences: tuple[str, ...]
    """{} is the noun with its particle, {who} who the topic is, {other} another noun of the group."""


SUBJECTS = (
    SentenceGroup(
        ROLE_NOUNS,
        read_lines("""
            {} 문을 열고 들어왔다.
            {} 창문을 조용히 닫았다.
            {} 나에게 길을 물었다.
            {} 웃으면서 인사했다.
            {} 밝은 목소리로 전화를 받았다.
            {} 큰 소리로 대답했다.
            {} 버스에서 내렸다.
            저기 {} 서 있다.
            이 편지는 {} 썼다.
            이 사진은 {} 찍었다.
            {} 추천한 영화를 보았다.
            {} 보낸 메일을 읽었다.
            {} 어제 우리 집에 왔다.
            {} 그 사실을 이미 알고 있었다.
            {} 갑자기 자리에서 일어났다.
            {} 작성한 보고서를 확인했다.
        """),
    ),
    SentenceGroup(
        GIVEN_NAMES,
        read_lines("""
            {} 가장 먼저 도착했다.
            {} 오늘 회의에 늦었다.
            어제 {} 우리 집에 왔다.
            {} 만든 음식은 모두 맛있다.
            {} 그린 그림이 벽에 걸려 있다.
            이 코드는 {} 작성했다.
            {} 고른 영화는 지루했다.
            {} 문제의 답을 찾았다.
            {} 이번 대회에서 우승했다.
            {} 나보다 키가 크다.
        """),
    ),
    SentenceGroup(
        DISH_NOUNS,
        read_lines("""
            이 식당은 {} 맛있다.
            이 식당은 {} 아주 유명하다.
            오늘은 {} 먹고 싶다.
            식탁 위에 {} 놓여 있다.
            {} 방금 나왔다.
            {} 생각보다 비싸다.
        """),
    ),
    SentenceGroup(
        INGREDIENT_NOUNS,
        read_lines("""
            냉장고에 {} 조금 남아 있다.
            장바구니에 {} 들어 있다.
            올해는 {} 작년보다 비싸다.
            시장에 {} 많이 나왔다.
            {} 다 떨어져서 시장에 갔다.
            {} 몸에 좋다고 한다.
        """),
    ),
    SentenceGroup(
        SMALL_THING_NOUNS,
        read_lines("""
            {} 책상 위에 있다.
            {} 바닥에 떨어졌다.
            선물로 받은 {} 마음에 든다.
            {} 어디에 있는지 모르겠다.
            새로 산 {} 벌써 더러워졌다.
            상자 안에 {} 들어 있다.
        """),
    ),
    SentenceGroup(
        FILM_PART_NOUNS,
        read_lines("""
            이 영화는 {} 정말 좋다.
            이 드라마는 {} 아쉽다.
            {} 마음에 들지 않았다.
            {} 훌륭한 작품이다.
            {} 오래 기억에 남는다.
        """),
    ),
    SentenceGroup(
        CODE_NOUNS,
        read_lines("""
            다음 {} 필요하다.
            이 {} 중요한 이유를 설명한다.
            두 번째 {} 잘못되었다.
            새로운 {} 추가되었다.
            이 {} 어떻게 쓰이는지 알아보자.
        """),
    ),
    SentenceGroup(
        NEWS_NOUNS,
        read_lines("""
            그 {} 오늘 공개되었다.
            새로운 {} 나왔다.
            이 {} 시민들의 관심을 끌었다.
        """),
    ),
)
TOPICS = (
    SentenceGroup(
        ROLE_NOUNS,
        read_lines("""
            그 {} 매일 아침 공원을 걷는다.
            그 {} 커피를 좋아한다.
            그 {} 조용한 음악을 즐겨 듣는다.
            그 {} 주말마다 산에 오른다.
            그 {} 우리 동네에 산다.
            그 {} 오래된 자전거를 타고 다닌다.
            그 {} 약속을 잘 지킨다.
            그 {} 질문에 짧게 대답했다.
            그 {} 고개를 끄덕였다.
            그 {} 지난달에 이사를 했다.
            그 {} 아무 말도 하지 않았다.
        """),
    ),
    SentenceGroup(
        GIVEN_NAMES,
        read_lines("""
            {} 서울에서 태어났다.
            {} 여행을 좋아한다.
            {} 매일 일기를 쓴다.
            {} 작년에 대학교를 졸업했다.
            {} 프로그램을 만드는 일을 한다.
            {} 이 영화를 세 번이나 보았다.
            {} 내 가장 친한 친구이다.
            {} 요즘 새로운 언어를 배운다.
        """),
    ),
    SentenceGroup(
        DISH_NOUNS,
        read_lines("""
            이 식당의 {} 정말 맛있다.
            어제 먹은 {} 조금 짰다.
            {} 내가 가장 좋아하는 음식이다.
            {} 만들기가 쉽지 않다.
            내 동생이 만든 {} 아주 맛있었다.
        """),
    ),
    SentenceGroup(
        SMALL_THING_NOUNS,
        read_lines("""
            이 {} 어제 시장에서 샀다.
            그 {} 누구의 것인지 모르겠다.
            이 {} 선물로 받은 것이다.
            저 {} 너무 비싸다.
            새로 산 {} 아직 상자 안에 있다.
        """),
    ),
    SentenceGroup(
        PLACE_NOUNS,
        read_lines("""
            그 {} 우리 집에서 멀지 않다.
            이 {} 항상 사람이 많다.
            그 {} 주말에 조용하다.
            이 {} 이 도시에서 가장 유명하다.
        """),
    ),
    SentenceGroup(
        WORK_NOUNS,
        read_lines("""
            이 {} 정말 재미있다.
            그 {} 생각보다 지루했다.
            이 {} 어른들에게도 인기가 많다.
            그 {} 오래 기억에 남을 것이다.
        """),
    ),
    SentenceGroup(
        CODE_NOUNS,
        read_lines("""
            이 {} 더 이상 사용하지 않는다.
            다음 {} 이해하기 쉽다.
            이 {} 자주 사용된다.
            새로운 {} 이전과 많이 다르다.
        """),
    ),
    SentenceGroup(
        NEWS_NOUNS,
        read_lines("""
            이번 {} 많은 비판을 받았다.
            그 {} 다음 주에 공개된다.
            그 {} 시민들에게 중요하다.
        """),
    ),
)
OBJECTS = (
    SentenceGroup(
        ROLE_NOUNS,
        read_lines("""
            {who} 어제 길에서 {} 만났다.
            {who} 문 앞에서 {} 기다렸다.
            {who} 저녁 식사에 {} 초대했다.
            {who} 멀리서 {} 알아보았다.
            {who} 한 시간 동안 {} 도왔다.
        """),
    ),
    SentenceGroup(
        DISH_NOUNS,
        read_lines("""
            {who} 점심에 {} 먹었다.
            {who} 저녁으로 {} 먹었다.
            {who} 식당에서 {} 주문했다.
            {who} 친구와 함께 {} 나누어 먹었다.
        """),
    ),
    SentenceGroup(
        INGREDIENT_NOUNS,
        read_lines("""
            {who} 시장에서 {} 샀다.
            {who} 냉장고에서 {} 꺼냈다.
            {who} 요리에 쓸 {} 준비했다.
        """),
    ),
    SentenceGroup(
        SMALL_THING_NOUNS,
        read_lines("""
            {who} 백화점에서 {} 샀다.
            {who} 집에서 {} 가져왔다.
            {who} 책상 위에 {} 올려놓았다.
            {who} 생일 선물로 {} 받았다.
            {who} 방에서 {} 찾았다.
        """),
    ),
    SentenceGroup(
        WORK_NOUNS,
        read_lines("""
            {who} 오래된 {} 좋아한다.
            {who} 친구에게 그 {} 추천했다.
            {who} 새로운 {} 발표했다.
        """),
    ),
    SentenceGroup(
        COMPUTER_NOUNS,
        read_lines("""
            {who} 고장 난 {} 고쳤다.
            {who} 회사에서 쓸 {} 주문했다.
            {who} 오래된 {} 새것으로 바꾸었다.
        """),
    ),
    SentenceGroup(
        CODE_NOUNS,
        read_lines("""
            {who} 새로운 {} 추가했다.
            {who} 필요 없는 {} 지웠다.
            {who} 다음 {} 자세히 설명했다.
            {who} 잘못된 {} 고쳤다.
        """),
    ),
    SentenceGroup(
        NEWS_NOUNS,
        read_lines("""
            {who} 신문에서 그 {} 보았다.
            {who} 새로운 {} 소개했다.
        """),
    ),
)
COMPANIONS = (
    SentenceGroup(
        ROLE_NOUNS,
        read_lines("""
            {who} {} 함께 영화를 보았다.
            {who} {} 이야기를 나누었다.
            {who} 길에서 {} 마주쳤다.
            {who} 어제 {} 저녁을 먹었다.
        """),
    ),
    SentenceGroup(
        GIVEN_NAMES,
        read_lines("""
            {} {other|은/는} 같은 학교에 다닌다.
            {} {other|이/가} 함께 산책을 한다.
            {} {other|은/는} 오랜 친구이다.
            {} {other|이/가} 회의에 참석했다.
        """),
    ),
    SentenceGroup(
        INGREDIENT_NOUNS,
        read_lines("""
            {who} 시장에서 {} {other|을/를} 샀다.
            냉장고에 {} {other|이/가} 있다.
            장바구니에 {} {other|이/가} 들어 있다.
        """),
    ),
    SentenceGroup(
        SMALL_THING_NOUNS,
        read_lines("""
            {who} {} {other|을/를} 선물로 받았다.
            책상 위에 {} {other|이/가} 있다.
            {who} 백화점에서 {} {other|을/를} 샀다.
        """),
    ),
    SentenceGroup(
        FILM_PART_NOUNS,
        read_lines("""
            이 영화는 {} {other|이/가} 모두 좋다.
            관객들은 {} {other|을/를} 칭찬했다.
        """),
    ),
    SentenceGroup(
        CODE_NOUNS,
        read_lines("""
            이 글은 {} {other|의} 차이를 설명한다.
            {who} {} {other|을/를} 추가했다.
            먼저 {} {other|을/를} 살펴보자.
        """),
    ),
)
ALTERNATIVES = (
    SentenceGroup(
        INGREDIENT_NOUNS,
        read_lines("""
            {who} 시장에서 {} {other|을/를} 살 것이다.
            장바구니에 {} {other|이/가} 있을 것이다.
            냉장고에 {} {other|이/가} 있을 것이다.
        """),
    ),
    SentenceGroup(
        DISH_NOUNS,
        read_lines("""
            {who} 점심에 {} {other|을/를} 먹는다.
            {who} 저녁으로 {} {other|을/를} 먹을 것이다.
            {who} 식당에 가면 {} {other|을/를} 주문한다.
        """),
    ),
    SentenceGroup(
        DRINK_NOUNS,
        read_lines("""
            {who} 아침마다 {} {other|을/를} 마신다.
            {who} 손님들께 {} {other|을/를} 드린다.
        """),
    ),
    SentenceGroup(
        SMALL_THING_NOUNS,
        read_lines("""
            {who} 생일 선물로 {} {other|을/를} 받고 싶어 한다.
            {who} 백화점에서 {} {other|을/를} 사려고 한다.
        """),
    ),
    SentenceGroup(
        PLACE_NOUNS,
        read_lines("""
            {who} 주말에 {} {other}에 간다.
            {who} {} {other}에서 친구를 만날 것이다.
        """),
    ),
    SentenceGroup(
        CODE_NOUNS,
        read_lines("""
            {who} {} {other|을/를} 추가하려고 한다.
            먼저 {} {other|을/를} 확인해 보자.
        """),
    ),
)
DIRECTIONS = (
    SentenceGroup(
        (*PLACE_NOUNS, *read_words("사무실 미용실 호텔 연구실 실험실 독서실 응급실 터미널 마을")),
        read_lines("""
            {who} 급하게 {} 뛰어갔다.
            {who} 택시를 타고 {} 갔다.
            {who} 조금 전에 {} 출발했다.
            {who} 아침 일찍 {} 향했다.
        """),
    ),
    SentenceGroup(
        read_words("연필 볼펜 붓 분필 펜 만년필 사인펜 색연필 크레파스 왼손 오른손"),
        read_lines("""
            {who} {} 글씨를 썼다.
            {who} {} 그림을 그렸다.
            {who} 종이에 {} 이름을 적었다.
        """),
    ),
    SentenceGroup(
        read_words("나무 돌 금 은 유리 흙 종이 쇠 철 비닐 플라스틱 구리"),
        read_lines("""
            {who} {} 만든 그릇을 샀다.
            {who} {} 작은 인형을 만들었다.
            {who} 선물로 {} 만든 상자를 받았다.
        """),
    ),
    SentenceGroup(
        read_words("영어 한국어 일본어 프랑스어 독일어 한국말 우리말 중국말 일본말 영문 한글"),
        read_lines("""
            {who} 그 글을 {} 번역했다.
            {who} {} 편지를 썼다.
            {who} 자기 이름을 {} 적었다.
        """),
    ),
    SentenceGroup(
        read_words(
            "배열 문자열 파일 행렬 정수 숫자 벡터 텐서 그래프 객체 목록 텍스트 문장 사전 이미지 테이블"
        ),
        read_lines("""
            {who} 데이터를 {} 변환했다.
            {who} 입력값을 {} 바꾸었다.
            이 함수는 결과를 {} 반환한다.
            이 프로그램은 입력을 {} 변환한다.
        """),
    ),
    SentenceGroup(
        read_words("지하철 전철 버스 기차 자전거 택시 트럭 승용차 고속버스"),
        read_lines("""
            {who} 회사까지 {} 한 시간이 걸린다고 말했다.
            {who} {} 짐을 날랐다.
        """),
    ),
)
NAMED = (
    SentenceGroup(
        GIVEN_NAMES,
        read_lines("""
            제 이름은 {} 합니다.
            제 동생의 이름은 {} 합니다.
            이 책의 주인공은 {} 합니다.
            친구들은 그 아이를 {} 부른다.
            사람들은 그 배우를 {} 불렀다.
            그 작가는 주인공의 이름을 {} 지었다.
            어머니는 아기의 이름을 {} 지었다.
            {who} 그 아이를 {} 불렀다.
        """),
    ),
    SentenceGroup(
        CODE_NOUNS,
        read_lines("""
            이런 것을 흔히 {} 부른다.
            이 글에서는 이것을 간단히 {} 부르겠다.
            프로그래밍에서는 이것을 {} 한다.
            많은 개발자가 이것을 {} 부른다.
            이 책에서는 그것을 {} 불렀다.
            {who} 이것을 {} 불렀다.
        """),
    ),
    SentenceGroup(
        DISH_NOUNS,
        read_lines("""
            한국에서는 이 음식을 {} 한다.
            사람들은 이 음식을 {} 부른다.
            우리 가족은 이 음식을 {} 불렀다.
            이 음식의 이름은 {} 한다.
            {who} 이 음식을 {} 불렀다.
            {who} 그 음식의 이름이 {} 말했다.
        """),
    ),
    SentenceGroup(
        PROFESSION_NOUNS,
        read_lines("""
            그 사람은 자신을 {} 소개했다.
            그 사람은 나에게 자기가 {} 말했다.
            나는 그 사람이 {} 들었다.
            사람들은 그 사람이 {} 생각했다.
            그 사람은 자기가 {} 거짓말을 했다.
            {who} 그 사람이 {} 말했다.
            {who} 자기 꿈이 {} 말했다.
        """),
    ),
)

_KINDS_BEFORE_RO = ("consonant", "vowel", "consonant", "ㄹ")


def _is_of_kind(noun: str, kind: str) -> bool:
    final = get_final_consonant(noun)
    return {"consonant": final not in ("", "ㄹ"), "vowel": not final, "ㄹ": final == "ㄹ"}[kind]


def _build_draw(
    groups: tuple[SentenceGroup, ...], after_consonant: str, after_vowel: str
) -> Callable[[Random, int], Pair]:
    """Returns the draw of a particle. Side 0: the noun ends in a consonant; side 1: in a vowel."""

    def draw(random: Random, side: int) -> Pair:
        group = random.choice(groups)
        noun = random.choice([noun for noun in group.nouns if bool(get_final_consonant(noun)) == (side == 0)])
        right, wrong = (after_consonant, after_vowel) if side == 0 else (after_vowel, after_consonant)
        return _fill(random, group, noun, right, wrong)

    return draw


def _draw_direction(random: Random, side: int) -> Pair:
    kind = _KINDS_BEFORE_RO[side]
    group, noun = random.choice(
        [(group, noun) for group in DIRECTIONS for noun in group.nouns if _is_of_kind(noun, kind)]
    )
    right, wrong = ("으로", "로") if kind == "consonant" else ("로", "으로")
    return _fill(random, group, noun, right, wrong)


def _fill(random: Random, group: SentenceGroup, noun: str, right: str, wrong: str) -> Pair:
    sentence = random.choice(group.sentences)
    others = [other for other in group.nouns if other != noun]
    sentence = sentence.replace("{who}", choose_topic(random, noun)).replace("{other}", random.choice(others))
    if "{other|" in sentence:
        before, _, rest = sentence.partition("{other|")
        particle, _, after = rest.partition("}")
        other = random.choice(others)
        sentence = (
            before + (attach_particle(other, particle) if "/" in particle else other + particle) + after
        )
    return Pair(sentence.format(noun + right), sentence.format(noun + wrong))


PARTICLE_FORMS = (
    Phenomenon(
        "subject_particle",
        "ko",
        "The subject particle is 이 after a consonant and 가 after a vowel.",
        Pair("선생님이 문을 열고 들어왔다.", "선생님가 문을 열고 들어왔다."),
        2,
        _build_draw(SUBJECTS, "이", "가"),
    ),
    Phenomenon(
        "topic_particle",
        "ko",
        "The topic particle is 은 after a consonant and 는 after a vowel.",
        Pair("이 노래는 정말 재미있다.", "이 노래은 정말 재미있다."),
        2,
        _build_draw(TOPICS, "은", "는"),
    ),
    Phenomenon(
        "object_particle",
        "ko",
        "The object particle is 을 after a consonant and 를 after a vowel.",
        Pair("민수는 점심에 국수를 먹었다.", "민수는 점심에 국수을 먹었다."),
        2,
        _build_draw(OBJECTS, "을", "를"),
    ),
    Phenomenon(
        "and_particle",
        "ko",
        "The particle for 'and, with' is 과 after a consonant and 와 after a vowel.",
        Pair("민수는 삼촌과 이야기를 나누었다.", "민수는 삼촌와 이야기를 나누었다."),
        2,
        _build_draw(COMPANIONS, "과", "와"),
    ),
    Phenomenon(
        "direction_particle",
        "ko",
        "The particle of direction and means is 으로 after a consonant, but 로 after a vowel and after ㄹ.",
        Pair("민수는 연필로 글씨를 썼다.", "민수는 연필으로 글씨를 썼다."),
        4,
        _draw_direction,
    ),
    Phenomenon(
        "or_particle",
        "ko",
        "The particle for 'or' is 이나 after a consonant and 나 after a vowel.",
        Pair("지민은 아침마다 물이나 커피를 마신다.", "지민은 아침마다 물나 커피를 마신다."),
        2,
        _build_draw(ALTERNATIVES, "이나", "나"),
    ),
    Phenomenon(
        "quotation_particle",
        "ko",
        "The particle that quotes a name or a noun is 이라고 after a consonant and 라고 after a vowel.",
        Pair("친구들은 그 아이를 지민이라고 부른다.", "친구들은 그 아이를 지민라고 부른다."),
        2,
        _build_draw(NAMED, "이라고", "라고"),
    ),
)
