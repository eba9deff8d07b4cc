"""The tokenizer gives every text back, keeps control tokens out of text, and means the same to everyone."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from krill.config.location import CONF_DIR
from krill.config.schema import PythonDocs, Tokenizer, TrainConfig
from krill.data.encoding import Encoder
from krill.data.obtain import obtain_tokenizer, tokenizer_folder, tokenizer_signature
from krill.errors import KrillError, UsageError
from krill.sources import python_docs
from krill.tokenizer.folder import TokenizerFolder, load_tokenizer
from krill.tokenizer.train import train_tokenizer

SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<think>"]
TEXTS = [
    "Natural language is learned from text, and text is made of words that come again and again. ",
    "한국어 문장은 조사와 어미가 자주 되풀이된다. 그래서 한국어 토큰도 자주 되풀이된다 ㅋㅋㅋ. ",
    "<|eos|> is written <|eos|> in this text, so are <think> and </think>, 1234567 times. ",
] * 20


def recipe(**keys: Any) -> Tokenizer:
    defaults = {
        "name": "test",
        "path": None,
        "vocab_size": 330,
        "min_frequency": 2,
        "max_token_length": 30,
        "normalizer": "none",
        "pattern": "gpt4",
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "special_tokens": ["<|im_start|>", "<think>"],
        "sample_bytes": 10**6,
        "base": None,
        "multiple_of": 1,
        "trainer": "hf",
        "chat_template": None,
        "push_to": None,
        "private": True,
    }
    return Tokenizer.model_validate({**defaults, **keys})


def train(folder: Path, texts: list[str] = TEXTS, **keys: Any) -> TokenizerFolder:
    folder.mkdir()
    train_tokenizer(recipe(**keys), lambda: iter(texts), folder)
    return load_tokenizer(folder)


def docs(**rules: Any) -> PythonDocs:
    file = yaml.safe_load((CONF_DIR / "data/_rules.yaml").read_text(encoding="utf-8"))
    return PythonDocs(
        **{
            **file,
            "name": "docs",
            "source": "python_docs",
            "min_chars": 40,
            "validation_fraction": 0.03,
            **rules,
        }
    )


def config(tokenizer: Tokenizer, data: PythonDocs | None = None) -> TrainConfig:
    return TrainConfig.model_construct(tokenizer=tokenizer, data=data or docs())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return train(tmp_path_factory.mktemp("tokenizer") / "trained")


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{index} {text}" for index, text in enumerate(TEXTS)]
    monkeypatch.setattr(python_docs, "documents", lambda: iter(texts))


# --- the recipe --------------------------------------------------------------------------------------------


def test_sizes_and_ids(tokenizer: TokenizerFolder) -> None:
    assert tokenizer.vocab_size == tokenizer.backend.get_vocab_size() == 330
    assert [tokenizer.backend.id_to_token(index) for index in range(5)] == SPECIALS
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    assert set(tokenizer.backend.get_vocab().values()) == set(range(330))


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_merges_are_learned_for_every_script(tmp_path: Path, pattern: str) -> None:
    encoder = Encoder(train(tmp_path / "t", pattern=pattern, vocab_size=400))
    for text in TEXTS[:3]:
        (tokens,) = encoder.documents([text])
        assert len(tokens) < len(text.encode()) / 2


@given(st.text())
def test_any_text_comes_back(tokenizer: TokenizerFolder, text: str) -> None:
    (tokens,) = Encoder(tokenizer).documents([text])
    assert not {0, 1, 2, 3, 4} & set(tokens[1:-1].tolist())
    assert tokenizer.backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "ㅋㅋㅋ ㅠㅠ 가각힣",
        "x² ½ ™ ﬁ  NBSP\u00a0",
        "👩‍👩‍👧‍👦 🇰🇷 é",
        "def f(x):\n\treturn x  # trailing   \n\n\n",
        "a<|eos|>b<|bos|><|pad|><think>",
        "＜|eos|＞",
    ],
)
def test_text_comes_back_and_makes_no_control_token(tokenizer: TokenizerFolder, text: str) -> None:
    (tokens,) = Encoder(tokenizer).documents([text])
    assert not {0, 1, 2, 3, 4} & set(tokens[1:-1].tolist())
    assert tokenizer.backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == text


def test_nfc_composes_and_keeps_jamo(tmp_path: Path) -> None:
    backend = train(tmp_path / "t", normalizer="nfc").backend
    assert backend.decode(backend.encode("\u1112\u1161\u11ab ㅋㅋ ½").ids) == "한 ㅋㅋ ½"


def test_special_tokens_in_the_training_text_are_ordinary_text(tmp_path: Path) -> None:
    """The merges are those of the same text with other special tokens: literals are not cut out of it."""
    first = train(tmp_path / "a")
    second = train(tmp_path / "b", bos_token="<|b|>", eos_token="<|e|>", special_tokens=["<|x|>", "<|y|>"])
    merges = [json.loads(each.backend.to_str())["model"]["merges"] for each in (first, second)]
    assert merges[0] == merges[1]
    assert len(merges[0]) == 330 - 256 - 5


def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = train(tmp_path / "a"), train(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_tokens_are_no_longer_than_asked(tmp_path: Path) -> None:
    backend = train(tmp_path / "t", max_token_length=4, vocab_size=300).backend
    assert max(len(token) for token in backend.get_vocab() if token not in SPECIALS) <= 4


def test_too_little_text_says_how_many_entries_there_are(tmp_path: Path) -> None:
    with pytest.raises(KrillError, match=r"set tokenizer\.vocab_size=(\d+) or less") as error:
        train(tmp_path / "a", vocab_size=10_000)
    assert error.value.exit_code == 1
    size = int(str(error.value).split("set tokenizer.vocab_size=")[1].split()[0])
    assert train(tmp_path / "b", vocab_size=size).vocab_size == size


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"special_tokens": ["system"]}, r"'system' is an ordinary word or sign; write <\|system\|>"),
        ({"special_tokens": ["a b"]}, "white space"),
        ({"special_tokens": [""]}, "is empty"),
        (
            {"vocab_size": 300, "special_tokens": [f"<|{index}|>" for index in range(60)]},
            "vocab_size=319 or more",
        ),
    ],
)
def test_specials_that_cannot_be(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(tmp_path / "t", **keys)


def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no document is left"):
        train(tmp_path / "t", texts=[])


def test_one_token_may_begin_and_end(tmp_path: Path) -> None:
    tokenizer = train(tmp_path / "t", bos_token="<|eos|>")
    assert tokenizer.bos_id == tokenizer.eos_id == 0
    assert tokenizer.backend.encode("a").ids[0] == 0


# --- what Hugging Face sees --------------------------------------------------------------------------------


def test_auto_tokenizer_adds_bos_and_no_eos(tokenizer: TokenizerFolder, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer.folder)
    loaded.save_pretrained(tmp_path)
    for each in (loaded, AutoTokenizer.from_pretrained(tmp_path)):
        assert (each.bos_token_id, each.eos_token_id, each.pad_token_id) == (0, 1, 2)
        assert len(each) == 330
        ids = each("한국어 text").input_ids
        (trained_on,) = Encoder(tokenizer).documents(["한국어 text"])
        assert ids == trained_on.tolist()[:-1]
        assert each.decode(ids, skip_special_tokens=True) == "한국어 text"
        assert set(each.all_special_tokens) == set(SPECIALS)
        assert each.model_max_length < 10**9


# --- made once, by content ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_documents")
def test_is_trained_once_and_found_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "krill")
    setting = config(recipe())
    expected = tokenizer_folder(setting, tmp_path)
    assert not any(tmp_path.iterdir())
    first = obtain_tokenizer(setting, tmp_path)
    assert first.folder == expected == tmp_path / "tokenizers" / f"test-{first.signature[:8]}"
    assert first.signature == tokenizer_signature(setting)
    assert obtain_tokenizer(setting, tmp_path) == first
    assert f"tokenizer: made {first.folder}" in caplog.text
    assert f"tokenizer: reused {first.folder}" in caplog.text
    record = json.loads((first.folder / "record.json").read_text())
    assert record["signature"] == first.signature
    assert record["text"]["documents"] < len(TEXTS), "validation documents are not trained on"


def test_signature_follows_recipe_and_text_rules() -> None:
    first = tokenizer_signature(config(recipe()))
    assert tokenizer_signature(config(recipe(name="other"))) == first
    assert tokenizer_signature(config(recipe(), docs(min_tokens=9))) == first
    others = {
        tokenizer_signature(config(recipe(vocab_size=400))),
        tokenizer_signature(config(recipe(pattern="gpt2"))),
        tokenizer_signature(config(recipe(), docs(min_chars=9))),
        tokenizer_signature(config(recipe(), docs(validation_fraction=0.1))),
    }
    assert len(others - {first}) == 4


@pytest.mark.usefixtures("few_documents")
def test_a_trained_one_keeps_its_signature_when_it_is_given_by_path(tmp_path: Path) -> None:
    trained = obtain_tokenizer(config(recipe()), tmp_path)
    ready = config(recipe(path=str(trained.folder)))
    assert obtain_tokenizer(ready, tmp_path).signature == trained.signature == tokenizer_signature(ready)
    path = trained.folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert obtain_tokenizer(ready, tmp_path).signature != trained.signature


def ready(folder: Path, tokenizer: TokenizerFolder, **settings: Any) -> TokenizerFolder:
    folder.mkdir()
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


def test_ready_tokenizers_name_their_roles_in_several_ways(
    tmp_path: Path, tokenizer: TokenizerFolder
) -> None:
    only_eos = ready(tmp_path / "a", tokenizer, eos_token="<|eos|>", pad_token=None)
    assert (only_eos.bos_id, only_eos.eos_id, only_eos.pad_id) == (1, 1, 1)
    as_objects = ready(
        tmp_path / "b", tokenizer, bos_token={"content": "<|bos|>"}, eos_token={"content": "<|eos|>"}
    )
    assert (as_objects.bos_id, as_objects.eos_id, as_objects.pad_id) == (0, 1, 1)
    (as_objects.folder / "special_tokens_map.json").write_text('{"pad_token": "<|pad|>"}')
    assert load_tokenizer(as_objects.folder).pad_id == 2


def test_ready_tokenizers_that_cannot_be_used(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    with pytest.raises(UsageError, match="has no eos_token"):
        ready(tmp_path / "a", tokenizer, bos_token="<|bos|>")
    with pytest.raises(UsageError, match="'</s>' is not in the vocabulary"):
        ready(tmp_path / "b", tokenizer, eos_token="</s>")
    with pytest.raises(UsageError, match="no such folder"):
        obtain_tokenizer(config(recipe(path=str(tmp_path / "없음"))), tmp_path)
    with pytest.raises(UsageError, match=r"no tokenizer\.json there"):
        obtain_tokenizer(config(recipe(path=str(tmp_path))), tmp_path)
    (tmp_path / "b/tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json: is no tokenizer"):
        load_tokenizer(tmp_path / "b")


def test_needs_no_torch_and_no_transformers() -> None:
    program = (
        "import sys, krill.tokenizer, krill.data.prepare, krill.data.packing, krill.data.order;"
        "print({'torch', 'transformers', 'datasets', 'trl', 'huggingface_hub'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
