"""English minimal pairs: balanced, different, always the same, and right by rules that do not use their generator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from random import Random

import pytest

from krill.evaluation.minimal_pairs.english.phenomena import PHENOMENA
from krill.evaluation.minimal_pairs.phenomenon import Pair, draw_pairs

COUNT = 1000
NAMES = [phenomenon.name for phenomenon in PHENOMENA]
BY_NAME = {phenomenon.name: phenomenon for phenomenon in PHENOMENA}
every_phenomenon = pytest.mark.parametrize("name", NAMES)


@cache
def get_pairs(name: str) -> list[Pair]:
    return draw_pairs(BY_NAME[name], COUNT, seed=1)


def parse_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def split_words(sentence: str) -> list[str]:
    return re.findall(r"[\w-]+", sentence)


def find_spans(pair: Pair) -> tuple[int, str, str]:
    """Returns the index of the first word that differs, and the words that differ."""
    good, bad = split_words(pair.good), split_words(pair.bad)
    start = end = 0
    while start < min(len(good), len(bad)) and good[start] == bad[start]:
        start += 1
    while end < min(len(good), len(bad)) - start and good[-1 - end] == bad[-1 - end]:
        end += 1
    spans = (" ".join(words[start : len(words) - end]) for words in (good, bad))
    return start, *(span.lower() for span in spans)


def test_the_phenomena_are_named_and_described() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 16
    for phenomenon in PHENOMENA:
        assert phenomenon.language == "en"
        assert re.fullmatch(r"[A-Z].*\.", phenomenon.description)
        assert CHECKS[phenomenon.name](phenomenon.example.good, phenomenon.example)
        assert not CHECKS[phenomenon.name](phenomenon.example.bad, phenomenon.example)


@every_phenomenon
def test_pairs_differ_and_are_sentences(name: str) -> None:
    pairs = get_pairs(name)
    assert len(set(pairs)) == COUNT
    assert len({pair.good for pair in pairs}) >= 0.6 * COUNT
    for pair in pairs:
        assert pair.good != pair.bad
        for sentence in (pair.good, pair.bad):
            assert re.fullmatch(r"[A-Z][A-Za-z0-9,-]*( [A-Za-z0-9,-]+)*[.?]", sentence), sentence


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("negative_polarity", "embedded_question")]
)
def test_what_is_right_in_one_pair_is_wrong_in_another(name: str) -> None:
    spans = Counter(find_spans(pair)[1:] for pair in get_pairs(name))
    one_way = sum(count for (good, bad), count in spans.items() if not spans[bad, good])
    assert one_way <= 0.2 * COUNT


@every_phenomenon
def test_a_unigram_model_solves_half_of_the_pairs(name: str) -> None:
    words = [
        [Counter(split_words(text.lower())) for text in (pair.good, pair.bad)] for pair in get_pairs(name)
    ]
    differences = [(good - bad, bad - good) for good, bad in words]
    vocabulary = sorted({word for pair in differences for side in pair for word in side})
    for seed in range(10):
        random = Random(seed)
        cost = {word: random.uniform(1, 12) for word in vocabulary}
        solved = 0.0
        for good, bad in differences:
            costs = [sum(cost[word] * count for word, count in side.items()) for side in (good, bad)]
            solved += 0.5 if costs[0] == costs[1] else costs[0] < costs[1]
        assert solved / COUNT == pytest.approx(0.5, abs=0.05)


@every_phenomenon
def test_the_good_sentence_is_as_often_longer_as_shorter(name: str) -> None:
    longer = sum(
        (len(pair.good) > len(pair.bad)) - (len(pair.good) < len(pair.bad)) for pair in get_pairs(name)
    )
    assert abs(longer) <= 0.06 * COUNT


@every_phenomenon
def test_half_of_the_pairs_are_of_technical_documentation(name: str) -> None:
    technical = sum(bool(TECHNICAL.intersection(split_words(pair.good.lower()))) for pair in get_pairs(name))
    assert technical == pytest.approx(COUNT / 2, abs=COUNT * 0.06)


def test_pairs_are_the_same_in_every_process() -> None:
    code = (
        "from hashlib import sha256\n"
        "from krill.evaluation.minimal_pairs.english.phenomena import PHENOMENA\n"
        "from krill.evaluation.minimal_pairs.phenomenon import draw_pairs\n"
        "print(sha256(repr([draw_pairs(p, 100) for p in PHENOMENA]).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@every_phenomenon
def test_the_good_sentence_follows_the_rule_and_the_bad_one_breaks_it(name: str) -> None:
    for pair in get_pairs(name):
        assert CHECKS[name](pair.good, pair), pair
        assert not CHECKS[name](pair.bad, pair), pair


TECHNICAL = set(
    parse_words(
        "function functions method methods callback callbacks wrapper wrappers handler handlers macro macros program "
        "programs script scripts server servers client clients parser parsers compiler compilers command commands "
        "tool tools application applications plugin plugins service services module modules package packages library "
        "libraries extension extensions framework frameworks user users developer developers programmer programmers "
        "administrator administrators maintainer maintainers reviewer reviewers tester testers designer designers "
        "file files test tests class error errors value result update debugger debuggers call document section page "
        "manual change connection failure conversion order search sample solution setting algorithm deletion name "
        "format log project disk build list variable database bug computer index number length sum difference "
        "offset tests deadline mailing programmer link output backup check version text sockets fix release memory "
        "threads processes variables ports buffers connections resources registers bandwidth storage output messages "
        "warnings lines results information tutorial code module library python"
    )
)

IRREGULAR_PLURALS = {"men", "women", "children", "policemen", "fishermen", "businessmen", "businesswomen"}
BARE_ADJECTIVES = set(
    parse_words("young old tall new friendly quiet black white brown small blue other experienced")
)
INVARIABLE = {"read", "put", "cut", "hit", "set", "let", "shut", "cost", "hurt", "split"}
"""Verbs whose past is their base form: "The user read the file" is right."""


def is_plural(noun: str) -> bool:
    return noun in IRREGULAR_PLURALS or (
        noun.endswith("s") and not noun.endswith("ss") and noun not in ("bus", "alias")
    )


def find_head(words: list[str]) -> str:
    """Returns the noun of the phrase at the start of the words."""
    words = [word.lower() for word in words]
    words = words[words.index("the") + 1 :]
    return words[1] if words[0] in BARE_ADJECTIVES else words[0]


def is_singular_verb(verb: str) -> bool:
    return verb in ("is", "was", "has", "does") or (verb.endswith("s") and verb != "pass")


def check_agreement(sentence: str, pair: Pair) -> bool:
    index = find_spans(pair)[0]
    words = split_words(sentence)
    verb = words[index].lower()
    subject = words[index + 1 :] if sentence.endswith("?") else words
    return is_singular_verb(verb) != is_plural(find_head(subject))


def check_determiner(sentence: str, pair: Pair) -> bool:
    del pair
    words = split_words(sentence)
    singular = {"this", "that", "each", "every", "one", "another"}.intersection(words[3:])
    plural = {"these", "those", "several", "many", "two", "three", "both", "few"}.intersection(words[3:])
    assert len(singular) + len(plural) == 1
    return is_plural(words[-1]) == bool(plural)


CONSONANT_SOUNDS = set(
    parse_words(
        "unique useful used usable user user-defined uniform unicycle union unit university utility UUID Unicode "
        "UTF-8 USB European Ukrainian one-eyed"
    )
)
VOWEL_SOUNDS = {"hour", "honest", "heiress", "XML", "SSH"}


def check_article(sentence: str, pair: Pair) -> bool:
    del pair
    words = split_words(sentence)
    needed = {
        index: word in VOWEL_SOUNDS or (word not in CONSONANT_SOUNDS and word[0].lower() in "aeiou")
        for index, word in enumerate(words)
    }
    return all(needed[i + 1] == (word == "an") for i, word in enumerate(words) if word in ("a", "an"))


def check_quantity(sentence: str, pair: Pair) -> bool:
    del pair
    words = split_words(sentence)
    index = next(i for i, word in enumerate(words) if word in ("many", "much"))
    return is_plural(words[index + 1]) == (words[index] == "many")


MEN = set(parse_words("man boy king waiter prince monk policeman fisherman businessman brother father he"))
WOMEN = set(
    parse_words("woman girl queen waitress princess nun actress lady businesswoman sister mother she")
)
PERSONS = {"i": "myself", "you": "yourself", "we": "ourselves", "they": "themselves"}


def check_reflexive(sentence: str, pair: Pair) -> bool:
    index = find_spans(pair)[0]
    words = [word.lower() for word in split_words(sentence)]
    for word in words:
        if word in PERSONS:
            return words[index] == PERSONS[word]
        if word in MEN or word in WOMEN:
            return words[index] == ("himself" if word in MEN else "herself")
        if is_plural(word) and word != "this":
            return words[index] == "themselves"
        if word in TECHNICAL or word in {
            "oven",
            "machine",
            "lamp",
            "radio",
            "heater",
            "clock",
            "elevator",
            "dishwasher",
        }:
            return words[index] == "itself"
    raise AssertionError(sentence)


def check_case(sentence: str, pair: Pair) -> bool:
    index = find_spans(pair)[0]
    words = split_words(sentence)
    return (words[index] in ("I", "he", "she", "we", "they")) == (words[index - 1] == "that")


PEOPLE = set(
    parse_words(
        "teacher farmer neighbor doctor nurse driver baker gardener singer painter student girl boy woman man tailor "
        "waiter pilot lawyer carpenter visitor librarian dancer user developer programmer administrator maintainer "
        "reviewer tester designer"
    )
)


def check_relative(sentence: str, pair: Pair) -> bool:
    del pair
    words = split_words(sentence)
    noun = {"men": "man", "women": "woman"}.get(words[1], words[1].removesuffix("s"))
    return (words[2] == "who") == (noun in PEOPLE)


def classify_form(verb: str) -> str:
    if verb.endswith("ing") and verb != "sing":
        return "gerund"
    if verb in PARTICIPLES.values() or verb in REGULAR_LOOKING or (verb.endswith("ed") and verb != "feed"):
        return "participle"
    if verb.endswith("s"):
        return "third"
    return "base"


REGULAR_LOOKING = {"bought", "sold", "lost", "fed", "sent", "found"}
PARTICIPLES = {
    "took": "taken", "wrote": "written", "broke": "broken", "chose": "chosen", "drove": "driven", "ate": "eaten",
    "threw": "thrown", "drew": "drawn", "spoke": "spoken", "stole": "stolen", "wore": "worn", "saw": "seen",
    "rode": "ridden", "sang": "sung", "flew": "flown", "grew": "grown", "tore": "torn", "went": "gone",
    "did": "done", "came": "come", "shook": "shaken", "knew": "known", "gave": "given", "began": "begun",
    "swam": "swum", "froze": "frozen", "rang": "rung", "blew": "blown", "became": "become", "ran": "run",
    "rewrote": "rewritten", "overwrote": "overwritten", "undid": "undone", "redid": "redone",
    "withdrew": "withdrawn", "overrode": "overridden", "hid": "hidden", "forgot": "forgotten",
}  # fmt: skip


def check_auxiliary_form(sentence: str, pair: Pair) -> bool:
    index = find_spans(pair)[0]
    words = split_words(sentence)
    form = classify_form(words[index])
    before = words[index - 1]
    if before in ("not", "already"):
        before = words[index - 2]
    if before in ("has", "had"):
        return form == "participle"
    if before in ("is", "was"):
        return form == "gerund"
    return form == ("third" if before in ("often", "always", "sometimes", "never", "usually") else "base")


def check_irregular(sentence: str, pair: Pair) -> bool:
    index = find_spans(pair)[0]
    words = split_words(sentence)
    is_perfect = bool({"has", "had"}.intersection(words[:index]))
    return words[index] in (PARTICIPLES.values() if is_perfect else PARTICIPLES.keys())


def check_tense(sentence: str, pair: Pair) -> bool:
    del pair
    is_future = re.search(r"\b(tomorrow|next)\b", sentence, re.IGNORECASE) is not None
    assert is_future != (re.search(r"\b(yesterday|last|ago)\b", sentence, re.IGNORECASE) is not None)
    return (" will " in sentence) == is_future


def check_complement(sentence: str, pair: Pair) -> bool:
    index = find_spans(pair)[0]
    words = split_words(sentence)
    takes_to = words[2] in ("wants", "hopes", "decided", "promised", "agreed", "refused", "seems", "tends")
    return words[index] == "to" if takes_to else words[index].endswith("ing") and words[index] != "sing"


def check_passive(sentence: str, pair: Pair) -> bool:
    del pair
    return (" be " in sentence) == (" by " in sentence)


GOVERNED = {
    "on": "depends relies insists concentrated based",
    "of": "afraid proud jealous rid approves fond tired consists use care track composed aware",
    "to": "listened married allergic related objected accustomed attention "
    "refers equal similar responds leads identical",
    "with": "agrees satisfied familiar busy compatible interferes complies consistent",
    "from": "recovered benefited suffers graduated separate derived benefits recovers different",
    "in": "believes interested part participated resulted participates",
}


def check_preposition(sentence: str, pair: Pair) -> bool:
    index = find_spans(pair)[0]
    words = split_words(sentence)
    return words[index - 1] in GOVERNED[words[index]].split()


def check_polarity(sentence: str, pair: Pair) -> bool:
    """Finds the negation in the clause of ever, at its beginning: after an opening, or after the comma."""
    assert sentence.count("ever ") == 1
    assert Counter(split_words(pair.good)) == Counter(split_words(pair.bad)), (
        "a unigram model cannot tell them apart"
    )
    return re.match(r"[A-Z][a-z ]+ that no \w+ (ever|that) |When .*, no ", sentence) is not None


def check_echo(sentence: str, pair: Pair) -> bool:
    del pair
    first, second = sentence.split(", and ")
    return (" not " in first) == second.startswith("neither")


def check_gap(sentence: str, pair: Pair) -> bool:
    del pair
    return ("it" in split_words(sentence)) != sentence.startswith(("What", "Which"))


def check_order(sentence: str, pair: Pair) -> bool:
    del pair
    after = split_words(sentence.lower())[split_words(sentence.lower()).index("why") + 1]
    return sentence.endswith("?") == (after in ("is", "are", "was", "were", "do", "does"))


def check_comparison(sentence: str, pair: Pair) -> bool:
    del pair
    words = split_words(sentence)
    verb = next(index for index, word in enumerate(words) if word in ("is", "was"))
    comparative = r"(more \w+|\w+er)"
    rest = " ".join(words[verb + 1 :])
    if rest.startswith("as "):
        return re.match(rf"as (?!{comparative} )\w+ as ", rest) is not None
    return re.match(rf"{comparative} than ", rest) is not None


def check_manner(sentence: str, pair: Pair) -> bool:
    index = find_spans(pair)[0]
    return split_words(sentence)[index].endswith("ly") == sentence.startswith("The ")


def check_conjunction(sentence: str, pair: Pair) -> bool:
    del pair
    return re.search(r"either the \w+ or |both the \w+ and |neither the \w+ nor ", sentence) is not None


def test_no_verb_that_agrees_has_a_past_like_its_base() -> None:
    for name in (
        "agreement_simple",
        "agreement_across_phrase",
        "agreement_across_clause",
        "auxiliary_verb_form",
    ):
        assert not INVARIABLE.intersection(word for pair in get_pairs(name) for word in find_spans(pair)[1:])


CHECKS: dict[str, Callable[[str, Pair], bool]] = {
    "agreement_simple": check_agreement,
    "agreement_across_phrase": check_agreement,
    "agreement_across_clause": check_agreement,
    "agreement_auxiliary": check_agreement,
    "agreement_question": check_agreement,
    "determiner_noun": check_determiner,
    "article_a_an": check_article,
    "many_much": check_quantity,
    "reflexive_number": check_reflexive,
    "reflexive_gender": check_reflexive,
    "reflexive_person": check_reflexive,
    "pronoun_case": check_case,
    "relative_who_which": check_relative,
    "auxiliary_verb_form": check_auxiliary_form,
    "irregular_participle": check_irregular,
    "tense_time": check_tense,
    "verb_complement": check_complement,
    "passive": check_passive,
    "governed_preposition": check_preposition,
    "negative_polarity": check_polarity,
    "so_neither": check_echo,
    "wh_gap": check_gap,
    "embedded_question": check_order,
    "comparative": check_comparison,
    "adjective_adverb": check_manner,
    "paired_conjunction": check_conjunction,
}
