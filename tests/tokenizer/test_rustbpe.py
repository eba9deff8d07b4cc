"""What rustbpe learns becomes the same tokenizer in tokenizer.json, or Hugging Face's trainer takes over."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import types
import unicodedata
from pathlib import Path

import pytest
from recipes import TEXTS, english, given_back, korean, recipe, train

from krill.errors import KrillError, UsageError
from krill.tokenizer.recipe import SPLIT_PATTERNS, bytes_to_unicode
from krill.tokenizer.rustbpe import recover_merges, train_with_rustbpe
from krill.tokenizer.train import compute_recipe_signature

BYTES = [bytes([byte]) for byte in range(256)]


# --- merges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
def test_merges_encode_as_rustbpe_does(pattern: str) -> None:
    """rustbpe's own ids, read as byte strings, are the tokens of the tokenizer."""
    rustbpe = pytest.importorskip("rustbpe")
    texts = [*korean()[:60], *english()[:30]]
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), 256 + 2000, pattern=SPLIT_PATTERNS[pattern])
    ranks = {rank: content for content, rank in trainer.get_mergeable_ranks()}
    tokenizer = train_with_rustbpe(
        recipe(vocab_size=256 + 2000 + 5, max_token_length=None, pattern=pattern), texts
    )
    assert tokenizer is not None
    spelled = {letter: bytes([byte]) for byte, letter in enumerate(bytes_to_unicode())}
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False).tokens
        found = [b"".join(spelled[letter] for letter in token) for token in tokens]
        assert found == [ranks[token] for token in trainer.encode(text)]


def test_parts_of_which_a_string_was_merged() -> None:
    ranks = [*BYTES, b"ab", b"bc", b"abc", b"abcabc", b"dab"]
    assert recover_merges(ranks) == [
        (b"a", b"b"),
        (b"b", b"c"),
        (b"ab", b"c"),
        (b"abc", b"abc"),
        (b"d", b"ab"),
    ]


def test_too_long_strings_are_left_out_and_what_is_merged_of_them() -> None:
    ranks = [*BYTES, b"ab", b"abab", b"abababab", b"cd"]
    assert recover_merges(ranks, 3) == [(b"a", b"b"), (b"c", b"d")]
    ranks = [*BYTES, b"ab", b"abcd", b"abcde"]
    assert recover_merges(ranks) == [(b"a", b"b")], "what is not merged of two is left out"


def test_strings_that_come_twice_come_once() -> None:
    ranks = [*BYTES, b"ab", b"bc", b"abc", b"abc", b"abcd", b"abcd"]
    assert recover_merges(ranks) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"abc", b"d")]


def test_long_strings_take_no_time_to_speak_of() -> None:
    """A letter again and again doubles its longest entry with every merge."""
    ranks = [*BYTES, *(b"a" * 2**power for power in range(1, 15))]
    assert recover_merges(ranks) == [(b"a" * 2**power, b"a" * 2**power) for power in range(14)]


# --- where rustbpe cannot do it ----------------------------------------------------------------------------


@pytest.mark.usefixtures("rustbpe")
def test_least_frequency_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """rustbpe knows none: with few texts its last entries come once."""
    texts = [*korean()[:4], *TEXTS[:3]]
    size = _find_largest_vocab_size(tmp_path / "hf", texts, 3)
    assert size < _find_largest_vocab_size(tmp_path / "more", texts, 1)
    assert (
        train(tmp_path / "a", texts, trainer="rustbpe", min_frequency=3, vocab_size=size).vocab_size == size
    )
    assert caplog.text == ""
    with pytest.raises(KrillError, match=f"yields only {size} entries"):
        train(tmp_path / "b", texts, trainer="rustbpe", min_frequency=3, vocab_size=size + 50)
    assert "Hugging Face's trainer takes over" in caplog.text


def _find_largest_vocab_size(folder: Path, texts: list[str], least: int) -> int:
    """Entries that Hugging Face's trainer finds."""
    with pytest.raises(KrillError, match="yields only") as error:
        train(folder, texts, min_frequency=least, vocab_size=100_000)
    return int(str(error.value).split("yields only ")[1].split()[0])


@pytest.mark.usefixtures("rustbpe")
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_text_that_is_composed_first_is_counted_composed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    texts = [unicodedata.normalize(form, text) for text in korean()[:40]]
    tokenizer = train(tmp_path / "t", texts, trainer="rustbpe", normalizer="nfc", vocab_size=600)
    assert caplog.text == ""
    assert given_back(tokenizer, texts[0]) == korean()[0]


@pytest.mark.usefixtures("rustbpe")
def test_too_little_text_says_what_hugging_face_finds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        KrillError, match=r"the text yields only \d+ entries .* set tokenizer\.vocab_size=\d+ or"
    ):
        train(tmp_path / "t", trainer="rustbpe", vocab_size=5000)
    assert "rustbpe finds too few entries" in caplog.text


@pytest.mark.usefixtures("rustbpe")
def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no document is left"):
        train(tmp_path / "t", [], trainer="rustbpe")


@pytest.mark.usefixtures("rustbpe")
def test_bytes_and_specials_alone(tmp_path: Path) -> None:
    specials = [f"<|{number}|>" for number in range(41)]
    tokenizer = train(tmp_path / "t", trainer="rustbpe", vocab_size=300, special_tokens=specials)
    assert tokenizer.vocab_size == 300
    assert json.loads(tokenizer.backend.to_str())["model"]["merges"] == []


def test_where_the_pattern_fails_hugging_face_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class PanicException(BaseException):  # as pyo3 has it
        pass

    class Tokenizer:
        def train_from_iterator(self, *arguments: object, **keys: object) -> None:
            raise PanicException("regex match failed: RuntimeError(StackOverflow)")

    monkeypatch.setitem(sys.modules, "rustbpe", types.SimpleNamespace(Tokenizer=Tokenizer))
    monkeypatch.setattr("krill.tokenizer.rustbpe.get_rustbpe_version", lambda: "0")
    assert train(tmp_path / "t", trainer="rustbpe").vocab_size == 330
    assert "rustbpe cannot cut this text; Hugging Face's trainer takes over" in caplog.text


def test_an_interrupt_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokenizer:
        def train_from_iterator(self, *arguments: object, **keys: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "rustbpe", types.SimpleNamespace(Tokenizer=Tokenizer))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "t", trainer="rustbpe")


def test_without_rustbpe_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rustbpe", None)
    with pytest.raises(UsageError, match=r"pip install 'krill\[fast\]'.*tokenizer\.trainer=hf"):
        train(tmp_path / "t", trainer="rustbpe")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(UsageError, match=r"pip install 'krill\[fast\]'"):
        compute_recipe_signature(recipe(trainer="rustbpe"))
    compute_recipe_signature(recipe())


@pytest.fixture
def rustbpe(caplog: pytest.LogCaptureFixture) -> None:
    """Skips where rustbpe is not installed; krill's warnings are caught."""
    pytest.importorskip("rustbpe")
    caplog.set_level(logging.WARNING, "krill")
