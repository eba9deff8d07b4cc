"""Features of a text for the filters: letters, words, lines, links, repetition.

Most are shares of the characters, words or lines, and all mean the same in Korean and English. `krill.text.filters`
compares them with thresholds one by one, so words and lines are split lazily, when a feature first needs them.

Gopher: Rae et al. 2021, "Scaling Language Models", table A1. FineWeb: Penedo et al. 2024, "The FineWeb Datasets".
"""

from __future__ import annotations

import re
import zlib
from functools import cache, cached_property

import numpy as np

from krill.text.cleaning import compose

MAX_FEATURE_CHARACTERS = 1_000_000
"""Only the first characters of a longer text are measured, so that memory and time are bounded."""

WHITESPACE, LATIN, HANGUL, OTHER_HANGUL, HAN, KANA, OTHER_LETTER, SYMBOL = range(8)
"""Kinds of characters. Digits count as symbols. HANGUL: the 2,350 syllables of KS X 1001, in which Korean is written;
OTHER_HANGUL: the syllables that random keys make, and letters such as ㅋ."""

_HANGUL_BLOCKS = ((0x1100, 0x1200), (0x3131, 0x318F), (0xA960, 0xA97D), (0xAC00, 0xD7FC), (0xFFA0, 0xFFDD))
_KANA_BLOCKS = ((0x3041, 0x3100), (0x31F0, 0x3200), (0xFF66, 0xFFA0), (0x1AFF0, 0x1B170))
_HAN_BLOCKS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x323B0))
_LAST_LETTER = 0x323AF  # the last letter of Unicode 15

_FUNCTION_WORDS = frozenset(
    {"the", "be", "to", "of", "and", "that", "have", "with"}
    | {"in", "is", "for", "this", "are", "on", "as", "or", "by", "not", "it", "an", "from", "if", "you"}
    | {"was", "can", "at", "all", "will", "which"}
)
"""Gopher's eight English function words and the next most frequent ones, lower case."""
_KOREAN_ENDINGS = "은는이가을를에의로도와과고다요며면서지만까니네음함게야죠데들나"
_KOREAN_ENDING_PATTERN = re.compile(rf"[{_KOREAN_ENDINGS}](?![^\W\d_ㄱ-ㅣ])")
"""The last syllable of a word, if it is one in which Korean particles and verbs usually end; ㅋ or ㅠ may follow."""

_SENTENCE_ENDS = frozenset(".!?…。！？\"'”’~^" + ";:)}]" + "다요죠까네음함듯지야데ㅋㅎㅠㅜ")
"""Punctuation, line ends of code, and endings of Korean verbs, as Korean is often written without a full stop."""
_CLAUSE_ENDS = frozenset("것임됨함음움짐킴남냄옴봄춤줌둠힘듬듦씀큼쁨픔슴")
"""Verb endings of official style, as in 결정됨, 예정임, 제출할 것. Words of menus have them, too (게임, 모임), so
only those of lines of several words count."""
_MIN_CLAUSE_WORDS, _MIN_PARTICLE_WORDS = 3, 4
_SHORT_LINE_LENGTH = 30
_LINK_PATTERN = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]]+|\]\([^()\s]+\)")

_NGRAM_SIZE = 5
_MAX_WORD_LENGTH = 20
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class TextFeatures:
    """A cleaned text (one that encodes as UTF-8) and its features, all of its NFC."""

    def __init__(self, text: str) -> None:
        self.text = compose(text)
        self.head = self.text[:MAX_FEATURE_CHARACTERS]
        """The part that is measured."""

    # --- letters ---

    @cached_property
    def _kind_counts(self) -> list[int]:
        """The number of characters of each kind."""
        codes = np.frombuffer(self.head.encode("utf-32-le"), "<u4")
        return np.bincount(_build_character_kinds()[codes], minlength=SYMBOL + 1).tolist()

    @property
    def letter_share(self) -> float:
        """Share of the characters other than white space that are letters of any script."""
        *letters, symbols = self._kind_counts[LATIN:]
        return _compute_share(sum(letters), sum(letters) + symbols)

    @property
    def script_shares(self) -> dict[str, float]:
        """Shares of Korean ("ko"), Latin ("en") and other letters ("und"); letters that are not Latin count twice.

        Han characters are Korean where Hangul is between them, at most two for each letter of Hangul, unless kana
        shows that they are Japanese.
        """
        latin, common, rare, han, kana, other = self._kind_counts[LATIN:SYMBOL]
        hangul = common + rare
        korean = hangul + min(han, 2 * max(0, hangul - kana))
        others = hangul + han + kana + other - korean
        total = latin + 2 * (korean + others)
        return {
            "ko": _compute_share(2 * korean, total),
            "en": _compute_share(latin, total),
            "und": _compute_share(2 * others, total) if total else 1.0,
        }

    @property
    def common_hangul_share(self) -> float:
        """Share of the letters that are Han characters or Hangul syllables which Korean is written in."""
        letters = self._kind_counts[LATIN:SYMBOL]
        return _compute_share(letters[HANGUL - LATIN] + letters[HAN - LATIN], sum(letters))

    # --- words ---

    @cached_property
    def _words(self) -> list[str]:
        return self.head.split()

    @cached_property
    def _word_lengths(self) -> np.ndarray:
        return np.fromiter(map(len, self._words), np.int64, len(self._words))

    @property
    def word_count(self) -> int:
        """Number of words; words are separated by white space."""
        return len(self._words)

    @property
    def mean_word_length(self) -> float:
        """Mean number of characters of a word."""
        return _compute_share(int(self._word_lengths.sum()), len(self._words))

    @property
    def function_word_share(self) -> float:
        """Share of the words that are English function words or end as Korean particles and verbs do."""
        count = sum(map(_FUNCTION_WORDS.__contains__, self._words))
        if not self.head.isascii():
            count += len(_KOREAN_ENDING_PATTERN.findall(self.head))
        return _compute_share(count, len(self._words))

    # --- lines ---

    @cached_property
    def _lines(self) -> list[str]:
        """The lines that are not empty, with white space stripped."""
        return list(filter(None, map(str.strip, self.head.split("\n"))))

    @property
    def line_count(self) -> int:
        """Number of the lines that are not empty."""
        return len(self._lines)

    @property
    def sentence_end_share(self) -> float:
        """Share of the lines that end a sentence, or a statement of code, or that are a Korean clause."""
        return _compute_share(
            sum(line[-1] in _SENTENCE_ENDS or _is_korean_clause(line) for line in self._lines),
            len(self._lines),
        )

    @property
    def short_line_share(self) -> float:
        """Share of the characters that are in lines of fewer than 30 characters."""
        lengths = list(map(len, self._lines))
        return _compute_share(sum(length for length in lengths if length < _SHORT_LINE_LENGTH), sum(lengths))

    @property
    def link_share(self) -> float:
        """Share of the characters that are in web addresses or targets of Markdown links."""
        if "://" not in self.head and "www." not in self.head and "](" not in self.head:
            return 0.0
        return _compute_share(sum(map(len, _LINK_PATTERN.findall(self.head))), len(self.head))

    # --- repetition ---

    @property
    def duplicate_line_share(self) -> float:
        """Share of the characters that are in lines equal to an earlier line."""
        return 1.0 - _compute_share(sum(map(len, set(self._lines))), sum(map(len, self._lines)), empty=1.0)

    @property
    def top_bigram_share(self) -> float:
        """Share of the characters that are in the most frequent bigram of words, by characters.

        Exceeds 1 where its occurrences overlap. At most 20 characters of a word count, as the rule of a table is
        a word, too.
        """
        positions, counts = self._count_ngrams(2)
        lengths = np.minimum(self._word_lengths, _MAX_WORD_LENGTH)
        lengths = lengths[positions] + lengths[positions + 1]
        repeated = (lengths * counts)[counts > 1]
        return _compute_share(int(repeated.max(initial=0)), int(self._word_lengths.sum()))

    @property
    def max_bigram_count(self) -> int:
        """Number of occurrences of the most frequent bigram of words, by number."""
        return int(self._count_ngrams(2)[1].max(initial=0))

    @property
    def distinct_share(self) -> float:
        """Number of distinct characters as a share of all."""
        return _compute_share(len(set(self.head)), len(self.head))

    @property
    def duplicate_ngram_share(self) -> float:
        """Share of the characters that are in a repetition of five consecutive words."""
        size = len(self._words)
        first, _ = self._count_ngrams(_NGRAM_SIZE)
        repeats = np.ones(max(0, size - _NGRAM_SIZE + 1), bool)
        repeats[first] = False
        starts = np.flatnonzero(repeats)
        depth = np.bincount(starts, minlength=size + 1) - np.bincount(
            starts + _NGRAM_SIZE, minlength=size + 1
        )
        covered = np.cumsum(depth[:size]) > 0
        return _compute_share(int(self._word_lengths[covered].sum()), int(self._word_lengths.sum()))

    @property
    def compression_ratio(self) -> float:
        """Size after zlib compression as a share of the UTF-8 bytes; short texts compress less."""
        content = self.head.encode()
        return _compute_share(len(zlib.compress(content, 1)), len(content), empty=1.0)

    @cached_property
    def _word_hashes(self) -> np.ndarray:
        """A 64-bit hash of each word, for comparison only: Python seeds its hashes differently in each process."""
        return np.fromiter(map(hash, self._words), np.int64, len(self._words)).view(np.uint64)

    def _count_ngrams(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index of the first occurrence and the count of each distinct n-gram of words."""
        count = max(0, len(self._words) - size + 1)
        grams = np.zeros(count, np.uint64)
        for offset in range(size):
            grams = grams * _HASH_MULTIPLIER + self._word_hashes[offset : offset + count]
        _, positions, counts = np.unique(grams, return_index=True, return_counts=True)
        return positions, counts


def _compute_share(part: int, whole: int, empty: float = 0.0) -> float:
    return part / whole if whole else empty


def _is_korean_clause(line: str) -> bool:
    """Returns whether a line without punctuation is a clause: several words that end in a verb or have particles."""
    if line.isascii() or (num_words := len(line.split())) < _MIN_CLAUSE_WORDS:
        return False
    if line[-1] in _CLAUSE_ENDS:
        return True
    return num_words >= _MIN_PARTICLE_WORDS and 2 * len(_KOREAN_ENDING_PATTERN.findall(line)) >= num_words


@cache
def _build_character_kinds() -> np.ndarray:
    """Returns the kind of every code point, uint8 (0x110000,)."""
    kinds = np.full(0x110000, SYMBOL, np.uint8)
    for code in range(_LAST_LETTER + 1):
        character = chr(code)
        if character.isspace():
            kinds[code] = WHITESPACE
        elif character.isalpha():
            kinds[code] = LATIN if code < 0x250 or 0x1E00 <= code < 0x1F00 else OTHER_LETTER
    for blocks, kind in ((_HANGUL_BLOCKS, OTHER_HANGUL), (_KANA_BLOCKS, KANA), (_HAN_BLOCKS, HAN)):
        for first, end in blocks:
            kinds[first:end][(kinds[first:end] == OTHER_LETTER) | (kind == OTHER_HANGUL)] = kind
    kinds[[code for code in range(0xAC00, 0xD7A4) if len(chr(code).encode("euc-kr", "ignore")) == 2]] = HANGUL
    return kinds
