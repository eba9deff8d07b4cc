"""Question: do the shipped filters keep text and drop junk, in Korean and English, and how fast?

Runs filters=web over real documents of more than 500 characters and over generated junk of nine kinds in both
languages, and times filters, cleaning and masking on one core. Prints tables and writes results/filters.json.

    python benchmarks/filters.py FOLDER     (a minute; FOLDER holds ko.parquet, ko_heldout.parquet and the same of
                                             en, with the columns text and source)

Must hold: at least 90 % of the held-out documents of each language are kept, at least 90 % of the junk of each kind
and language is dropped.
"""

from __future__ import annotations

import json
import os
import platform
import random
import string
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = ("ko_heldout", "en_heldout", "ko", "en")
SEED, OF_EACH = 0, 300

# --- junk --------------------------------------------------------------------------------------------------

VOCABULARY = {
    "ko": """
        가격 구매 무료 배송 할인 이벤트 회원 가입 로그인 상품 후기 추천 검색 결과 광고 문의 고객 센터 서비스 이용 안내
        최신 인기 사진 영상 음악 게임 여행 맛집 부동산 대출 보험 다운로드 설치 공지 사항 뉴스 스포츠 경제 사회
        쇼핑 의류 이벤트를 회원은 무료로 고객이 상품의 할인은 배송이 가격도 후기를 서비스가
        지금 바로 여기에서 확인하세요
    """,
    "en": """
        price buy free shipping discount event member join login product review best search result contact customer
        center service guide new popular photo video music game travel food loan insurance download install notice
        news sports economy shopping clothes shoes bag beauty health diet cheap deal offer the of to and for with is
        on in this are you our now here
    """,
}
WORDS = {language: words.split() for language, words in VOCABULARY.items()}
KEYS = {
    "ko": "ㅁㄴㅇㄹㅎㅗㅓㅏㅣㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔㅋㅌㅊㅍㅠㅜㅡ",
    "en": "asdfjklqwertyuiopzxcvbnmghasdfjkl",
}
RUNS = {"ko": "ㅋㅎㅠㅜ하아오ㅇ~", "en": "aholxz!-="}
SYMBOLS = "★☆■□▶◀※@#$%^&*()_+=~|\\/<>[]{};:?!.,-→♥♪◆●○"


def repeated_words(draw: random.Random, language: str) -> str:
    """One to four words in any order."""
    few = draw.sample(WORDS[language], draw.randint(1, 4))
    return " ".join(draw.choices(few, k=draw.randint(120, 400)))


def repeated_lines(draw: random.Random, language: str) -> str:
    """Two to six lines in any order."""
    few = [f"{_words(draw, language, 3, 10)}." for _ in range(draw.randint(2, 6))]
    return "\n".join(draw.choices(few, k=draw.randint(40, 80)))


def repeated_phrases(draw: random.Random, language: str) -> str:
    """A phrase again and again, at times a word between."""
    phrase = _words(draw, language, 4, 9)
    gaps = (f" {draw.choice(WORDS[language])}" if draw.random() < 0.3 else "" for _ in range(60))
    return " ".join(phrase + gap for gap in gaps)


def repeated_characters(draw: random.Random, language: str) -> str:
    """Runs of one letter, apart or not."""
    runs = (draw.choice(RUNS[language]) * draw.randint(5, 60) for _ in range(draw.randint(25, 60)))
    return draw.choice(["", " ", "\n"]).join(runs)


def symbol_noise(draw: random.Random, language: str) -> str:
    """Four groups of symbols to each word."""
    return " ".join(
        draw.choice(WORDS[language])
        if draw.random() < 0.2
        else "".join(draw.choices(SYMBOLS, k=draw.randint(1, 12)))
        for _ in range(draw.randint(120, 300))
    )


def link_list(draw: random.Random, language: str) -> str:
    """Bare addresses, titles with addresses, or Markdown."""
    style = draw.randrange(3)
    lines = []
    for index in range(draw.randint(15, 50)):
        address, title = _address(draw), _words(draw, language, 1, 6)
        lines.append((address, f"{index + 1}. {title} - {address}", f"* [{title}]({address})")[style])
    return "\n".join(lines)


def number_table(draw: random.Random, language: str) -> str:
    """A head of words, then rows of numbers, some with a word in front."""
    gap = draw.choice(["\t", ", ", " ", " | "])

    def number() -> str:
        return draw.choice(
            [str(draw.randint(0, 99999)), f"{draw.random() * 1000:.2f}", f"{draw.randint(1000, 999999):,}"]
        )

    rows = [
        [draw.choice(WORDS[language]) if draw.random() < 0.5 else str(row), *(number() for _ in range(4))]
        for row in range(draw.randint(30, 90))
    ]
    return "\n".join(gap.join(row) for row in [draw.choices(WORDS[language], k=5), *rows])


def keyboard_mash(draw: random.Random, language: str) -> str:
    """Random keys; in Korean also the syllables that they make."""

    def word() -> str:
        if language == "ko" and draw.random() < 0.4:
            return "".join(chr(draw.randint(0xAC00, 0xD7A3)) for _ in range(draw.randint(1, 4)))
        return "".join(draw.choices(KEYS[language], k=draw.randint(2, 10)))

    return " ".join(word() for _ in range(draw.randint(120, 300)))


def menu(draw: random.Random, language: str) -> str:
    """What stands around the text of a page: one to three words a line."""
    return "\n".join(_words(draw, language, 1, 3) for _ in range(draw.randint(100, 200)))


JUNK: dict[str, Callable[[random.Random, str], str]] = {
    kind.__name__: kind
    for kind in (
        repeated_words,
        repeated_lines,
        repeated_phrases,
        repeated_characters,
        symbol_noise,
        link_list,
        number_table,
        keyboard_mash,
        menu,
    )
}


def _words(draw: random.Random, language: str, least: int, most: int) -> str:
    return " ".join(draw.choices(WORDS[language], k=draw.randint(least, most)))


def _address(draw: random.Random) -> str:
    host = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(5, 12)))
    parts = (
        "".join(draw.choices(string.ascii_lowercase + string.digits, k=draw.randint(3, 12)))
        for _ in range(draw.randint(1, 4))
    )
    return f"https://www.{host}{draw.choice(['.com', '.co.kr', '.net'])}/{'/'.join(parts)}"


# --- what is measured --------------------------------------------------------------------------------------


def on_junk(dropped_by: Callable[[str], str | None]) -> dict[str, dict[str, Any]]:
    """Per kind and language: the share dropped, and by which rules."""
    draw, result = random.Random(SEED), {}
    for kind, make in JUNK.items():
        for language in ("ko", "en"):
            rules = Counter(dropped_by(make(draw, language)) for _ in range(OF_EACH))
            kept = rules.pop(None, 0)
            result[f"{kind} {language}"] = {
                "dropped": round(1 - kept / OF_EACH, 4),
                "by": dict(rules.most_common()),
            }
    return result


def on_text(dropped_by: Callable[[str], str | None], rows: list[dict[str, str]]) -> dict[str, Any]:
    """The share kept in all and per source, and the rules that dropped the rest."""
    verdicts = [(row["source"], dropped_by(row["text"])) for row in rows]
    of_source = Counter(source for source, _ in verdicts)
    kept = Counter(source for source, rule in verdicts if rule is None)
    return {
        "documents": len(rows),
        "kept": round(kept.total() / len(rows), 4),
        "kept of": {source: round(kept[source] / count, 4) for source, count in sorted(of_source.items())},
        "dropped by": dict(Counter(rule for _, rule in verdicts if rule).most_common()),
    }


def rate(function: Callable[[str], Any], texts: Iterable[str]) -> dict[str, float]:
    """MB and documents per CPU second, the best of three."""
    texts = list(texts)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds = []
    for _ in range(3):
        began = time.process_time()
        for text in texts:
            function(text)
        seconds.append(time.process_time() - began)
    return {"MB/s": round(megabytes / min(seconds), 1), "documents/s": round(len(texts) / min(seconds))}


def main() -> None:
    from pyarrow import parquet

    from krill.cli.compose import compose_config
    from krill.config.schema import TrainConfig
    from krill.config.validation import validate_config
    from krill.text.cleaning import build_cleaner
    from krill.text.filters import Filters
    from krill.text.pii import mask_pii

    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER")
    folder = Path(sys.argv[1])
    data = validate_config(TrainConfig, compose_config("train", ["filters=web"])).data
    dropped_by = Filters(data.filters).find_dropping_rule
    dropped_by("warm up")
    rows = {file: parquet.read_table(folder / f"{file}.parquet").to_pylist() for file in FILES}
    long = {file: [row for row in rows[file] if len(row["text"]) > 500] for file in FILES}
    result = {
        "question": "do the shipped filters keep text and drop junk, and how fast",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "text over 500 characters": {file: on_text(dropped_by, long[file]) for file in FILES},
        "junk": on_junk(dropped_by),
        "rates": {
            f"{name} {file}": rate(function, (row["text"] for row in found[file]))
            for name, function, found in (
                ("filters, over 500 characters,", dropped_by, long),
                ("cleaning", build_cleaner(data), rows),
                ("masking", mask_pii, rows),
            )
            for file in ("ko", "en")
        },
    }
    show(result)
    target = ROOT / "benchmarks" / "results" / "filters.json"
    target.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    print(f"{'text over 500 characters':<36}{'kept':>7}   (held-out: at least 0.90)")
    for file, found in result["text over 500 characters"].items():
        print(f"  {file:<34}{found['kept']:7.3f}   of {found['documents']}: {found['dropped by']}")
    print(f"{'junk':<36}{'dropped':>7}   (at least 0.90)")
    for kind, found in result["junk"].items():
        print(f"  {kind:<34}{found['dropped']:7.3f}   {found['by']}")
    print("one core")
    for name, found in result["rates"].items():
        print(f"  {name:<34}{found['MB/s']:7.1f} MB/s {found['documents/s']:9,} documents/s")


if __name__ == "__main__":
    main()
