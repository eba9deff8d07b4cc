"""A ready tokenizer gets a new language and new special tokens, and every id that it had stays what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from recipes import TEXTS, code_points, english, given_back, korean, option, train, trained
from tokenizers import decoders, models, pre_tokenizers

from krill.config.schema import TokenizerConfig
from krill.data import engines
from krill.data.encoding import Encoder
from krill.errors import KrillError, UsageError
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer
from krill.tokenizer.train import compute_recipe_signature, train_tokenizer

LEARNED_ON, HELD_OUT = korean()[:120], korean()[120:]


def make_extension(base: TokenizerFolder | Path, /, **keys: Any) -> TokenizerConfig:
    folder = base if isinstance(base, Path) else base.folder
    return option("extended", **{"base": str(folder), "vocab_size": 2000, **keys})


def train_extension(
    folder: Path, base: TokenizerFolder, texts: list[str] = LEARNED_ON, /, **keys: Any
) -> TokenizerFolder:
    return trained(folder, make_extension(base, **keys), texts)


def make_llama_like(folder: Path, base: TokenizerFolder, **model: Any) -> TokenizerFolder:
    """As Llama 3 has it: added tokens behind the vocabulary and not in it, transformers' older settings."""
    content = json.loads(base.backend.to_str())
    specials = [token["content"] for token in content["added_tokens"]]
    entries = [entry for entry in content["model"]["vocab"] if entry not in specials]
    content["model"] |= {"vocab": {entry: token for token, entry in enumerate(entries)}, **model}
    ids = {token: len(entries) + index for index, token in enumerate(specials)}
    content["added_tokens"] = [{**token, "id": ids[token["content"]]} for token in content["added_tokens"]]
    content["post_processor"]["special_tokens"]["bos"]["ids"] = [ids["<|bos|>"]]
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
    """Ids of `text`, special tokens in it as such."""
    return tokenizer.backend.encode(text, add_special_tokens=False).ids


def bytes_per_token(tokenizer: TokenizerFolder, texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / sum(len(encode_ids(tokenizer, text)) for text in texts)


def keeps_old_entries(base: TokenizerFolder, larger: TokenizerFolder) -> bool:
    return all(
        larger.backend.id_to_token(token) == entry for entry, token in base.backend.get_vocab().items()
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return train(tmp_path_factory.mktemp("base") / "t", english()[:40], vocab_size=1000)


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
    """A tokenizer of English and the same with Korean: special tokens with the first ids, and with the last."""
    first = base if request.param == "early" else llama
    place = tmp_path_factory.mktemp("pair") / "t"
    return first, train_extension(place, first, special_tokens=["<|image|>", "<|audio|>"])


Pair = tuple[TokenizerFolder, TokenizerFolder]


# --- what stays --------------------------------------------------------------------------------------------


def test_size_is_exact_and_new_special_tokens_are_last(pair: Pair) -> None:
    _, larger = pair
    vocabulary = larger.backend.get_vocab()
    assert larger.vocab_size == larger.backend.get_vocab_size() == 2000
    assert {*vocabulary.values()} == {*range(2000)}
    assert [vocabulary["<|image|>"], vocabulary["<|audio|>"]] == [1998, 1999]
    assert larger.backend.encode("<|image|>", add_special_tokens=False).ids == [1998]


def test_old_ids_stay(pair: Pair) -> None:
    base, larger = pair
    assert keeps_old_entries(base, larger)
    assert (larger.bos_id, larger.eos_id, larger.pad_id) == (base.bos_id, base.eos_id, base.pad_id)


def test_english_is_encoded_as_before(pair: Pair) -> None:
    base, larger = pair
    for text in english():
        if text.isascii():
            assert larger.backend.encode(text).ids == base.backend.encode(text).ids


def test_korean_takes_far_fewer_tokens(pair: Pair) -> None:
    base, larger = pair
    assert bytes_per_token(larger, HELD_OUT) >= 1.5 * bytes_per_token(base, HELD_OUT)


def test_tokens_of_a_text_are_those_of_the_base_merged_further(pair: Pair) -> None:
    base, larger = pair
    for text in [*HELD_OUT[:20], *english()[40:50]]:
        before = base.backend.encode(text, add_special_tokens=False)
        after = larger.backend.encode(text, add_special_tokens=False)
        assert "".join(before.tokens) == "".join(after.tokens)
        assert len(after) <= len(before)


def test_every_code_point_comes_back(pair: Pair) -> None:
    for text in code_points():
        assert given_back(pair[1], text) == text


def test_special_tokens_in_text_are_text(pair: Pair) -> None:
    _, larger = pair
    special = {token: added.content for token, added in larger.backend.get_added_tokens_decoder().items()}
    assert len(special) == 7
    text = " ".join(special.values())
    (tokens,) = Encoder(larger).encode_documents([text])
    assert not {*special} & {*tokens[1:-1].tolist()}
    assert larger.backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == text


def test_gigatoken_encodes_alike_or_is_not_chosen(pair: Pair) -> None:
    pytest.importorskip("gigatoken")
    larger = pair[1]
    texts = [*HELD_OUT, *english(), *TEXTS]
    engine = engines.select_engine("auto", Encoder(larger).backend, lambda: texts, 10**6)
    if engine == "fast":
        both = [Encoder(larger, "hf").encode(texts), Encoder(larger, "fast").encode(texts)]
        assert (both[0].tokens == both[1].tokens).all()


def test_transformers_sees_the_same(pair: Pair, tmp_path: Path) -> None:
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


# --- what is learned ---------------------------------------------------------------------------------------


def test_the_order_of_texts_changes_nothing(base: TokenizerFolder, tmp_path: Path) -> None:
    first, second = (
        train_extension(tmp_path / name, base, texts, vocab_size=1500)
        for name, texts in (("a", LEARNED_ON), ("b", LEARNED_ON[::-1]))
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_extended_twice(base: TokenizerFolder, tmp_path: Path) -> None:
    once = train_extension(tmp_path / "a", base, vocab_size=1200, special_tokens=["<|image|>"])
    twice = train_extension(tmp_path / "b", once, vocab_size=1500, special_tokens=["<|audio|>", "<|image|>"])
    assert keeps_old_entries(once, twice)
    assert twice.vocab_size == 1500
    assert twice.backend.token_to_id("<|audio|>") == 1499
    assert bytes_per_token(twice, HELD_OUT) > bytes_per_token(once, HELD_OUT)


def test_new_tokens_are_no_longer_than_asked(base: TokenizerFolder, tmp_path: Path) -> None:
    larger = train_extension(tmp_path / "t", base, vocab_size=1500, max_token_length=6)
    new = [larger.backend.id_to_token(token) for token in range(base.vocab_size, 1500)]
    assert max(map(len, new)) == 6


def test_a_limit_that_forbids_much_is_looked_behind(base: TokenizerFolder, tmp_path: Path) -> None:
    """So many learned tokens are too long that more have to be learned than were at first."""
    short = ["가나다라마바사아자차카타파하"] * 400
    texts = [*short, *("".join(sorted(text)) for text in LEARNED_ON)]
    assert (
        train_extension(tmp_path / "t", base, texts, vocab_size=1100, max_token_length=3).vocab_size == 1100
    )


def test_no_merge_makes_a_special_token(tmp_path: Path, base: TokenizerFolder) -> None:
    """Some tokenizers have words for special tokens: text must not become one."""
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
    assert given_back(larger, "ZQZQ ZQZQX") == "ZQZQ ZQZQX"


def test_runs_without_end_do_not_stop_it(base: TokenizerFolder, tmp_path: Path) -> None:
    texts = ["한" * 300_000, " " * 300_000, *LEARNED_ON]
    assert train_extension(tmp_path / "t", base, texts, vocab_size=1300).vocab_size == 1300


def test_special_tokens_alone(base: TokenizerFolder, tmp_path: Path) -> None:
    """No text is needed for them, and every text is encoded as before."""
    wanted = ["<|a|>", "<|b|>", "<|a|>", "<think>"]
    larger = train_extension(tmp_path / "t", base, [], vocab_size=1002, special_tokens=wanted)
    assert larger.vocab_size == 1002
    assert [larger.backend.token_to_id(token) for token in ("<|a|>", "<|b|>", "<think>")] == [1000, 1001, 4]
    assert keeps_old_entries(base, larger)
    assert encode_ids(larger, HELD_OUT[0]) == encode_ids(base, HELD_OUT[0])


def test_nothing_new_is_the_same_tokenizer(llama: TokenizerFolder, tmp_path: Path) -> None:
    same = train_extension(tmp_path / "t", llama, [], vocab_size=1000)
    assert same.vocab_size == 1000
    assert same.backend.get_vocab() == llama.backend.get_vocab()


def test_an_entry_becomes_a_special_token_in_its_place(base: TokenizerFolder, tmp_path: Path) -> None:
    """Reserved places of the vocabulary, which no text reaches, are used without a new id."""
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


def test_size_is_rounded_up(base: TokenizerFolder, tmp_path: Path) -> None:
    assert train_extension(tmp_path / "t", base, vocab_size=1100, multiple_of=128).vocab_size == 1152


def test_chat_template_comes_along_or_is_made(base: TokenizerFolder, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base.folder, folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}its own")
    kept = train_extension(tmp_path / "a", load_tokenizer(folder), [], vocab_size=1000)
    assert (kept.folder / "chat_template.jinja").read_text() == "{{ bos_token }}its own"
    keys = {"vocab_size": 1001, "special_tokens": ["<|im_end|>"], "chat_template": "chatml"}
    made = train_extension(tmp_path / "b", load_tokenizer(folder), [], **keys)
    assert "<|im_start|>" in (made.folder / "chat_template.jinja").read_text()
    assert not (kept.folder / "record.json").exists(), "the base's record is not this one's"


# --- what is refused ---------------------------------------------------------------------------------------


def raise_if_read() -> list[str]:
    raise AssertionError("the text is not read before the mistake is told")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vocab_size": 900}, r"has 1000 entries, and 0 special .* set tokenizer\.vocab_size=1000 or more"),
        ({"vocab_size": 1000, "special_tokens": ["<|x|>"]}, r"set tokenizer\.vocab_size=1001 or more"),
        ({"special_tokens": ["한국"]}, r"'한국' is an ordinary word or sign; write <\|한국\|>"),
        ({"special_tokens": ["a b"]}, "holds white space"),
        ({"chat_template": "chatml"}, r"chat_template=chatml needs <\|im_end\|> among"),
        ({"base": "/nowhere/at all"}, r"tokenizer\.base=/nowhere/at all: no such folder"),
        ({"base": "./nowhere"}, r"tokenizer\.base=\./nowhere: no such folder \(seen from "),
        ({"base": "~/no such tokenizer"}, r"tokenizer\.base=~/no such tokenizer: no such folder"),
    ],
)
def test_mistakes_are_told_before_the_text_is_read(
    base: TokenizerFolder, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_tokenizer(make_extension(base, **keys), lambda: iter(raise_if_read()), tmp_path)


def test_base_may_be_relative_or_begin_with_a_tilde(
    base: TokenizerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.folder.parent)
    monkeypatch.setenv("HOME", str(base.folder.parent))
    expected = compute_recipe_signature(make_extension(base))
    for place in ("t", "./t", "~/t", "t/"):
        assert compute_recipe_signature(make_extension(Path("unused"), base=place)) == expected
        assert train_extension(
            tmp_path / str(len([*tmp_path.iterdir()])), base, [], base=place, vocab_size=1000
        )


def test_identity_follows_the_base_and_not_its_place(
    base: TokenizerFolder, llama: TokenizerFolder, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base.folder, copy)
    assert compute_recipe_signature(make_extension(copy)) == compute_recipe_signature(make_extension(base))
    assert compute_recipe_signature(make_extension(llama)) != compute_recipe_signature(make_extension(base))


def test_too_little_text_says_how_much_there_is(base: TokenizerFolder, tmp_path: Path) -> None:
    with pytest.raises(
        KrillError, match=r"yields only (\d+) entries .* set tokenizer\.vocab_size=\1 or less"
    ) as error:
        train_extension(tmp_path / "a", base, LEARNED_ON[:3], vocab_size=5000)
    size = int(str(error.value).split("set tokenizer.vocab_size=")[1].split()[0])
    assert base.vocab_size < size < 5000
    assert train_extension(tmp_path / "b", base, LEARNED_ON[:3], vocab_size=size).vocab_size == size


def test_no_text_is_an_error(base: TokenizerFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no document is left"):
        train_extension(tmp_path / "t", base, [])


def _unigram() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))


def _word_piece() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))


def _sentence_piece() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


@pytest.mark.parametrize(
    ("make", "kind"),
    [(_unigram, "Unigram"), (_word_piece, "WordPiece"), (_sentence_piece, "BPE of characters")],
)
def test_other_kinds_of_tokenizers_are_refused(
    tmp_path: Path, make: Callable[[], tokenizers.Tokenizer], kind: str
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    tokenizer = make()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UsageError, match=rf"is no byte-level BPE \(but {kind}\).* tokenizer=bpe_32k"):
        trained(tmp_path / "t", make_extension(folder), LEARNED_ON)
