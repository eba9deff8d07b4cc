"""The pre-tokenizer of llama.cpp follows from the pattern in tokenizer.json; what it does not have is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from stores import make_tokenizer
from tokenizers import Regex, Tokenizer, pre_tokenizers

from krill.errors import UsageError
from krill.export.gguf_tokenizer import read_gguf_tokenizer
from krill.export.split_families import find_pre_tokenizer, find_unreachable_entries
from krill.tokenizer.artifact import RECORD, TokenizerFolder

LLAMA_CPP_PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""As src/llama-vocab.cpp and src/unicode.cpp quote the originals."""

TEXT = "I'll 'LL go  to\t\n \r\n x=1234567, 'tis 'S 한국어ㅋㅋ é½ ½cup HTTPServer/API\n\n!?/\r\n  end  "


def change(folder: Path, **changes: Any) -> Path:
    """Changes sections of tokenizer.json, as another tool would have written it."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            content[section][name] = value
        else:
            content[section] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    (folder / RECORD).unlink(missing_ok=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tokenizer(tmp_path / "bpe").folder


@pytest.mark.parametrize(
    ("pattern", "name"), [("gpt2", "gpt-2"), ("gpt4", "llama-bpe"), ("gpt4o", "gpt-4o"), ("qwen2", "qwen2")]
)
def test_every_pattern_of_krill_has_a_name_and_is_the_pattern_of_that_name(
    tmp_path: Path, pattern: str, name: str
) -> None:
    tokenizer = make_tokenizer(tmp_path / "bpe", pattern=pattern)
    assert read_gguf_tokenizer(tokenizer.folder, 330, "x").pre_tokenizer == name
    theirs = pre_tokenizers.Split(Regex(LLAMA_CPP_PATTERNS[name]), "isolated")
    ours = tokenizer.backend.pre_tokenizer[0]
    assert ours.pre_tokenize_str(TEXT) == theirs.pre_tokenize_str(TEXT)


def test_the_pre_tokenizer_of_gpt_2_is_known(folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert find_pre_tokenizer(json.loads(backend.to_str()), "x")[1].name == "gpt-2"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"pre_tokenizer": None},
            "does not split text in the way of this tokenizer; train .*pattern=gpt4, qwen2 or gpt2",
        ),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "does not split text"),
        ({"normalizer": {"type": "NFKC"}}, "it normalizes text by NFKC"),
        ({"model__end_of_word_suffix": "</w>"}, "end_of_word_suffix='</w>'"),
    ],
)
def test_another_tokenizer_is_refused(folder: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read_gguf_tokenizer(change(folder, **changes), 330, "x")


def test_a_prefix_space_or_a_second_split_is_refused(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    steps = content["pre_tokenizer"]["pretokenizers"]
    for other in (
        [*steps[:1], steps[1] | {"add_prefix_space": True}],
        [{"type": "Digits", "individual_digits": True}, *steps],
        [steps[0] | {"behavior": "MergedWithNext"}, steps[1]],
        [steps[0] | {"pattern": {"Regex": r"\p{L}+|."}}, steps[1]],
        [steps[0], steps[1] | {"use_regex": True}],
    ):
        content["pre_tokenizer"]["pretokenizers"] = other
        with pytest.raises(UsageError, match="does not split text"):
            find_pre_tokenizer(content, "x")


def test_an_entry_that_no_merges_lead_to_needs_the_right_name(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert find_unreachable_entries(content) == []
    assert find_pre_tokenizer(content, "x")[1].name == "llama-bpe"
    content["model"]["vocab"]["Ġzq"] = 330  # without merges
    assert find_unreachable_entries(content) == ["Ġzq"]
    assert find_pre_tokenizer(content, "x")[1].name == "smaug-bpe"
    content["model"]["ignore_merges"] = True
    assert find_pre_tokenizer(content, "x")[1].name == "llama-bpe"
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = LLAMA_CPP_PATTERNS["qwen2"]
    with pytest.raises(UsageError, match="no merges lead to 1 entries, the first of them 'Ġzq'"):
        find_pre_tokenizer(content, "x")


def test_what_llama_cpp_does_otherwise_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("krill"), "propagate", True)
    read_gguf_tokenizer(make_tokenizer(tmp_path / "a").folder, 330, "x")
    assert caplog.text == ""
    read_gguf_tokenizer(make_tokenizer(tmp_path / "b", normalizer="nfc").folder, 330, "x")
    assert "it normalizes text to NFC, and llama.cpp does not" in caplog.text
    caplog.clear()
    read_gguf_tokenizer(make_tokenizer(tmp_path / "c", pattern="gpt4o").folder, 330, "x")
    assert "pattern=gpt4o only roughly" in caplog.text


def test_boundaries_that_a_tokenizer_adds(folder: Path, tokenizer: TokenizerFolder) -> None:
    found = read_gguf_tokenizer(tokenizer.folder, 330, "x")
    assert (found.adds_bos, found.adds_eos) == (True, False)
    plain = read_gguf_tokenizer(change(folder, post_processor=None), 330, "x")
    assert (plain.adds_bos, plain.adds_eos) == (False, False)
    think = {"id": "<think>", "ids": [3], "tokens": ["<think>"]}
    single = [{"SpecialToken": {"id": "<think>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {"<think>": think},
    }
    with pytest.raises(UsageError, match=r"it adds \['<think>'\] to a text"):
        read_gguf_tokenizer(change(folder, post_processor=template), 330, "x")
