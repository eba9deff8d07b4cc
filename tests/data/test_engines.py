"""Tests that the fast engine gives the ids of the reference or is not used."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from krill.config.schema import TokenizerConfig
from krill.data import engines
from krill.data.encoding import Encoder
from krill.data.engines import (
    EngineMismatch,
    GigatokenEngine,
    HuggingFaceEngine,
    VerifiedEngine,
    check_same_ids,
    select_engine,
)
from krill.errors import UsageError
from krill.extras import format_install_command
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer
from krill.tokenizer.train import train_tokenizer

CORPUS = [
    f"문서 {n}: ㅋㅋㅋ 안녕하세요 don't stop {n * 977}  x² \n\n\tdef f(x):\n    return x\n" for n in range(60)
]


def train_small_tokenizer(folder: Path, **changes: Any) -> TokenizerFolder:
    folder.mkdir()
    recipe = {
        "name": "t", "path": None, "vocab_size": 330, "min_frequency": 2, "max_token_length": None,
        "normalizer": "none", "pattern": "gpt4", "bos_token": "<|bos|>", "eos_token": "<|eos|>",
        "pad_token": "<|pad|>", "special_tokens": ["<think>"], "sample_bytes": 10**6,
        "base": None, "multiple_of": 1, "trainer": "hf", "chat_template": None, "push_to": None, "private": True,
    }  # fmt: skip
    train_tokenizer(TokenizerConfig(**recipe | changes), lambda: iter(CORPUS), folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return train_small_tokenizer(tmp_path_factory.mktemp("engine") / "t")


@pytest.fixture(scope="module")
def encoders(tokenizer: TokenizerFolder) -> list[Encoder]:
    """Returns an encoder of each engine; building one takes longer than encoding a text."""
    return [Encoder(tokenizer, engine) for engine in ("fast", "hf")]


@pytest.mark.parametrize("changes", [{"pattern": "gpt4"}, {"pattern": "gpt2"}, {"normalizer": "nfc"}])
def test_fast_engine_supports_every_recipe(tmp_path: Path, changes: dict[str, str]) -> None:
    backend = Encoder(train_small_tokenizer(tmp_path / "t", **changes)).backend
    check_same_ids(
        GigatokenEngine(backend),
        HuggingFaceEngine(backend),
        [*CORPUS, "<|eos|><think>", "", "e\u0301 \ufb01"],
    )


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["<|eos|>", "<think>a"])
    )
)
def test_engines_give_the_same_tokens_for_any_text(encoders: list[Encoder], texts: list[str]) -> None:
    fast, reference = (encoder.encode(texts) for encoder in encoders)
    np.testing.assert_array_equal(fast.tokens, reference.tokens)
    np.testing.assert_array_equal(fast.lengths, reference.lengths)


class WrongEngine:
    """An engine with a wrong id for one text."""

    def __init__(self, reference: HuggingFaceEngine) -> None:
        self._reference = reference

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = self._reference.encode_batch(texts)
        if "poison" in "".join(texts):
            ids = ids.copy()
            ids[-1] += 1
        return ids, lengths


def test_different_ids_raise_with_the_text(tokenizer: TokenizerFolder) -> None:
    reference = HuggingFaceEngine(Encoder(tokenizer).backend)
    check_same_ids(WrongEngine(reference), reference, CORPUS)
    with pytest.raises(EngineMismatch, match="begins 'poison 독'"):
        check_same_ids(WrongEngine(reference), reference, [*CORPUS, "poison 독"])
    with pytest.raises(EngineMismatch):
        VerifiedEngine(WrongEngine(reference), reference).encode_batch(["poison"])


def test_auto_uses_the_fast_engine_if_its_ids_are_equal(
    tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krill")
    backend = Encoder(tokenizer).backend
    assert select_engine("hf", backend, lambda: CORPUS, 10**9) == "hf"
    assert (
        select_engine("auto", backend, lambda: CORPUS, 10)
        == select_engine("fast", backend, lambda: CORPUS, 10)
        == "fast"
    )
    monkeypatch.setattr(engines, "GigatokenEngine", lambda backend: WrongEngine(HuggingFaceEngine(backend)))
    assert select_engine("auto", backend, lambda: ["poison"], 10**9) == "hf"
    assert "Hugging Face tokenizers (gigatoken gives different ids" in caplog.text
    with pytest.raises(UsageError, match=r"data\.engine=hf"):
        select_engine("fast", backend, lambda: ["poison"], 10)


def test_auto_falls_back_without_gigatoken(
    tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krill")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    backend = Encoder(tokenizer).backend
    assert select_engine("auto", backend, lambda: CORPUS, 10**9) == "hf"
    assert format_install_command("fast") in caplog.text
    with pytest.raises(UsageError, match=r"pip install .*\[fast\]"):
        select_engine("fast", backend, lambda: CORPUS, 10)


def test_auto_falls_back_for_unsupported_tokenizers(
    tokenizer: TokenizerFolder,
) -> None:
    backend = Encoder(tokenizer).backend
    backend.normalizer = normalizers.NFKC()
    assert select_engine("auto", backend, lambda: CORPUS, 10) == "hf"
    with pytest.raises(UsageError, match="NFKC"):
        select_engine("fast", backend, lambda: CORPUS, 10)


def test_reference_equals_the_tokenizer(tokenizer: TokenizerFolder) -> None:
    ids, lengths = HuggingFaceEngine(tokenizer.backend).encode_batch(CORPUS)
    expected = [tokenizer.backend.encode(text, add_special_tokens=False).ids for text in CORPUS]
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == expected
