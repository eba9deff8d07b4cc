"""Nouns of one meaning each, so that a sentence that takes any of them is natural."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.korean.hangul import attach_particle


def read_lines(lines: str) -> tuple[str, ...]:
    """Reads phrases, one a line."""
    return tuple(line.strip() for line in lines.strip().splitlines())


def read_words(words: str) -> tuple[str, ...]:
    """Reads words, between spaces."""
    return tuple(words.split())


GIVEN_NAMES = read_words("""
    민수 영희 지호 수지 은지 철수 준호 지우 유미 미나 동수 현우 진호 혜수 태희 성호
    지민 서연 지훈 민준 수진 영민 현정 동현 예은 태민 은영 하준 상철 미영 윤정 소연
""")
KNOWN_PEOPLE = read_lines("""
내 동생
내 친구
우리 삼촌
우리 이모
우리 형
우리 누나
내 사촌
그 학생
그 청년
그 기자
그 배우
그 가수
옆집 아저씨
옆집 아주머니
그 여학생
그 직원
그 개발자
""")
ROLE_NOUNS = read_words("""
    친구 동료 의사 간호사 기자 변호사 요리사 화가 작가 가수 배우 교수 농부 어부 운전사 이모 누나 언니 오빠 선배
    후배 비서 조카 아저씨 아주머니 개발자 과학자 연구자
    동생 형 선생님 학생 경찰관 소방관 감독 점원 이웃 손님 사장님 직원 삼촌 사촌 회장 주인 팀장 부장 반장
    외국인 군인 노인 상인 시인 상담원 연구원 공무원 회사원 대학생 여학생
""")
PROFESSION_NOUNS = read_words("""
    의사 간호사 기자 변호사 요리사 화가 작가 가수 배우 교수 농부 어부 운전사 비서 개발자 과학자
    경찰관 소방관 감독 점원 직원 군인 상인 시인 상담원 연구원 공무원 회사원 대학생
""")
DISH_NOUNS = read_words("""
    불고기 국수 김치찌개 만두 피자 햄버거 샌드위치 파스타 떡볶이 돈가스 칼국수 스테이크 갈비 김치전 생선구이 잡채
    비빔밥 냉면 라면 김밥 볶음밥 미역국 삼겹살 갈비탕 초밥 카레밥 죽 삼계탕 우동 짜장면 떡국 쌀국수
""")
INGREDIENT_NOUNS = read_words("""
    감자 고구마 사과 포도 딸기 배추 두부 양파 참외 복숭아 고추 우유 옥수수 토마토 바나나 무 상추 고기
    수박 귤 감 마늘 당근 콩 쌀 호박 버섯 달걀 꿀 소금 설탕 레몬 빵 밤 된장 김
""")
DRINK_NOUNS = read_words(
    "커피 주스 녹차 홍차 콜라 맥주 우유 코코아 물 와인 꿀물 생강차 식혜 보리차 인삼차 레몬차"
)
SMALL_THING_NOUNS = read_words("""
    시계 모자 구두 지우개 노트북 사진기 접시 베개 치마 바지 목걸이 잡지 엽서 카메라 배터리
    가방 우산 지갑 안경 장갑 수건 책 공책 연필 볼펜 수첩 컵 인형 거울 사전 화분 꽃병 양말 필통 장난감
""")
PLACE_NOUNS = read_words("""
    학교 회사 카페 극장 가게 바다 놀이터 은행 시장 도서관 병원 우체국 서점 공항 박물관 미술관 체육관 수영장
    백화점 약국 공원 식당 대사관 식물원 동물원 경찰서 편의점 기차역 광장 호수
""")
WORK_NOUNS = read_words(
    "영화 드라마 다큐멘터리 만화 노래 시 동화 소설 작품 연극 뮤지컬 애니메이션 동영상 책 음악 수필"
)
FILM_PART_NOUNS = read_words("""
    연기 줄거리 이야기 대사 분위기 주제 노래 전개 연출 결말 음악 장면 내용 배경 반전 화면 영상 설정""")
COMPUTER_NOUNS = read_words("""
    컴퓨터 휴대폰 노트북 서버 프린터 키보드 마우스 모니터 스피커 태블릿 텔레비전 카메라 마이크 화면 이어폰""")
CODE_NOUNS = read_words("""
    함수 변수 클래스 메서드 코드 컴포넌트 라이브러리 메시지 예제 데이터 패키지 알고리즘 모듈 파일 객체 배열
    값 버튼 프로그램 모델 문자열 목록 이벤트 옵션 속성 테스트
""")
NEWS_NOUNS = read_words("""
    보고서 기사 뉴스 통계 계획 법안 소식 제안 성명 방안 대책 결정 협상안 자료 의견서 제도 예산안
    정책
""")


def choose_topic(random: Random, companion: str = "") -> str:
    """Returns the topic of a sentence, who is not the companion: 민수는, 내 동생은."""
    people = GIVEN_NAMES if random.random() < 0.6 else KNOWN_PEOPLE
    person = random.choice([person for person in people if not companion or companion not in person])
    return attach_particle(person, "은/는")
