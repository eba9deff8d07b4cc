"""The result of rustbpe is converted to an equivalent tokenizer, or Hugging Face's trainer is used instead."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import types
import unicodedata
from pathlib import Path

import pytest
from recipes import TEXTS, load_english, make_korean, make_recipe, round_trip, train_small

from krill.errors import KrillError, UsageError
from krill.tokenizer.recipe import SPLIT_PATTERNS, bytes_to_unicode
from krill.tokenizer.rustbpe import recover_merges, train_with_rustbpe
from krill.tokenizer.train import compute_recipe_signature

BYTES = [bytes([byte]) for byte in range(256)]


# --- merges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
def test_the_tokenizer_encodes_as_rustbpe_does(pattern: str) -> None:
    """The ids by rustbpe, as byte strings, are the tokens of the tokenizer."""
    rustbpe = pytest.importorskip("rustbpe")
    texts = [*make_korean()[:60], *load_english()[:30]]
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), 256 + 2000, pattern=SPLIT_PATTERNS[pattern])
    ranks = {rank: content for content, rank in trainer.get_mergeable_ranks()}
    tokenizer = train_with_rustbpe(
        make_recipe(vocab_size=256 + 2000 + 5, max_token_length=None, pattern=pattern), texts
    )
    assert tokenizer is not None
    letter_to_byte = {letter: bytes([byte]) for byte, letter in enumerate(bytes_to_unicode())}
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False).tokens
        contents = [b"".join(letter_to_byte[letter] for letter in token) for token in tokens]
        assert contents == [ranks[token] for token in trainer.encode(text)]


def test_recovers_the_parts_that_a_string_was_merged_of() -> None:
    ranks = [*BYTES, b"ab", b"bc", b"abc", b"abcabc", b"dab"]
    assert recover_merges(ranks) == [
        (b"a", b"b"),
        (b"b", b"c"),
        (b"ab", b"c"),
        (b"abc", b"abc"),
        (b"d", b"ab"),
    ]


def test_too_long_strings_and_all_merged_of_them_are_removed() -> None:
    ranks = [*BYTES, b"ab", b"abab", b"abababab", b"cd"]
    assert recover_merges(ranks, 3) == [(b"a", b"b"), (b"c", b"d")]
    ranks = [*BYTES, b"ab", b"abcd", b"abcde"]
    assert recover_merges(ranks) == [(b"a", b"b")], "strings that are not merged of two are removed"


def test_repeated_strings_are_removed() -> None:
    ranks = [*BYTES, b"ab", b"bc", b"abc", b"abc", b"abcd", b"abcd"]
    assert recover_merges(ranks) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"abc", b"d")]


def test_long_strings_are_recovered_quickly() -> None:
    """On a repeated letter, every merge doubles the longest entry."""
    ranks = [*BYTES, *(b"a" * 2**power for power in range(1, 15))]
    assert recover_merges(ranks) == [(b"a" * 2**power, b"a" * 2**power) for power in range(14)]


# --- fallback to Hugging Face's trainer -------------------------------------------------------------------


@pytest.mark.usefixtures("rustbpe")
def test_the_minimum_frequency_is_respected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """rustbpe has none: on little text its last entries occur once."""
    texts = [*make_korean()[:4], *TEXTS[:3]]
    size = _find_largest_vocab_size(tmp_path / "hf", texts, 3)
    assert size < _find_largest_vocab_size(tmp_path / "more", texts, 1)
    assert (
        train_small(tmp_path / "a", texts, trainer="rustbpe", min_frequency=3, vocab_size=size).vocab_size
        == size
    )
    assert caplog.text == ""
    with pytest.raises(KrillError, match=f"yields only {size} entries"):
        train_small(tmp_path / "b", texts, trainer="rustbpe", min_frequency=3, vocab_size=size + 50)
    assert "using Hugging Face's trainer instead" in caplog.text


def _find_largest_vocab_size(folder: Path, texts: list[str], min_frequency: int) -> int:
    """Returns the number of entries that Hugging Face's trainer finds."""
    with pytest.raises(KrillError, match="yields only") as error:
        train_small(folder, texts, min_frequency=min_frequency, vocab_size=100_000)
    return int(str(error.value).split("yields only ")[1].split()[0])


@pytest.mark.usefixtures("rustbpe")
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_with_nfc_the_frequency_is_counted_in_normalized_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    texts = [unicodedata.normalize(form, text) for text in make_korean()[:40]]
    tokenizer = train_small(tmp_path / "t", texts, trainer="rustbpe", normalizer="nfc", vocab_size=600)
    assert caplog.text == ""
    assert round_trip(tokenizer, texts[0]) == make_korean()[0]


@pytest.mark.usefixtures("rustbpe")
def test_the_error_for_too_little_text_names_the_size_by_hugging_face(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        KrillError, match=r"the text yields only \d+ entries .* set tokenizer\.vocab_size=\d+ or"
    ):
        train_small(tmp_path / "t", trainer="rustbpe", vocab_size=5000)
    assert "rustbpe found too few entries" in caplog.text


@pytest.mark.usefixtures("rustbpe")
def test_training_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no document is left"):
        train_small(tmp_path / "t", [], trainer="rustbpe")


@pytest.mark.usefixtures("rustbpe")
def test_a_vocabulary_of_bytes_and_special_tokens_has_no_merges(tmp_path: Path) -> None:
    specials = [f"<|{number}|>" for number in range(41)]
    tokenizer = train_small(tmp_path / "t", trainer="rustbpe", vocab_size=300, special_tokens=specials)
    assert tokenizer.vocab_size == 300
    assert json.loads(tokenizer.backend.to_str())["model"]["merges"] == []


def test_if_the_pattern_fails_hugging_faces_trainer_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class PanicException(BaseException):  # as in pyo3
        pass

    class Tokenizer:
        def train_from_iterator(self, *arguments: object, **keys: object) -> None:
            raise PanicException("regex match failed: RuntimeError(StackOverflow)")

    monkeypatch.setitem(sys.modules, "rustbpe", types.SimpleNamespace(Tokenizer=Tokenizer))
    monkeypatch.setattr("krill.tokenizer.rustbpe.get_rustbpe_version", lambda: "0")
    assert train_small(tmp_path / "t", trainer="rustbpe").vocab_size == 330
    assert "rustbpe cannot split this text; using Hugging Face's trainer instead" in caplog.text


def test_an_interrupt_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokenizer:
        def train_from_iterator(self, *arguments: object, **keys: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "rustbpe", types.SimpleNamespace(Tokenizer=Tokenizer))
    with pytest.raises(KeyboardInterrupt):
        train_small(tmp_path / "t", trainer="rustbpe")


def test_the_error_for_missing_rustbpe_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rustbpe", None)
    with pytest.raises(UsageError, match=r"pip install .*\[fast\].*tokenizer\.trainer=hf"):
        train_small(tmp_path / "t", trainer="rustbpe")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(UsageError, match=r"pip install .*\[fast\]"):
        compute_recipe_signature(make_recipe(trainer="rustbpe"))
    compute_recipe_signature(make_recipe())


@pytest.fixture
def rustbpe(caplog: pytest.LogCaptureFixture) -> None:
    """Skips the test if rustbpe is not installed; captures krill's warnings."""
    pytest.importorskip("rustbpe")
    caplog.set_level(logging.WARNING, "krill")
