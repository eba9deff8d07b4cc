"""Tests that document boundaries never come from the text."""

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


def save_and_load(folder: Path, tokenizer: Tokenizer, **roles: str) -> TokenizerFolder:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return load_tokenizer(folder)


def make_byte_level(folder: Path, special: bool) -> TokenizerFolder:
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=special) for token in ("<s>", "</s>", "<pad>")])
    return save_and_load(folder, tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_unigram(folder: Path) -> TokenizerFolder:
    """Makes a model whose vocabulary contains </s>, as models converted from sentencepiece do."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(character, -5.0) for character in sorted({*INJECTED, *"</s>"})]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.decoder = decoders.Fuse()
    return save_and_load(folder, tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("kind", ["special", "not flagged special", "in the model's own vocabulary"])
def test_literal_control_tokens_are_encoded_as_text(tmp_path: Path, kind: str) -> None:
    tokenizer = (
        make_unigram(tmp_path) if "own" in kind else make_byte_level(tmp_path, special=kind == "special")
    )
    (tokens,) = Encoder(tokenizer).encode_documents([INJECTED])
    control = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    assert (tokens[0], tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert control.isdisjoint(tokens[1:-1].tolist())
    assert tokenizer.backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == INJECTED


def test_the_tokenizer_itself_is_not_changed(tmp_path: Path) -> None:
    tokenizer = make_byte_level(tmp_path, special=True)
    list(Encoder(tokenizer).encode_documents([INJECTED]))
    assert tokenizer.eos_id in tokenizer.backend.encode("a</s>").ids


def test_tokenizer_that_encodes_text_as_eos_raises(tmp_path: Path) -> None:
    model = models.WordLevel({"</s>": 0, "known": 1}, unk_token="</s>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UsageError, match="byte-level"):
        list(
            Encoder(save_and_load(tmp_path, tokenizer, eos_token="</s>")).encode_documents(
                ["known", "unknown"]
            )
        )


def test_batch_equals_single_texts(tmp_path: Path) -> None:
    encoder = Encoder(make_byte_level(tmp_path, special=True))
    texts = ["", "a" * 50, INJECTED, "b", "</s>", ""]
    tokens, lengths = encoder.encode(texts)
    single = list(encoder.encode_documents(texts))
    assert lengths.tolist() == [len(ids) for ids in single]
    np.testing.assert_array_equal(tokens, np.concatenate(single))
    selected = encoder.encode(texts).select(np.array([True, False, True, False, False, True]))
    np.testing.assert_array_equal(selected.tokens, np.concatenate([single[0], single[2], single[5]]))
    assert len(encoder.encode([]).tokens) == 0


def test_truncation_and_padding_are_disabled(tmp_path: Path) -> None:
    tokenizer = make_byte_level(tmp_path, special=True)
    tokenizer.backend.enable_truncation(3)
    tokenizer.backend.enable_padding()
    assert [len(tokens) for tokens in Encoder(tokenizer).encode_documents(["a" * 10, "b"])] == [12, 3]


def test_dtype_is_two_bytes_where_ids_fit() -> None:
    assert get_token_dtype(65_536) == np.dtype("<u2")
    assert get_token_dtype(65_537) == np.dtype("<u4")
