"""Counters: native or Sino-Korean numerals, and the counter that goes with a noun."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from krill.evaluation.minimal_pairs.korean.hangul import attach_particle
from krill.evaluation.minimal_pairs.korean.words import choose_topic, read_lines
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_NUMERALS = (
    ("세", "삼"),
    ("네", "사"),
    ("다섯", "오"),
    ("여섯", "육"),
    ("일곱", "칠"),
    ("여덟", "팔"),
    ("아홉", "구"),
)
"""Native and Sino-Korean, 3 to 9. The Sino-Korean 이 for 2 could be read as 'this'."""

_AFTER_NATIVE = read_lines("""
    {who} 시장에서 사과를 {} 개 샀다.
    {who} 달걀을 {} 개 삶았다.
    {who} 파일을 {} 개 열었다.
    {who} 함수를 {} 개 만들었다.
    {who} 오류를 {} 개 찾았다.
    {who} 도서관에서 책을 {} 권 빌렸다.
    {who} 공책을 {} 권 샀다.
    {who} 소설을 {} 권 읽었다.
    {who} 종이를 {} 장 꺼냈다.
    {who} 사진을 {} 장 찍었다.
    {who} 표를 {} 장 예매했다.
    {who} 커피를 {} 잔 마셨다.
    {who} 물을 {} 잔 마셨다.
    {who} 고양이를 {} 마리 키운다.
    {who} 물고기를 {} 마리 잡았다.
    {who} 닭을 {} 마리 키운다.
    {who} 친구를 {} 명 초대했다.
    {who} 아이를 {} 명 가르친다.
    {who} 새 사원을 {} 명 뽑았다.
    {who} 그 영화를 {} 번 보았다.
    {who} 그 노래를 {} 번 들었다.
    {who} 같은 코드를 {} 번 실행했다.
    {who} {} 시간 동안 걸었다.
    {who} {} 시간 동안 회의를 했다.
    {who} {} 시간 뒤에 돌아왔다.
    {who} 양말을 {} 켤레 샀다.
    {who} 장미를 {} 송이 샀다.
    {who} 마당에 나무를 {} 그루 심었다.
    {who} 국수를 {} 그릇 먹었다.
    {who} 노래를 {} 곡 불렀다.
    {who} 질문을 {} 가지 준비했다.
    {who} {} 달 동안 여행했다.
""")
_AFTER_SINO = read_lines("""
    {who} 서울에서 {} 년 동안 살았다.
    {who} {} 년 전에 대학교를 졸업했다.
    {who} {} 년 동안 영어를 배웠다.
    {who} {} 년 동안 이 회사에서 일했다.
    {who} {} 년 만에 고향에 돌아왔다.
    {who} 승강기에서 {} 층 단추를 눌렀다.
    {who} 아파트 {} 층에 산다.
    {who} 시장에서 {}천 원을 썼다.
    {who} 지갑에서 {}만 원을 꺼냈다.
    {who} {}백 원짜리 연필을 샀다.
    {who} 책을 {}천 원에 팔았다.
    {who} 갈비를 {} 인분 주문했다.
    {who} 불고기를 {} 인분 먹었다.
    {who} 지하철 {} 호선을 탔다.
    {who} 지하철 {} 호선에서 내렸다.
    {who} 달리기에서 {} 등을 했다.
    {who} 대회에서 {} 위를 차지했다.
    {who} {} 교시에 영어 수업을 듣는다.
    {who} {} 초 뒤에 대답했다.
    {who} 값을 {} 퍼센트 올렸다.
    {who} 가격을 {} 퍼센트 내렸다.
""")


def _split(nouns: str) -> tuple[str, ...]:
    return tuple(noun.replace("_", " ") for noun in nouns.split())


_COUNTED: tuple[tuple[str, Sequence[str], tuple[str, ...]], ...] = (
    (
        "명",
        _split("학생 친구 의사 기자 손님 아이 개발자 배우 군인 직원 가수 선생님 간호사 관객"),
        read_lines("""
            {who} 어제 {noun|을/를} {} 만났다.
            그 방에 {noun|이/가} {} 있다.
            {who} 길에서 {noun|을/를} {} 보았다.
        """),
    ),
    (
        "마리",
        _split("고양이 강아지 토끼 닭 오리 새 소 말 돼지 물고기 거북이 염소 양 나비"),
        read_lines("""
            {who} 어제 {noun|을/를} {} 보았다.
            그림 속에 {noun|이/가} {} 있다.
            {who} 그림책에서 {noun|을/를} {} 찾았다.
        """),
    ),
    (
        "권",
        _split("책 소설책 공책 사전 잡지 만화책 시집 동화책 교과서 수첩 일기장"),
        read_lines("""
            {who} 어제 {noun|을/를} {} 샀다.
            책상 위에 {noun|이/가} {} 있다.
            {who} 가방에서 {noun|을/를} {} 꺼냈다.
        """),
    ),
    (
        "대",
        _split("자동차 컴퓨터 자전거 버스 비행기 카메라 냉장고 세탁기 텔레비전 노트북 서버 트럭"),
        read_lines("""
            그 회사는 {noun|을/를} {} 샀다.
            그곳에 {noun|이/가} {} 있다.
            {who} 고장 난 {noun|을/를} {} 고쳤다.
        """),
    ),
    (
        "잔",
        _split("커피 녹차 홍차 주스 물 우유 보리차 코코아"),
        read_lines("""
            {who} 아침에 {noun|을/를} {} 마셨다.
            식탁 위에 {noun|이/가} {} 있다.
            {who} 카페에서 {noun|을/를} {} 시켰다.
        """),
    ),
    (
        "켤레",
        _split("양말 구두 운동화 장갑 장화 등산화 실내화"),
        read_lines("""
            {who} 시장에서 {noun|을/를} {} 샀다.
            문 앞에 {noun|이/가} {} 있다.
            {who} 생일 선물로 {noun|을/를} {} 받았다.
        """),
    ),
    (
        "송이",
        _split("장미 꽃 국화 튤립 백합 해바라기"),
        read_lines("""
            {who} 어머니를 위해 {noun|을/를} {} 샀다.
            꽃병에 {noun|이/가} {} 있다.
            {who} 친구에게서 {noun|을/를} {} 받았다.
        """),
    ),
    (
        "그루",
        _split("나무 소나무 감나무 사과나무 은행나무 벚나무"),
        read_lines("""
            {who} 마당에 {noun|을/를} {} 심었다.
            학교 앞에 {noun|이/가} {} 있다.
            {who} 산에서 {noun|을/를} {} 베었다.
        """),
    ),
    (
        "채",
        _split("집 기와집 초가집 한옥 별장 오두막"),
        read_lines("""
            마을에 {noun|이/가} {} 있다.
            산 아래에 {noun|이/가} {} 보인다.
            그 회사는 {noun|을/를} {} 지었다.
        """),
    ),
    (
        "벌",
        _split("옷 양복 한복 정장 외투 원피스 교복"),
        read_lines("""
            {who} 백화점에서 {noun|을/를} {} 샀다.
            옷장에 {noun|이/가} {} 있다.
            {who} 가방에 {noun|을/를} {} 넣었다.
        """),
    ),
    (
        "장",
        _split("사진 표 엽서 수건 우표 손수건 색종이 영화표"),
        read_lines("""
            {who} 어제 {noun|을/를} {} 받았다.
            책상 위에 {noun|이/가} {} 있다.
            {who} 서랍에서 {noun|을/를} {} 꺼냈다.
        """),
    ),
)
"""Counters with nouns that go with no other of them, but for the exchangeable ones."""

_EXCHANGEABLE = ({"권", "장"}, {"권", "벌"}, {"장", "벌"}, {"켤레", "벌"}, {"송이", "그루"})
"""Counters that some speakers use for the nouns of each other: 장미 세 그루, 사진 두 벌."""

_COUNTER_PAIRS = tuple(
    pair
    for first in range(len(_COUNTED))
    for second in range(first)
    if {_COUNTED[first][0], _COUNTED[second][0]} not in _EXCHANGEABLE
    for pair in ((first, second), (second, first))
)


def _draw_numeral_system(random: Random, side: int) -> Pair:
    native, sino = random.choice(_NUMERALS)
    sentence = random.choice((_AFTER_NATIVE, _AFTER_SINO)[side]).replace("{who}", choose_topic(random))
    right, wrong = (native, sino) if side == 0 else (sino, native)
    return Pair(sentence.format(right), sentence.format(wrong))


def _draw_counter(random: Random, side: int) -> Pair:
    right, wrong = _COUNTER_PAIRS[side]
    counter, nouns, sentences = _COUNTED[right]
    noun, numeral = random.choice(nouns), random.choice(("두", "세", "네", "다섯", "여섯", "일곱"))
    sentence = random.choice(sentences).replace("{who}", choose_topic(random, noun))
    for particle in ("을/를", "이/가"):
        sentence = sentence.replace(f"{{noun|{particle}}}", attach_particle(noun, particle))
    return Pair(sentence.format(f"{numeral} {counter}"), sentence.format(f"{numeral} {_COUNTED[wrong][0]}"))


COUNTERS = (
    Phenomenon(
        "numeral_system",
        "ko",
        "Counters such as 개, 명 and 마리 take native numerals, others such as 년, 층 and 원 Sino-Korean ones.",
        Pair("지민은 고양이를 세 마리 키운다.", "지민은 고양이를 삼 마리 키운다."),
        2,
        _draw_numeral_system,
    ),
    Phenomenon(
        "counter",
        "ko",
        "The counter depends on what is counted: 명 for people, 마리 for animals, 권 for books and so on.",
        Pair("그림 속에 강아지가 세 마리 있다.", "그림 속에 강아지가 세 권 있다."),
        len(_COUNTER_PAIRS),
        _draw_counter,
    ),
)
