"""An existing tokenizer is extended by a language and special tokens, and keeps every old id."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from recipes import (
    TEXTS,
    list_code_points,
    load_english,
    load_option,
    make_korean,
    round_trip,
    round_trip_batch,
    train_recipe,
    train_small,
)
from tokenizers import decoders, models, pre_tokenizers

from krill.config.schema import TokenizerConfig
from krill.data import engines
from krill.data.encoding import Encoder
from krill.errors import KrillError, UsageError
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer
from krill.tokenizer.train import compute_recipe_signature, train_tokenizer

LEARNED_ON, HELD_OUT = make_korean()[:120], make_korean()[120:]


def make_extension(base: TokenizerFolder | Path, /, **keys: Any) -> TokenizerConfig:
    folder = base if isinstance(base, Path) else base.folder
    return load_option("extended", **{"base": str(folder), "vocab_size": 2000, **keys})


def train_extension(
    folder: Path, base: TokenizerFolder, texts: list[str] = LEARNED_ON, /, **keys: Any
) -> TokenizerFolder:
    return train_recipe(folder, make_extension(base, **keys), texts)


def make_llama_like(folder: Path, base: TokenizerFolder, **model: Any) -> TokenizerFolder:
    """Converts to the layout of Llama 3: added tokens after the vocabulary, settings of an older transformers."""
    content = json.loads(base.backend.to_str())
    specials = [token["content"] for token in content["added_tokens"]]
    entries = [entry for entry in content["model"]["vocab"] if entry not in specials]
    content["model"] |= {"vocab": {entry: token for token, entry in enumerate(entries)}, **model}
    ids = {token: len(entries) + index for index, token in enumerate(specials)}
    content["added_tokens"] = [{**token, "id": ids[token["content"]]} for token in content["added_tokens"]]
    content["post_processor"]["special_tokens"]["<|bos|>"]["ids"] = [ids["<|bos|>"]]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    roles = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    settings = {
        **roles,
        "added_tokens_decoder": {str(token): {"content": name, **flags} for name, token in ids.items()},
        "additional_special_tokens": ["<think>"],
        "tokenizer_class": "LlamaTokenizerFast",
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({**roles, "additional_special_tokens": ["<think>"]}), encoding="utf-8"
    )
    return load_tokenizer(folder)


def encode_ids(tokenizer: TokenizerFolder, text: str) -> list[int]:
    """Returns the ids of `text`; special tokens written in it are special."""
    return tokenizer.backend.encode(text, add_special_tokens=False).ids


def compute_bytes_per_token(tokenizer: TokenizerFolder, texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / sum(len(encode_ids(tokenizer, text)) for text in texts)


def has_same_entries(base: TokenizerFolder, larger: TokenizerFolder) -> bool:
    return all(
        larger.backend.id_to_token(token) == entry for entry, token in base.backend.get_vocab().items()
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return train_small(tmp_path_factory.mktemp("base") / "t", load_english()[:40], vocab_size=1000)


@pytest.fixture(scope="module")
def llama(base: TokenizerFolder, tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return make_llama_like(tmp_path_factory.mktemp("llama") / "t", base, ignore_merges=True)


@pytest.fixture(scope="module", params=["early", "late"])
def pair(
    request: pytest.FixtureRequest,
    base: TokenizerFolder,
    llama: TokenizerFolder,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[TokenizerFolder, TokenizerFolder]:
    """A tokenizer of English and its extension by Korean; its special tokens have the first or the last ids."""
    first = base if request.param == "early" else llama
    folder = tmp_path_factory.mktemp("pair") / "t"
    return first, train_extension(folder, first, special_tokens=["<|image|>", "<|audio|>"])


Pair = tuple[TokenizerFolder, TokenizerFolder]


# --- compatibility -----------------------------------------------------------------------------------------


def test_the_size_is_exact_and_new_special_tokens_have_the_last_ids(pair: Pair) -> None:
    _, larger = pair
    vocabulary = larger.backend.get_vocab()
    assert larger.vocab_size == larger.backend.get_vocab_size() == 2000
    assert {*vocabulary.values()} == {*range(2000)}
    assert [vocabulary["<|image|>"], vocabulary["<|audio|>"]] == [1998, 1999]
    assert larger.backend.encode("<|image|>", add_special_tokens=False).ids == [1998]


def test_old_ids_are_kept(pair: Pair) -> None:
    base, larger = pair
    assert has_same_entries(base, larger)
    assert (larger.bos_id, larger.eos_id, larger.pad_id) == (base.bos_id, base.eos_id, base.pad_id)


def test_english_is_encoded_as_before(pair: Pair) -> None:
    base, larger = pair
    for text in load_english():
        if text.isascii():
            assert larger.backend.encode(text).ids == base.backend.encode(text).ids


def test_korean_takes_fewer_tokens(pair: Pair) -> None:
    base, larger = pair
    assert compute_bytes_per_token(larger, HELD_OUT) >= 1.5 * compute_bytes_per_token(base, HELD_OUT)


def test_a_text_has_the_tokens_of_the_base_merged_further(pair: Pair) -> None:
    base, larger = pair
    for text in [*HELD_OUT[:20], *load_english()[40:50]]:
        before = base.backend.encode(text, add_special_tokens=False)
        after = larger.backend.encode(text, add_special_tokens=False)
        assert "".join(before.tokens) == "".join(after.tokens)
        assert len(after) <= len(before)


def test_every_code_point_is_decoded_unchanged(pair: Pair) -> None:
    texts = list_code_points()
    assert round_trip_batch(pair[1], texts) == texts


def test_special_tokens_written_in_text_are_text(pair: Pair) -> None:
    _, larger = pair
    special = {token: added.content for token, added in larger.backend.get_added_tokens_decoder().items()}
    assert len(special) == 7
    text = " ".join(special.values())
    (tokens,) = Encoder(larger).encode_documents([text])
    assert not {*special} & {*tokens[1:-1].tolist()}
    assert larger.backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == text


def test_gigatoken_gives_the_same_ids_or_is_not_selected(pair: Pair) -> None:
    pytest.importorskip("gigatoken")
    larger = pair[1]
    texts = [*HELD_OUT, *load_english(), *TEXTS]
    engine = engines.select_engine("auto", Encoder(larger).backend, lambda: texts, 10**6)
    if engine == "fast":
        expected, encoded = (Encoder(larger, name).encode(texts) for name in ("hf", "fast"))
        assert (encoded.tokens == expected.tokens).all()


def test_transformers_loads_the_same_tokenizer(pair: Pair, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base, larger = pair
    loaded = AutoTokenizer.from_pretrained(larger.folder)
    loaded.save_pretrained(tmp_path)
    text = HELD_OUT[0] + "<|image|> English <think>"
    for each in (loaded, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(each) == 2000
        assert each(text).input_ids == larger.backend.encode(text).ids
        assert (each.bos_token_id, each.eos_token_id) == (base.bos_id, base.eos_id)
        assert {"<think>", "<|image|>", "<|audio|>", "<|bos|>", "<|eos|>"} <= {*each.all_special_tokens}
        assert each.decode(each("<|audio|>한국").input_ids, skip_special_tokens=True) == "한국"


# --- training ----------------------------------------------------------------------------------------------


def test_does_not_depend_on_the_order_of_texts(base: TokenizerFolder, tmp_path: Path) -> None:
    first, second = (
        train_extension(tmp_path / name, base, texts, vocab_size=1500)
        for name, texts in (("a", LEARNED_ON), ("b", LEARNED_ON[::-1]))
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_an_extension_can_be_extended(base: TokenizerFolder, tmp_path: Path) -> None:
    once = train_extension(tmp_path / "a", base, vocab_size=1200, special_tokens=["<|image|>"])
    twice = train_extension(tmp_path / "b", once, vocab_size=1500, special_tokens=["<|audio|>", "<|image|>"])
    assert has_same_entries(once, twice)
    assert twice.vocab_size == 1500
    assert twice.backend.token_to_id("<|audio|>") == 1499
    assert compute_bytes_per_token(twice, HELD_OUT) > compute_bytes_per_token(once, HELD_OUT)


def test_new_tokens_respect_the_maximum_length(base: TokenizerFolder, tmp_path: Path) -> None:
    larger = train_extension(tmp_path / "t", base, vocab_size=1500, max_token_length=6)
    new = [larger.backend.id_to_token(token) for token in range(base.vocab_size, 1500)]
    assert max(map(len, new)) == 6


def test_more_merges_are_learned_if_many_are_too_long(base: TokenizerFolder, tmp_path: Path) -> None:
    """So many learned tokens are too long that the initial surplus of merges is not enough."""
    long_words = ["가나다라마바사아자차카타파하"] * 400
    texts = [*long_words, *("".join(sorted(text)) for text in LEARNED_ON)]
    assert (
        train_extension(tmp_path / "t", base, texts, vocab_size=1100, max_token_length=3).vocab_size == 1100
    )


def test_no_merge_creates_a_special_token(tmp_path: Path, base: TokenizerFolder) -> None:
    """The special tokens of some tokenizers are words; text must not be encoded as one."""
    content = json.loads(base.backend.to_str())
    for token in content["added_tokens"]:
        if token["content"] == "<think>":
            token["content"] = "ZQZQ"
    content["model"]["vocab"]["ZQZQ"] = content["model"]["vocab"].pop("<think>")
    folder = tmp_path / "base"
    shutil.copytree(base.folder, folder)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    larger = train_extension(
        tmp_path / "t", load_tokenizer(folder), ["ZQZQ ZQZQ ZQZQX"] * 100 + LEARNED_ON, vocab_size=1100
    )
    (tokens,) = Encoder(larger).encode_documents(["ZQZQ ZQZQX"])
    assert 4 not in tokens
    assert larger.vocab_size == 1100
    assert round_trip(larger, "ZQZQ ZQZQX") == "ZQZQ ZQZQX"


def test_very_long_runs_can_be_trained_on(base: TokenizerFolder, tmp_path: Path) -> None:
    texts = ["한" * 300_000, " " * 300_000, *LEARNED_ON]
    assert train_extension(tmp_path / "t", base, texts, vocab_size=1300).vocab_size == 1300


def test_special_tokens_can_be_added_without_text(base: TokenizerFolder, tmp_path: Path) -> None:
    """Every text is encoded as before."""
    special_tokens = ["<|a|>", "<|b|>", "<|a|>", "<think>"]
    larger = train_extension(tmp_path / "t", base, [], vocab_size=1002, special_tokens=special_tokens)
    assert larger.vocab_size == 1002
    assert [larger.backend.token_to_id(token) for token in ("<|a|>", "<|b|>", "<think>")] == [1000, 1001, 4]
    assert has_same_entries(base, larger)
    assert encode_ids(larger, HELD_OUT[0]) == encode_ids(base, HELD_OUT[0])


def test_an_empty_extension_is_the_same_tokenizer(llama: TokenizerFolder, tmp_path: Path) -> None:
    same = train_extension(tmp_path / "t", llama, [], vocab_size=1000)
    assert same.vocab_size == 1000
    assert same.backend.get_vocab() == llama.backend.get_vocab()


def test_a_reserved_entry_becomes_a_special_token(base: TokenizerFolder, tmp_path: Path) -> None:
    """Reserved entries, which no text is encoded as, need no new id."""
    content = json.loads(base.backend.to_str())
    content["model"]["vocab"]["<|reserved|>"] = 1000
    folder = tmp_path / "base"
    shutil.copytree(base.folder, folder)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    larger = train_extension(
        tmp_path / "t", load_tokenizer(folder), [], vocab_size=1001, special_tokens=["<|reserved|>"]
    )
    assert larger.vocab_size == 1001
    assert encode_ids(larger, "a<|reserved|>")[-1] == 1000
    assert larger.backend.get_added_tokens_decoder()[1000].special


def test_the_size_is_rounded_up(base: TokenizerFolder, tmp_path: Path) -> None:
    assert train_extension(tmp_path / "t", base, vocab_size=1100, multiple_of=128).vocab_size == 1152


def test_the_chat_template_of_the_base_is_kept_or_replaced(base: TokenizerFolder, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base.folder, folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}its own")
    copied = train_extension(tmp_path / "a", load_tokenizer(folder), [], vocab_size=1000)
    assert (copied.folder / "chat_template.jinja").read_text() == "{{ bos_token }}its own"
    keys = {"vocab_size": 1001, "special_tokens": ["<|im_end|>"], "chat_template": "chatml"}
    replaced = train_extension(tmp_path / "b", load_tokenizer(folder), [], **keys)
    assert "<|im_start|>" in (replaced.folder / "chat_template.jinja").read_text()
    assert not (copied.folder / "record.json").exists(), "the record of the base must not be copied"


# --- errors ------------------------------------------------------------------------------------------------


def raise_if_read() -> list[str]:
    raise AssertionError("the text was read")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vocab_size": 900}, r"has 1000 entries, and 0 special .* set tokenizer\.vocab_size=1000 or more"),
        ({"vocab_size": 1000, "special_tokens": ["<|x|>"]}, r"set tokenizer\.vocab_size=1001 or more"),
        ({"special_tokens": ["한국"]}, r"'한국' is an ordinary word or symbol; use <\|한국\|>"),
        ({"special_tokens": ["a b"]}, "contains white space"),
        ({"chat_template": "chatml"}, r"chat_template=chatml needs <\|im_end\|> in"),
        ({"base": "/nowhere/at all"}, r"tokenizer\.base=/nowhere/at all: no such folder"),
        ({"base": "./nowhere"}, r"tokenizer\.base=\./nowhere: no such folder \(relative to "),
        ({"base": "~/no such tokenizer"}, r"tokenizer\.base=~/no such tokenizer: no such folder"),
    ],
)
def test_errors_are_raised_before_the_text_is_read(
    base: TokenizerFolder, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_tokenizer(make_extension(base, **keys), lambda: iter(raise_if_read()), tmp_path)


def test_base_may_be_a_relative_path_or_begin_with_a_tilde(
    base: TokenizerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.folder.parent)
    monkeypatch.setenv("HOME", str(base.folder.parent))
    expected = compute_recipe_signature(make_extension(base))
    for path in ("t", "./t", "~/t", "t/"):
        assert compute_recipe_signature(make_extension(Path("unused"), base=path)) == expected
        assert train_extension(
            tmp_path / str(len([*tmp_path.iterdir()])), base, [], base=path, vocab_size=1000
        )


def test_the_signature_depends_on_the_base_and_not_on_its_path(
    base: TokenizerFolder, llama: TokenizerFolder, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base.folder, copy)
    assert compute_recipe_signature(make_extension(copy)) == compute_recipe_signature(make_extension(base))
    assert compute_recipe_signature(make_extension(llama)) != compute_recipe_signature(make_extension(base))


def test_the_error_for_too_little_text_names_the_possible_size(base: TokenizerFolder, tmp_path: Path) -> None:
    with pytest.raises(
        KrillError, match=r"yields only (\d+) entries .* set tokenizer\.vocab_size=\1 or less"
    ) as error:
        train_extension(tmp_path / "a", base, LEARNED_ON[:3], vocab_size=5000)
    size = int(str(error.value).split("set tokenizer.vocab_size=")[1].split()[0])
    assert base.vocab_size < size < 5000
    assert train_extension(tmp_path / "b", base, LEARNED_ON[:3], vocab_size=size).vocab_size == size


def test_training_without_text_is_an_error(base: TokenizerFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no document is left"):
        train_extension(tmp_path / "t", base, [])


def _make_unigram() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))


def _make_word_piece() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))


def _make_sentence_piece() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_make_unigram, "Unigram"),
        (_make_word_piece, "WordPiece"),
        (_make_sentence_piece, "BPE of characters"),
    ],
)
def test_other_kinds_of_tokenizers_are_rejected(
    tmp_path: Path, make: Callable[[], tokenizers.Tokenizer], kind: str
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    tokenizer = make()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UsageError, match=rf"not a byte-level BPE but {kind}, .* tokenizer=bpe_32k"):
        train_recipe(tmp_path / "t", make_extension(folder), LEARNED_ON)
