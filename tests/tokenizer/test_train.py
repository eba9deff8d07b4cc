"""The tokenizer gives every text back, keeps control tokens out of text, and means the same to everyone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipes import TEXTS, code_points, english, given_back, korean, option, recipe, train, trained

from krill.config.paths import CONF_DIR
from krill.config.schema import PythonDocsDataConfig, TokenizerConfig, TrainConfig
from krill.data import cache, engines
from krill.data.encoding import Encoder
from krill.data.inputs import RunInputs
from krill.errors import KrillError, UsageError
from krill.sources import python_docs
from krill.text.cleaning import clean
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer

SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<think>"]
PATTERNS = ["gpt2", "gpt4", "gpt4o", "qwen2"]
TRAINERS = ["hf", "rustbpe"]
OPTIONS = ["bpe_4k", "bpe_32k", "bpe_64k", "gpt4o_like", "llama3_like", "qwen_like"]


def make_data(**rules: Any) -> PythonDocsDataConfig:
    file = yaml.safe_load((CONF_DIR / "data/_rules.yaml").read_text(encoding="utf-8"))
    return PythonDocsDataConfig(
        **{
            **file,
            "name": "docs",
            "source": "python_docs",
            "min_chars": 40,
            "validation_fraction": 0.03,
            **rules,
        }
    )


def make_config(tokenizer: TokenizerConfig, data: PythonDocsDataConfig | None = None) -> TrainConfig:
    return TrainConfig.model_construct(tokenizer=tokenizer, data=data or make_data())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return train(tmp_path_factory.mktemp("tokenizer") / "trained")


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{index} {text}" for index, text in enumerate(TEXTS)]
    monkeypatch.setattr(python_docs, "read_python_docs", lambda: iter(texts))


# --- the recipe --------------------------------------------------------------------------------------------


def test_sizes_and_ids(tokenizer: TokenizerFolder) -> None:
    assert tokenizer.vocab_size == tokenizer.backend.get_vocab_size() == 330
    assert [tokenizer.backend.id_to_token(index) for index in range(5)] == SPECIALS
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    assert set(tokenizer.backend.get_vocab().values()) == set(range(330))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_merges_are_learned_for_every_script(tmp_path: Path, pattern: str) -> None:
    encoder = Encoder(train(tmp_path / "t", pattern=pattern, vocab_size=400))
    for text in TEXTS[:3]:
        (tokens,) = encoder.encode_documents([text])
        assert len(tokens) < len(text.encode()) / 2


@given(st.text())
def test_any_text_comes_back(tokenizer: TokenizerFolder, text: str) -> None:
    (tokens,) = Encoder(tokenizer).encode_documents([text])
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
    (tokens,) = Encoder(tokenizer).encode_documents([text])
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


@pytest.fixture(scope="module", params=[(pattern, trainer) for pattern in PATTERNS for trainer in TRAINERS])
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """Every pattern with every trainer."""
    pattern, trainer = request.param
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    place = tmp_path_factory.mktemp("variant") / "t"
    texts = [*korean()[:40], *english()[:20]]
    return train(place, texts, pattern=pattern, trainer=trainer, vocab_size=700, multiple_of=64)


def test_size_of_every_variant_is_exact(variant: TokenizerFolder) -> None:
    assert variant.vocab_size == 704
    assert variant.backend.get_vocab_size() == len({*variant.backend.get_vocab().values()}) == 704
    assert [variant.backend.id_to_token(index) for index in range(5)] == SPECIALS


def test_every_entry_but_specials_can_be_reached(variant: TokenizerFolder) -> None:
    """No entry is made by a merge that never applies: each stands for itself when it is cut of its bytes."""
    model = json.loads(variant.backend.to_str())["model"]
    assert {left + right for left, right in model["merges"]} | {*model["vocab"]} == {*model["vocab"]}
    bare = variant.backend.model
    reached = [entry for entry in model["vocab"] if [t.value for t in bare.tokenize(entry)] == [entry]]
    assert len(reached) >= 704 - len(SPECIALS)


@given(st.text())
def test_every_variant_gives_any_text_back(variant: TokenizerFolder, text: str) -> None:
    assert given_back(variant, text) == text


@given(st.binary())
def test_every_variant_gives_repaired_bytes_back(variant: TokenizerFolder, content: bytes) -> None:
    text = clean(content.decode("utf-8", "surrogateescape"))
    assert given_back(variant, text) == text


@given(st.lists(st.sampled_from([*SPECIALS, "<|", "|>", " ", "eos", "\n", "가"])).map("".join))
def test_no_variant_makes_a_special_token_of_text(variant: TokenizerFolder, text: str) -> None:
    (tokens,) = Encoder(variant).encode_documents([text])
    assert not {*range(len(SPECIALS))} & {*tokens[1:-1].tolist()}


@pytest.mark.parametrize(
    ("pattern", "trainer"), [*((pattern, "hf") for pattern in PATTERNS), ("gpt4", "rustbpe")]
)
def test_every_code_point_comes_back(tmp_path: Path, pattern: str, trainer: str) -> None:
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    tokenizer = train(tmp_path / "t", pattern=pattern, trainer=trainer)
    for text in code_points():
        assert given_back(tokenizer, text) == text


def is_old(letter: str) -> bool:
    """Whether Unicode 3.2 has it: marks that one side does not know yet keep their places there."""
    return unicodedata.ucd_3_2_0.category(letter) != "Cn"


@pytest.fixture(scope="module")
def nfc(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return train(tmp_path_factory.mktemp("nfc") / "t", normalizer="nfc")


def test_nfc_gives_the_nfc_of_every_code_point_back(nfc: TokenizerFolder) -> None:
    for text in code_points():
        apart = ".".join(text)
        assert given_back(nfc, apart) == unicodedata.normalize("NFC", apart)


@given(st.text(st.characters(categories=["L", "M"]).filter(is_old)))
def test_nfc_gives_the_nfc_of_any_text_back(nfc: TokenizerFolder, text: str) -> None:
    assert given_back(nfc, text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_order_of_documents_changes_nothing(tmp_path: Path, trainer: str) -> None:
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    texts = [*korean()[:60], *english()[:30]]
    made = [
        train(tmp_path / name, ordered, trainer=trainer, vocab_size=1000)
        for name, ordered in (("a", texts), ("b", texts[::-1]), ("c", sorted(texts)))
    ]
    assert len({(each.folder / "tokenizer.json").read_bytes() for each in made}) == 1


_TRAIN_SCRIPT = """
import sys
from pathlib import Path
from recipes import english, korean, train
train(Path(sys.argv[1]), [*korean()[:60], *english()[:30]], trainer=sys.argv[2], vocab_size=1000)
"""


@pytest.mark.parametrize("trainer", TRAINERS)
def test_threads_change_nothing(tmp_path: Path, trainer: str) -> None:
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    made = set()
    for threads in ("1", "4"):
        folder = tmp_path / threads
        environment = os.environ | {
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        }
        subprocess.run([sys.executable, "-c", _TRAIN_SCRIPT, folder, trainer], env=environment, check=True)
        made.add((folder / "tokenizer.json").read_bytes())
    assert len(made) == 1


@pytest.mark.parametrize(
    ("size", "multiple", "entries"), [(700, 1, 700), (700, 64, 704), (704, 64, 704), (641, 128, 768)]
)
def test_size_is_rounded_up(tmp_path: Path, size: int, multiple: int, entries: int) -> None:
    tokenizer = train(tmp_path / "t", korean()[:40], vocab_size=size, multiple_of=multiple)
    assert tokenizer.vocab_size == tokenizer.backend.get_vocab_size() == entries


@pytest.mark.parametrize(
    ("texts", "keys", "advice"),
    [
        (
            TEXTS,
            {"vocab_size": 600, "multiple_of": 64},
            r"set tokenizer\.vocab_size=384 or less, or give more text",
        ),
        (
            TEXTS,
            {"vocab_size": 600, "multiple_of": 512},
            r"set tokenizer\.vocab_size=\d+ tokenizer\.multiple_of=1, or",
        ),
        (["too short to learn from"], {}, r"min_frequency=2\); give more text"),
    ],
)
def test_too_little_text_says_what_to_type(
    tmp_path: Path, texts: list[str], keys: dict[str, Any], advice: str
) -> None:
    with pytest.raises(KrillError, match=advice):
        train(tmp_path / "t", texts, **keys)


# --- the options -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=OPTIONS)
def chosen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """Every option of conf/tokenizer that trains, small."""
    place = tmp_path_factory.mktemp("option") / "t"
    return trained(place, option(request.param, vocab_size=600), [*korean()[:40], *english()[:20]])


@pytest.mark.parametrize("engine", ["hf", "fast"])
def test_no_option_makes_a_special_token_of_text(chosen: TokenizerFolder, engine: Any) -> None:
    if engine == "fast":
        pytest.importorskip("gigatoken")
    special = {index: token.content for index, token in chosen.backend.get_added_tokens_decoder().items()}
    assert len(special) >= 8
    texts = [*special.values(), "".join(special.values()), " a".join(special.values()), *korean()[:2]]
    for tokens, text in zip(Encoder(chosen, engine).encode_documents(texts), texts, strict=True):
        assert not {*special} & {*tokens[1:-1].tolist()}
        assert chosen.backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == text


def test_the_fast_engine_knows_every_option(chosen: TokenizerFolder) -> None:
    pytest.importorskip("gigatoken")
    texts = [
        *korean()[:20],
        *english()[:20],
        "  \n\n\t x  1234567 don't DON'T ㅋㅋ \u1112\u1161\u11ab e\u0301",
    ]
    assert engines.select_engine("fast", Encoder(chosen).backend, lambda: texts, 10**9) == "fast"


@pytest.mark.parametrize("kind", [" ", "\n", "a", "가", "한국어로", "!"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_run_without_end_neither_stops_nor_breaks_training(tmp_path: Path, kind: str, trainer: str) -> None:
    """Hugging Face's trainer takes quadratic time over a word, rustbpe's regular expressions overflow."""
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    run = kind * (300_000 // len(kind))
    tokenizer = train(
        tmp_path / "t", [run, run + "x", *TEXTS, *english()[:5]], trainer=trainer, vocab_size=400
    )
    assert tokenizer.vocab_size == 400
    assert given_back(tokenizer, run[:5000]) == run[:5000]


# --- what Hugging Face sees --------------------------------------------------------------------------------


def test_auto_tokenizer_adds_bos_and_no_eos(tokenizer: TokenizerFolder, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer.folder)
    loaded.save_pretrained(tmp_path)
    for each in (loaded, AutoTokenizer.from_pretrained(tmp_path)):
        assert (each.bos_token_id, each.eos_token_id, each.pad_token_id) == (0, 1, 2)
        assert len(each) == 330
        ids = each("한국어 text").input_ids
        (trained_on,) = Encoder(tokenizer).encode_documents(["한국어 text"])
        assert ids == trained_on.tolist()[:-1]
        assert each.decode(ids, skip_special_tokens=True) == "한국어 text"
        assert set(each.all_special_tokens) == set(SPECIALS)
        assert each.model_max_length < 10**9


# --- made once, by content ---------------------------------------------------------------------------------


def open_inputs(config: TrainConfig, outputs: Path) -> RunInputs:
    return RunInputs(config.data, config.tokenizer, outputs)


def get_tokenizer_folder(config: TrainConfig, outputs: Path) -> Path:
    return open_inputs(config, outputs).tokenizer_folder


def get_or_train_tokenizer(config: TrainConfig, outputs: Path) -> TokenizerFolder:
    return cache.get_or_train_tokenizer(open_inputs(config, outputs))


def compute_tokenizer_signature(config: TrainConfig) -> str:
    return RunInputs.open(config).tokenizer_signature


@pytest.mark.usefixtures("few_documents")
def test_is_trained_once_and_found_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "krill")
    setting = make_config(recipe())
    expected = get_tokenizer_folder(setting, tmp_path)
    assert not any(tmp_path.iterdir())
    first = get_or_train_tokenizer(setting, tmp_path)
    assert first.folder == expected == tmp_path / "tokenizers" / f"test-{first.signature[:8]}"
    assert first.signature == compute_tokenizer_signature(setting)
    assert get_or_train_tokenizer(setting, tmp_path) == first
    assert f"tokenizer: trained {first.folder}" in caplog.text
    assert f"tokenizer: reused {first.folder}" in caplog.text
    record = json.loads((first.folder / "record.json").read_text())
    assert record["signature"] == first.signature
    assert record["text"]["documents"] < len(TEXTS), "validation documents are not trained on"


def test_signature_follows_recipe_and_text_rules() -> None:
    first = compute_tokenizer_signature(make_config(recipe()))
    assert compute_tokenizer_signature(make_config(recipe(name="other"))) == first
    assert compute_tokenizer_signature(make_config(recipe(), make_data(min_tokens=9))) == first
    others = {
        compute_tokenizer_signature(make_config(recipe(vocab_size=400))),
        compute_tokenizer_signature(make_config(recipe(pattern="gpt2"))),
        compute_tokenizer_signature(make_config(recipe(), make_data(min_chars=9))),
        compute_tokenizer_signature(make_config(recipe(), make_data(validation_fraction=0.1))),
    }
    assert len(others - {first}) == 4


@pytest.mark.usefixtures("few_documents")
def test_a_trained_one_keeps_its_signature_when_it_is_given_by_path(tmp_path: Path) -> None:
    trained = get_or_train_tokenizer(make_config(recipe()), tmp_path)
    ready = make_config(recipe(path=str(trained.folder)))
    assert (
        get_or_train_tokenizer(ready, tmp_path).signature
        == trained.signature
        == compute_tokenizer_signature(ready)
    )
    path = trained.folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert get_or_train_tokenizer(ready, tmp_path).signature != trained.signature


def save_and_load(folder: Path, tokenizer: TokenizerFolder, **settings: Any) -> TokenizerFolder:
    folder.mkdir()
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


def test_ready_tokenizers_name_their_roles_in_several_ways(
    tmp_path: Path, tokenizer: TokenizerFolder
) -> None:
    only_eos = save_and_load(tmp_path / "a", tokenizer, eos_token="<|eos|>", pad_token=None)
    assert (only_eos.bos_id, only_eos.eos_id, only_eos.pad_id) == (1, 1, 1)
    as_objects = save_and_load(
        tmp_path / "b", tokenizer, bos_token={"content": "<|bos|>"}, eos_token={"content": "<|eos|>"}
    )
    assert (as_objects.bos_id, as_objects.eos_id, as_objects.pad_id) == (0, 1, 1)
    (as_objects.folder / "special_tokens_map.json").write_text('{"pad_token": "<|pad|>"}')
    assert load_tokenizer(as_objects.folder).pad_id == 2


def test_ready_tokenizers_that_cannot_be_used(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    with pytest.raises(UsageError, match="has no eos_token"):
        save_and_load(tmp_path / "a", tokenizer, bos_token="<|bos|>")
    with pytest.raises(UsageError, match="'</s>' is not in the vocabulary"):
        save_and_load(tmp_path / "b", tokenizer, eos_token="</s>")
    with pytest.raises(UsageError, match="no such folder"):
        get_or_train_tokenizer(make_config(recipe(path=str(tmp_path / "없음"))), tmp_path)
    with pytest.raises(UsageError, match=r"no tokenizer\.json there"):
        get_or_train_tokenizer(make_config(recipe(path=str(tmp_path))), tmp_path)
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
