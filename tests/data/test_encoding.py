"""Boundaries come from krill, never from the text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from krill.data.encoding import Encoder, get_token_dtype
from krill.errors import UsageError
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer

INJECTED = "before </s> between <s>after</s></s> <pad> 한국어 end"


def save(folder: Path, tokenizer: Tokenizer, **roles: str) -> TokenizerFolder:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return load_tokenizer(folder)


def byte_level(folder: Path, special: bool) -> TokenizerFolder:
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=special) for token in ("<s>", "</s>", "<pad>")])
    return save(folder, tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def unigram(folder: Path) -> TokenizerFolder:
    """A model whose own vocabulary holds </s>, as those converted from sentencepiece do."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(character, -5.0) for character in sorted({*INJECTED, *"</s>"})]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.decoder = decoders.Fuse()
    return save(folder, tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("kind", ["special", "not flagged special", "in the model's own vocabulary"])
def test_literal_boundaries_in_text_stay_text(tmp_path: Path, kind: str) -> None:
    tokenizer = unigram(tmp_path) if "own" in kind else byte_level(tmp_path, special=kind == "special")
    (tokens,) = Encoder(tokenizer).encode_documents([INJECTED])
    control = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    assert (tokens[0], tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert control.isdisjoint(tokens[1:-1].tolist())
    assert tokenizer.backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == INJECTED


def test_the_tokenizer_itself_is_left_as_it_was(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, special=True)
    list(Encoder(tokenizer).encode_documents([INJECTED]))
    assert tokenizer.eos_id in tokenizer.backend.encode("a</s>").ids


def test_a_tokenizer_that_cannot_but_write_eos_is_refused(tmp_path: Path) -> None:
    model = models.WordLevel({"</s>": 0, "known": 1}, unk_token="</s>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UsageError, match="byte-level"):
        list(Encoder(save(tmp_path, tokenizer, eos_token="</s>")).encode_documents(["known", "unknown"]))


def test_many_texts_are_encoded_as_each_alone(tmp_path: Path) -> None:
    encoder = Encoder(byte_level(tmp_path, special=True))
    texts = ["", "a" * 50, INJECTED, "b", "</s>", ""]
    tokens, lengths = encoder.encode(texts)
    alone = list(encoder.encode_documents(texts))
    assert lengths.tolist() == [len(ids) for ids in alone]
    np.testing.assert_array_equal(tokens, np.concatenate(alone))
    kept = encoder.encode(texts).select(np.array([True, False, True, False, False, True]))
    np.testing.assert_array_equal(kept.tokens, np.concatenate([alone[0], alone[2], alone[5]]))
    assert len(encoder.encode([]).tokens) == 0


def test_truncation_and_padding_of_a_ready_tokenizer_are_off(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, special=True)
    tokenizer.backend.enable_truncation(3)
    tokenizer.backend.enable_padding()
    assert [len(tokens) for tokens in Encoder(tokenizer).encode_documents(["a" * 10, "b"])] == [12, 3]


def test_ids_take_two_bytes_while_they_can() -> None:
    assert get_token_dtype(65_536) == np.dtype("<u2")
    assert get_token_dtype(65_537) == np.dtype("<u4")
