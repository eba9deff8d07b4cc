"""Personal data is masked, similar text is not, and masking is idempotent."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill.text.pii import mask_pii

PHONE, RESIDENT, CARD, EMAIL = "010-0000-0000", "000000-0000000", "0000-0000-0000-0000", "email@example.com"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("010-1234-5678", PHONE),
        ("01012345678", PHONE),
        ("010.1234.5678", PHONE),
        ("010 1234 5678", PHONE),
        ("010-12345678", PHONE),
        ("011-123-4567", PHONE),
        ("02-123-4567", PHONE),
        ("02.1234.5678", PHONE),
        ("02)123-4567", PHONE),
        ("(031) 123-4567", PHONE),
        ("031-123-4567", PHONE),
        ("070-1234-5678", PHONE),
        ("+82 10 1234 5678", PHONE),
        ("+82-10-1234-5678", PHONE),
        ("+82 (0)2-123-4567", PHONE),
        ("010–1234–5678", PHONE),
        ("010 - 1234 - 5678", PHONE),
        ("010)1234-5678", PHONE),
        ("010‑1234‑5678", PHONE),
        ("０１０－１２３４－５６７８", PHONE),
        ("０１０１２３４５６７８", PHONE),
        ("（０２） １２３－４５６７", PHONE),
        ("02 – 123 – 4567", PHONE),
        ("0505-123-4567", PHONE),
        ("82-10-1234-5678", PHONE),
        ("82)10-1234-5678", PHONE),
        ("82 10 1234 5678", PHONE),
        ("+82 10 - 1234 - 5678", PHONE),
        ("010·1234·5678", PHONE),
        ("010ㆍ1234ㆍ5678", PHONE),
        ("010ㅡ1234ㅡ5678", PHONE),
        ("010\u00ad1234\u00ad5678", PHONE),
        ("010\u200b-1234-\u200b5678", PHONE),
        ("hong＠site．co．kr", EMAIL),
        ("user@example.com", EMAIL),
        ("900101ㅡ1234567", RESIDENT),
        ("900101-1234567", RESIDENT),
        ("900101 - 1234567", RESIDENT),
        ("900101–1234567", RESIDENT),
        ("９００１０１－１２３４５６７", RESIDENT),
        ("4111 – 1111 – 1111 – 1111", CARD),
        ("051231-4000000", RESIDENT),
        ("880230-5123456", RESIDENT),
        ("4111-1111-1111-1111", CARD),
        ("4111 1111 1111 1111", CARD),
        ("kim.lee+news@mail.naver.com", EMAIL),
        ("a@b.co.kr", EMAIL),
        ("211.234.110.55", "192.0.2.1"),
        ("2001:4860:4860::8888", "2001:db8::1"),
        ("2606:2800:220:1:248:1893:25c8:1946", "2001:db8::1"),
    ],
)
def test_masks_personal_data(text: str, masked: str) -> None:
    for before, after in (
        ("", ""),
        ("연락처는 ", "입니다."),
        ("문의:", ", "),
        ("<", ">"),
        ("전화번호", "로"),
    ):
        assert mask_pii(f"{before}{text}{after}") == f"{before}{masked}{after}"


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-15",
        "2024.01.15",
        "2024-01-15 10:30:00",
        "1,234,567원",
        "3.11.7",
        "v1.2.3.4",
        "1.2.3.4",
        "120.0.6099.129",
        "10.11.12.13 is section 10.11.12.13.14",
        "127.0.0.1:8080",
        "0.0.0.0/0",
        "192.168.100.101",
        "ISBN 978-89-01-12345-6",
        "ISBN 0-306-40615-2",
        "0x01012345678",
        "deadbeef01012345678",
        "01012345678901234",
        "01010101010",
        "3.14159265358979",
        "1700000000000",
        "9001011234567",
        "900101-9234567",
        "901301-1234567",
        "900132-1234567",
        "12900101-1234567",
        "1588-1234",
        "110-123-456789",
        "4111-1111-1111-1112",
        "1234-5678-9012",
        "3·1 운동, 4·19, 5·18 1980",
        "git@github.com:user/name.git",
        "@functools.wraps",
        "y = w@x.sum(axis=0)",
        "q@k.transpose(-2, -1)",
        "a@b.shape-1",
        "일시 23.10.15.13 시",
        "11.12.13.14 절",
        "24.01.31.09 ~ 24.02.01.18",
        "[*0505.0020.0002]",
        "2024–01–15",
        "82-10-15",
        "４１１１－１１１１－１１１１－１１１２",
        "react@18.2.0",
        "std::fmt::Display, a::b",
        "12:34:56",
        "2001:db8::2",
        "fe80::1",
        "   120   010   1234",
    ],
)
def test_similar_text_is_unchanged(text: str) -> None:
    assert mask_pii(text) == text
    assert mask_pii(f"여기 {text} 있다") == f"여기 {text} 있다"


@pytest.mark.parametrize(
    "after", ["(끝)", "(담당자 홍길동)", "( 담당자)", "-홍길동", "_", "@", "(Hong)", "(끝)."]
)
def test_an_address_ends_before_what_follows(after: str) -> None:
    for address in ("hong@site.co.kr", "hong@site.com", "hong@example.com", "hong@site.ai"):
        assert mask_pii(f"기자 {address}{after}") == f"기자 {EMAIL}{after}"


def test_only_the_number_of_a_text_with_variants_changes() -> None:
    text = "“10–20 세” – 전화 010–1234–5678（홍길동）, 주민 900101–1234567 —"
    assert mask_pii(text) == f"“10–20 세” – 전화 {PHONE}（홍길동）, 주민 {RESIDENT} —"


def test_every_occurrence_in_a_text_is_masked() -> None:
    text = "김: 010-1111-2222, 이: 010-3333-4444 (lee@naver.com / lee2@naver.com), 2024-01-15"
    assert mask_pii(text) == f"김: {PHONE}, 이: {PHONE} ({EMAIL} / {EMAIL}), 2024-01-15"


MATCHES = [
    "010-1234-5678",
    "01012345678",
    "02)123-4567",
    "(031) 123-4567",
    "+82 10 1234 5678",
    "900101-1234567",
]
MATCHES += ["4111-1111-1111-1111", "a@b.com", "211.234.110.55", "2001:4860:4860::8888"]
PIECES = st.sampled_from([*MATCHES, *".-:@()+07가x\n "])


@given(st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join))
def test_masking_is_idempotent(text: str) -> None:
    once = mask_pii(text)
    assert mask_pii(once) == once


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_text_without_digits_and_at_signs_is_unchanged(text: str) -> None:
    text = "".join(letter for letter in text if letter not in "0123456789@")
    assert mask_pii(text) == text


def test_random_phone_and_resident_numbers_are_masked() -> None:
    rng = random.Random(0)
    for _ in range(200):
        mobile = f"010-{rng.randrange(1000, 10000)}-{rng.randrange(10000):04d}"
        date = f"{rng.randrange(100):02d}{rng.randrange(1, 13):02d}{rng.randrange(1, 32):02d}"
        resident = f"{date}-{rng.randrange(1, 9)}{rng.randrange(10**6):06d}"
        assert mask_pii(f"{mobile}, {resident}") == f"{PHONE}, {RESIDENT}"
