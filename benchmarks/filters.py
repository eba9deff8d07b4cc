"""Question: do the shipped filters keep text and drop junk, in Korean and English, and how fast?

Runs filters=web on real documents of more than 500 characters and on generated junk of nine kinds in both languages,
and times filters, cleaning and masking on one core. Prints tables and writes results/filters.json.

    python benchmarks/filters.py FOLDER     (a minute; FOLDER has ko.parquet, ko_heldout.parquet, en.parquet and
                                             en_heldout.parquet, with the columns text and source)

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
SEED, SAMPLES_PER_KIND = 0, 300

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


def repeated_words(rng: random.Random, language: str) -> str:
    """One to four words in any order."""
    chosen = rng.sample(WORDS[language], rng.randint(1, 4))
    return " ".join(rng.choices(chosen, k=rng.randint(120, 400)))


def repeated_lines(rng: random.Random, language: str) -> str:
    """Two to six lines in any order."""
    chosen = [f"{_words(rng, language, 3, 10)}." for _ in range(rng.randint(2, 6))]
    return "\n".join(rng.choices(chosen, k=rng.randint(40, 80)))


def repeated_phrases(rng: random.Random, language: str) -> str:
    """One phrase repeated, sometimes with a word in between."""
    phrase = _words(rng, language, 4, 9)
    gaps = (f" {rng.choice(WORDS[language])}" if rng.random() < 0.3 else "" for _ in range(60))
    return " ".join(phrase + gap for gap in gaps)


def repeated_characters(rng: random.Random, language: str) -> str:
    """Runs of one letter, separated or not."""
    runs = (rng.choice(RUNS[language]) * rng.randint(5, 60) for _ in range(rng.randint(25, 60)))
    return rng.choice(["", " ", "\n"]).join(runs)


def symbol_noise(rng: random.Random, language: str) -> str:
    """Four groups of symbols for each word."""
    return " ".join(
        rng.choice(WORDS[language])
        if rng.random() < 0.2
        else "".join(rng.choices(SYMBOLS, k=rng.randint(1, 12)))
        for _ in range(rng.randint(120, 300))
    )


def link_list(rng: random.Random, language: str) -> str:
    """Bare addresses, titles with addresses, or Markdown."""
    style = rng.randrange(3)
    lines = []
    for index in range(rng.randint(15, 50)):
        address, title = _address(rng), _words(rng, language, 1, 6)
        lines.append((address, f"{index + 1}. {title} - {address}", f"* [{title}]({address})")[style])
    return "\n".join(lines)


def number_table(rng: random.Random, language: str) -> str:
    """A header of words, then rows of numbers, some starting with a word."""
    gap = rng.choice(["\t", ", ", " ", " | "])

    def number() -> str:
        return rng.choice(
            [str(rng.randint(0, 99999)), f"{rng.random() * 1000:.2f}", f"{rng.randint(1000, 999999):,}"]
        )

    rows = [
        [rng.choice(WORDS[language]) if rng.random() < 0.5 else str(row), *(number() for _ in range(4))]
        for row in range(rng.randint(30, 90))
    ]
    return "\n".join(gap.join(row) for row in [rng.choices(WORDS[language], k=5), *rows])


def keyboard_mash(rng: random.Random, language: str) -> str:
    """Random keys; in Korean also random syllables."""

    def word() -> str:
        if language == "ko" and rng.random() < 0.4:
            return "".join(chr(rng.randint(0xAC00, 0xD7A3)) for _ in range(rng.randint(1, 4)))
        return "".join(rng.choices(KEYS[language], k=rng.randint(2, 10)))

    return " ".join(word() for _ in range(rng.randint(120, 300)))


def menu(rng: random.Random, language: str) -> str:
    """The navigation around the text of a page: one to three words per line."""
    return "\n".join(_words(rng, language, 1, 3) for _ in range(rng.randint(100, 200)))


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


def _words(rng: random.Random, language: str, min_words: int, max_words: int) -> str:
    return " ".join(rng.choices(WORDS[language], k=rng.randint(min_words, max_words)))


def _address(rng: random.Random) -> str:
    host = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(5, 12)))
    parts = (
        "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(3, 12)))
        for _ in range(rng.randint(1, 4))
    )
    return f"https://www.{host}{rng.choice(['.com', '.co.kr', '.net'])}/{'/'.join(parts)}"


# --- measurements ------------------------------------------------------------------------------------------


def measure_junk(find_dropping_rule: Callable[[str], str | None]) -> dict[str, dict[str, Any]]:
    """Returns the dropped share for each kind and language, and the rules that dropped it."""
    rng, result = random.Random(SEED), {}
    for kind, make in JUNK.items():
        for language in ("ko", "en"):
            rules = Counter(find_dropping_rule(make(rng, language)) for _ in range(SAMPLES_PER_KIND))
            kept = rules.pop(None, 0)
            result[f"{kind} {language}"] = {
                "dropped": round(1 - kept / SAMPLES_PER_KIND, 4),
                "by": dict(rules.most_common()),
            }
    return result


def measure_text(
    find_dropping_rule: Callable[[str], str | None], rows: list[dict[str, str]]
) -> dict[str, Any]:
    """Returns the kept share in total and per source, and the rules that dropped the rest."""
    verdicts = [(row["source"], find_dropping_rule(row["text"])) for row in rows]
    source_counts = Counter(source for source, _ in verdicts)
    kept = Counter(source for source, rule in verdicts if rule is None)
    return {
        "documents": len(rows),
        "kept": round(kept.total() / len(rows), 4),
        "kept of": {
            source: round(kept[source] / count, 4) for source, count in sorted(source_counts.items())
        },
        "dropped by": dict(Counter(rule for _, rule in verdicts if rule).most_common()),
    }


def measure_rate(function: Callable[[str], Any], texts: Iterable[str]) -> dict[str, float]:
    """Returns MB and documents per CPU second, the best of three."""
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
    find_dropping_rule = Filters(data.filters).find_dropping_rule
    find_dropping_rule("warm up")
    rows = {file: parquet.read_table(folder / f"{file}.parquet").to_pylist() for file in FILES}
    long = {file: [row for row in rows[file] if len(row["text"]) > 500] for file in FILES}
    result = {
        "question": "do the shipped filters keep text and drop junk, and how fast",
        "date": date.today().isoformat(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "text over 500 characters": {file: measure_text(find_dropping_rule, long[file]) for file in FILES},
        "junk": measure_junk(find_dropping_rule),
        "rates": {
            f"{name} {file}": measure_rate(function, (row["text"] for row in documents[file]))
            for name, function, documents in (
                ("filters, over 500 characters,", find_dropping_rule, long),
                ("cleaning", build_cleaner(data), rows),
                ("masking", mask_pii, rows),
            )
            for file in ("ko", "en")
        },
    }
    print_tables(result)
    target = ROOT / "benchmarks" / "results" / "filters.json"
    target.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_tables(result: dict[str, Any]) -> None:
    print(f"{'text over 500 characters':<36}{'kept':>7}   (held-out: at least 0.90)")
    for file, figures in result["text over 500 characters"].items():
        print(f"  {file:<34}{figures['kept']:7.3f}   of {figures['documents']}: {figures['dropped by']}")
    print(f"{'junk':<36}{'dropped':>7}   (at least 0.90)")
    for kind, figures in result["junk"].items():
        print(f"  {kind:<34}{figures['dropped']:7.3f}   {figures['by']}")
    print("one core")
    for name, figures in result["rates"].items():
        print(f"  {name:<34}{figures['MB/s']:7.1f} MB/s {figures['documents/s']:9,} documents/s")


if __name__ == "__main__":
    main()
