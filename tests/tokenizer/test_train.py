"""A trained tokenizer decodes every text unchanged, keeps special tokens out of text, and loads in transformers."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipes import (
    TEXTS,
    list_code_points,
    load_english,
    load_option,
    make_korean,
    make_recipe,
    round_trip,
    round_trip_batch,
    train_recipe,
    train_small,
)
from stores import make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from krill.config.paths import CONF_DIR
from krill.config.schema import PythonDocsDataConfig, TokenizerConfig, TrainConfig
from krill.data import cache, engines
from krill.data.encoding import Encoder
from krill.data.inputs import RunInputs
from krill.errors import KrillError, UsageError
from krill.sources import python_docs
from krill.text.cleaning import clean
from krill.tokenizer.artifact import TokenizerFolder, build_bos_processor, load_tokenizer

SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<think>"]
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
    return train_small(tmp_path_factory.mktemp("tokenizer") / "trained")


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{index} {text}" for index, text in enumerate(TEXTS)]
    monkeypatch.setattr(python_docs, "read_python_docs", lambda: iter(texts))


# --- the recipe --------------------------------------------------------------------------------------------


def test_size_and_ids(tokenizer: TokenizerFolder) -> None:
    assert tokenizer.vocab_size == tokenizer.backend.get_vocab_size() == 330
    assert [tokenizer.backend.id_to_token(index) for index in range(5)] == SPECIAL_TOKENS
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    assert set(tokenizer.backend.get_vocab().values()) == set(range(330))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_merges_are_learned_for_every_script(tmp_path: Path, pattern: str) -> None:
    encoder = Encoder(train_small(tmp_path / "t", pattern=pattern, vocab_size=400))
    for text in TEXTS[:3]:
        (tokens,) = encoder.encode_documents([text])
        assert len(tokens) < len(text.encode()) / 2


@given(st.text())
def test_any_text_is_decoded_unchanged(tokenizer: TokenizerFolder, text: str) -> None:
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
def test_text_is_decoded_unchanged_and_has_no_special_token(tokenizer: TokenizerFolder, text: str) -> None:
    (tokens,) = Encoder(tokenizer).encode_documents([text])
    assert not {0, 1, 2, 3, 4} & set(tokens[1:-1].tolist())
    assert tokenizer.backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == text


def test_nfc_composes_and_keeps_jamo(tmp_path: Path) -> None:
    backend = train_small(tmp_path / "t", normalizer="nfc").backend
    assert backend.decode(backend.encode("\u1112\u1161\u11ab ㅋㅋ ½").ids) == "한 ㅋㅋ ½"


def test_special_tokens_in_the_training_text_are_ordinary_text(tmp_path: Path) -> None:
    """The merges do not depend on the special tokens: they are not removed from the text."""
    first = train_small(tmp_path / "a")
    second = train_small(
        tmp_path / "b", bos_token="<|b|>", eos_token="<|e|>", special_tokens=["<|x|>", "<|y|>"]
    )
    merges = [json.loads(each.backend.to_str())["model"]["merges"] for each in (first, second)]
    assert merges[0] == merges[1]
    assert len(merges[0]) == 330 - 256 - 5


def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = train_small(tmp_path / "a"), train_small(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_tokens_respect_the_maximum_length(tmp_path: Path) -> None:
    backend = train_small(tmp_path / "t", max_token_length=4, vocab_size=300).backend
    assert max(len(token) for token in backend.get_vocab() if token not in SPECIAL_TOKENS) <= 4


def test_the_error_for_too_little_text_names_the_possible_size(tmp_path: Path) -> None:
    with pytest.raises(KrillError, match=r"set tokenizer\.vocab_size=(\d+) or less") as error:
        train_small(tmp_path / "a", vocab_size=10_000)
    assert error.value.exit_code == 1
    size = int(str(error.value).split("set tokenizer.vocab_size=")[1].split()[0])
    assert train_small(tmp_path / "b", vocab_size=size).vocab_size == size


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"special_tokens": ["system"]}, r"'system' is an ordinary word or symbol; use <\|system\|>"),
        ({"special_tokens": ["a b"]}, "white space"),
        ({"special_tokens": [""]}, "is empty"),
        (
            {"vocab_size": 300, "special_tokens": [f"<|{index}|>" for index in range(60)]},
            "vocab_size=319 or more",
        ),
    ],
)
def test_invalid_special_tokens_are_rejected(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_small(tmp_path / "t", **keys)


def test_training_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no document is left"):
        train_small(tmp_path / "t", texts=[])


def test_bos_and_eos_may_be_the_same_token(tmp_path: Path) -> None:
    tokenizer = train_small(tmp_path / "t", bos_token="<|eos|>")
    assert tokenizer.bos_id == tokenizer.eos_id == 0
    assert tokenizer.backend.encode("a").ids[0] == 0


@pytest.fixture(scope="module", params=[(pattern, trainer) for pattern in PATTERNS for trainer in TRAINERS])
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """Every pattern with every trainer."""
    pattern, trainer = request.param
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    folder = tmp_path_factory.mktemp("variant") / "t"
    texts = [*make_korean()[:40], *load_english()[:20]]
    return train_small(folder, texts, pattern=pattern, trainer=trainer, vocab_size=700, multiple_of=64)


def test_the_size_of_every_variant_is_exact(variant: TokenizerFolder) -> None:
    assert variant.vocab_size == 704
    assert variant.backend.get_vocab_size() == len({*variant.backend.get_vocab().values()}) == 704
    assert [variant.backend.id_to_token(index) for index in range(5)] == SPECIAL_TOKENS


def test_every_entry_but_special_tokens_is_reachable(variant: TokenizerFolder) -> None:
    """Every entry is created by merges that apply: its bytes are encoded as the entry."""
    model = json.loads(variant.backend.to_str())["model"]
    assert {left + right for left, right in model["merges"]} | {*model["vocab"]} == {*model["vocab"]}
    bpe = variant.backend.model
    reachable = [entry for entry in model["vocab"] if [t.value for t in bpe.tokenize(entry)] == [entry]]
    assert len(reachable) >= 704 - len(SPECIAL_TOKENS)


@given(st.text())
def test_every_variant_decodes_any_text_unchanged(variant: TokenizerFolder, text: str) -> None:
    assert round_trip(variant, text) == text


@given(st.binary())
def test_every_variant_decodes_cleaned_bytes_unchanged(variant: TokenizerFolder, content: bytes) -> None:
    text = clean(content.decode("utf-8", "surrogateescape"))
    assert round_trip(variant, text) == text


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", " ", "eos", "\n", "가"])).map("".join))
def test_no_variant_encodes_text_as_a_special_token(variant: TokenizerFolder, text: str) -> None:
    (tokens,) = Encoder(variant).encode_documents([text])
    assert not {*range(len(SPECIAL_TOKENS))} & {*tokens[1:-1].tolist()}


@pytest.mark.parametrize(
    ("pattern", "trainer"), [*((pattern, "hf") for pattern in PATTERNS), ("gpt4", "rustbpe")]
)
def test_every_code_point_is_decoded_unchanged(tmp_path: Path, pattern: str, trainer: str) -> None:
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    tokenizer = train_small(tmp_path / "t", pattern=pattern, trainer=trainer)
    texts = list_code_points()
    assert round_trip_batch(tokenizer, texts) == texts


def is_in_unicode_3_2(letter: str) -> bool:
    """Returns whether Python and tokenizers are certain to know the character, and so its order among marks."""
    return unicodedata.ucd_3_2_0.category(letter) != "Cn"


@pytest.fixture(scope="module")
def nfc_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return train_small(tmp_path_factory.mktemp("nfc") / "t", normalizer="nfc")


def test_with_nfc_every_code_point_is_decoded_as_its_nfc(nfc_tokenizer: TokenizerFolder) -> None:
    texts = [".".join(text) for text in list_code_points()]
    expected = [unicodedata.normalize("NFC", text) for text in texts]
    assert round_trip_batch(nfc_tokenizer, texts) == expected


@given(st.text(st.characters(categories=["L", "M"]).filter(is_in_unicode_3_2)))
def test_with_nfc_any_text_is_decoded_as_its_nfc(nfc_tokenizer: TokenizerFolder, text: str) -> None:
    assert round_trip(nfc_tokenizer, text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_does_not_depend_on_the_order_of_documents(tmp_path: Path, trainer: str) -> None:
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    texts = [*make_korean()[:60], *load_english()[:30]]
    trained = [
        train_small(tmp_path / name, ordered, trainer=trainer, vocab_size=1000)
        for name, ordered in (("a", texts), ("b", texts[::-1]), ("c", sorted(texts)))
    ]
    assert len({(each.folder / "tokenizer.json").read_bytes() for each in trained}) == 1


_TRAIN_SCRIPT = """
import sys
from pathlib import Path
from recipes import load_english, make_korean, train_small
train_small(Path(sys.argv[1]), [*make_korean()[:60], *load_english()[:30]], trainer=sys.argv[2], vocab_size=1000)
"""


@pytest.mark.parametrize("trainer", TRAINERS)
def test_does_not_depend_on_the_number_of_threads(tmp_path: Path, trainer: str) -> None:
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    contents = set()
    for threads in ("1", "4"):
        folder = tmp_path / threads
        environment = os.environ | {
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        }
        subprocess.run([sys.executable, "-c", _TRAIN_SCRIPT, folder, trainer], env=environment, check=True)
        contents.add((folder / "tokenizer.json").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize(
    ("size", "multiple", "entries"), [(700, 1, 700), (700, 64, 704), (704, 64, 704), (641, 128, 768)]
)
def test_the_size_is_rounded_up(tmp_path: Path, size: int, multiple: int, entries: int) -> None:
    tokenizer = train_small(tmp_path / "t", make_korean()[:40], vocab_size=size, multiple_of=multiple)
    assert tokenizer.vocab_size == tokenizer.backend.get_vocab_size() == entries


@pytest.mark.parametrize(
    ("texts", "keys", "advice"),
    [
        (
            TEXTS,
            {"vocab_size": 600, "multiple_of": 64},
            r"set tokenizer\.vocab_size=384 or less, or use more text",
        ),
        (
            TEXTS,
            {"vocab_size": 600, "multiple_of": 512},
            r"set tokenizer\.vocab_size=\d+ tokenizer\.multiple_of=1, or",
        ),
        (["too short to learn from"], {}, r"min_frequency=2\); use more text"),
    ],
)
def test_the_error_for_too_little_text_suggests_overrides(
    tmp_path: Path, texts: list[str], keys: dict[str, Any], advice: str
) -> None:
    with pytest.raises(KrillError, match=advice):
        train_small(tmp_path / "t", texts, **keys)


# --- the options -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=OPTIONS)
def trained_option(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TokenizerFolder:
    """A small tokenizer by each option of conf/tokenizer that trains one."""
    folder = tmp_path_factory.mktemp("option") / "t"
    return train_recipe(
        folder, load_option(request.param, vocab_size=600), [*make_korean()[:40], *load_english()[:20]]
    )


@pytest.mark.parametrize("engine", ["hf", "fast"])
def test_no_option_encodes_text_as_a_special_token(trained_option: TokenizerFolder, engine: Any) -> None:
    if engine == "fast":
        pytest.importorskip("gigatoken")
    special = {
        index: token.content for index, token in trained_option.backend.get_added_tokens_decoder().items()
    }
    assert len(special) >= 8
    texts = [*special.values(), "".join(special.values()), " a".join(special.values()), *make_korean()[:2]]
    for tokens, text in zip(Encoder(trained_option, engine).encode_documents(texts), texts, strict=True):
        assert not {*special} & {*tokens[1:-1].tolist()}
        assert trained_option.backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == text


def test_the_fast_engine_supports_every_option(trained_option: TokenizerFolder) -> None:
    pytest.importorskip("gigatoken")
    texts = [
        *make_korean()[:20],
        *load_english()[:20],
        "  \n\n\t x  1234567 don't DON'T ㅋㅋ \u1112\u1161\u11ab e\u0301",
    ]
    assert engines.select_engine("fast", Encoder(trained_option).backend, lambda: texts, 10**9) == "fast"


@pytest.mark.parametrize("kind", [" ", "\n", "a", "가", "한국어로", "!"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_very_long_run_can_be_trained_on(tmp_path: Path, kind: str, trainer: str) -> None:
    """Hugging Face's trainer takes quadratic time in the length of a word, rustbpe's regular expressions overflow."""
    if trainer == "rustbpe":
        pytest.importorskip("rustbpe")
    run = kind * (300_000 // len(kind))
    tokenizer = train_small(
        tmp_path / "t", [run, run + "x", *TEXTS, *load_english()[:5]], trainer=trainer, vocab_size=400
    )
    assert tokenizer.vocab_size == 400
    assert round_trip(tokenizer, run[:5000]) == run[:5000]


# --- transformers ------------------------------------------------------------------------------------------


def test_auto_tokenizer_adds_bos_and_no_eos(tokenizer: TokenizerFolder, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer.folder)
    loaded.save_pretrained(tmp_path)
    for each in (loaded, AutoTokenizer.from_pretrained(tmp_path)):
        assert (each.bos_token_id, each.eos_token_id, each.pad_token_id) == (0, 1, 2)
        assert len(each) == 330
        canary = tokenizer.canary
        assert each(canary["text"], add_special_tokens=False).input_ids == canary["ids"]
        ids = each("한국어 text").input_ids
        (expected,) = Encoder(tokenizer).encode_documents(["한국어 text"])
        assert ids == expected.tolist()[:-1]
        assert each.decode(ids, skip_special_tokens=True) == "한국어 text"
        assert set(each.all_special_tokens) == set(SPECIAL_TOKENS)
        assert each.model_max_length < 10**9


# --- reuse and existing tokenizers -------------------------------------------------------------------------


def open_inputs(config: TrainConfig, outputs: Path) -> RunInputs:
    return RunInputs(config.data, config.tokenizer, outputs)


def get_tokenizer_folder(config: TrainConfig, outputs: Path) -> Path:
    return open_inputs(config, outputs).tokenizer_folder


def get_or_train_tokenizer(config: TrainConfig, outputs: Path) -> TokenizerFolder:
    return cache.get_or_train_tokenizer(open_inputs(config, outputs))


def compute_tokenizer_signature(config: TrainConfig) -> str:
    return open_inputs(config, Path("outputs")).tokenizer_signature


@pytest.mark.usefixtures("few_documents")
def test_is_trained_once_and_reused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "krill")
    config = make_config(make_recipe())
    expected = get_tokenizer_folder(config, tmp_path)
    assert not any(tmp_path.iterdir())
    first = get_or_train_tokenizer(config, tmp_path)
    assert first.folder == expected == tmp_path / "tokenizers" / f"test-{first.signature[:8]}"
    assert first.signature == compute_tokenizer_signature(config)
    assert get_or_train_tokenizer(config, tmp_path) == first
    assert f"tokenizer   trained {first.folder}" in caplog.text
    assert f"tokenizer   reused {first.folder}" in caplog.text
    record = json.loads((first.folder / "record.json").read_text())
    assert record["signature"] == first.signature
    assert record["text"]["documents"] < len(TEXTS), "validation documents are not trained on"


def test_the_signature_depends_on_the_recipe_and_the_text_rules() -> None:
    first = compute_tokenizer_signature(make_config(make_recipe()))
    assert compute_tokenizer_signature(make_config(make_recipe(name="other"))) == first
    assert compute_tokenizer_signature(make_config(make_recipe(), make_data(min_tokens=9))) == first
    others = {
        compute_tokenizer_signature(make_config(make_recipe(vocab_size=400))),
        compute_tokenizer_signature(make_config(make_recipe(pattern="gpt2"))),
        compute_tokenizer_signature(make_config(make_recipe(), make_data(min_chars=9))),
        compute_tokenizer_signature(make_config(make_recipe(), make_data(validation_fraction=0.1))),
    }
    assert len(others - {first}) == 4


@pytest.mark.usefixtures("few_documents")
def test_a_trained_tokenizer_has_the_same_signature_by_its_path(tmp_path: Path) -> None:
    trained = get_or_train_tokenizer(make_config(make_recipe()), tmp_path)
    by_path = make_config(make_recipe(path=str(trained.folder)))
    assert (
        get_or_train_tokenizer(by_path, tmp_path).signature
        == trained.signature
        == compute_tokenizer_signature(by_path)
    )
    path = trained.folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(KrillError, match=r"tokenizer\.json has changed since krill wrote it\. Restore it"):
        get_or_train_tokenizer(by_path, tmp_path)
    (trained.folder / "record.json").unlink()
    assert get_or_train_tokenizer(by_path, tmp_path).signature != trained.signature


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tokenizer_config.json", '"bos_token": "<|bos|>"', '"cos_token": "<|bos|>"'),
        ("tokenizer_config.json", "1048576", "1048577"),
        ("record.json", '"signature": "t', '"signature": "u'),
        ("record.json", '"checksum"', '"checksun"'),
    ],
)
def test_a_changed_folder_is_reported(tmp_path: Path, name: str, old: str, new: str) -> None:
    path = make_tokenizer(tmp_path / "t").folder / name
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(KrillError, match=f"{name} has changed since krill wrote it.*remove .*record.json"):
        load_tokenizer(path.parent)


def test_the_roles_are_in_the_signature_and_the_chat_template_is_not(
    tmp_path: Path, tokenizer: TokenizerFolder
) -> None:
    roles = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    base = save_and_load(tmp_path / "base", tokenizer, **roles)
    signatures = {base.signature}
    for role in ("bos_token", "pad_token", "unk_token"):
        signatures.add(save_and_load(tmp_path / role, tokenizer, **roles | {role: "<think>"}).signature)
    assert len(signatures) == 4
    identities = []
    for template in ("a", "b"):
        (base.folder / "chat_template.jinja").write_text(template)
        inputs = open_inputs(make_config(make_recipe(path=str(base.folder))), tmp_path)
        assert inputs.tokenizer_signature == base.signature
        identities.append(inputs.tokenizer_settings)
    assert identities[0] != identities[1], "a run with another template writes another model folder"


@pytest.mark.parametrize("bos", ["<|bos|>", "$bos:1"])
def test_the_template_names_bos_by_its_string(bos: str) -> None:
    """llama.cpp's converter reads whether a model expects bos from the first piece of `single`."""
    backend = Tokenizer(models.WordLevel({bos: 0, "a": 1, "b": 2}, "a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = build_bos_processor(bos, 0)
    template = json.loads(backend.to_str())["post_processor"]
    assert template["single"][0] == {"SpecialToken": {"id": bos, "type_id": 0}}
    assert template["special_tokens"] == {bos: {"id": bos, "ids": [0], "tokens": [bos]}}
    assert backend.encode("a b").ids == [0, 1, 2]
    assert backend.encode("a", "b").ids == [0, 1, 0, 2]
    assert backend.encode("a", "b").type_ids == [0, 0, 1, 1]


def test_the_copy_of_a_model_has_the_signature_and_the_length_of_the_model(
    tmp_path: Path, tokenizer: TokenizerFolder
) -> None:
    other_name = processors.TemplateProcessing(single="bos $A", pair="bos $A $B", special_tokens=[("bos", 0)])
    originals = [tokenizer]
    for name, post_processor in (("none", None), ("other", json.loads(other_name.__getstate__()))):
        content = json.loads((tokenizer.folder / "tokenizer.json").read_text(encoding="utf-8"))
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(
            json.dumps({**content, "post_processor": post_processor})
        )
        shutil.copy(tokenizer.folder / "tokenizer_config.json", tmp_path / name)
        originals.append(load_tokenizer(tmp_path / name))
    for number, original in enumerate(originals):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        original.copy_to(folder, 128)
        copy = load_tokenizer(folder)
        assert copy.signature == original.signature
        assert copy.backend.encode("a").ids[0] == copy.bos_id
        template = json.loads(copy.backend.to_str())["post_processor"]["single"]
        assert template[0]["SpecialToken"]["id"] == "<|bos|>"
        assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 128
        assert (
            Encoder(copy).encode(["가 a"]).tokens.tolist()
            == Encoder(original).encode(["가 a"]).tokens.tolist()
        )


def save_and_load(folder: Path, tokenizer: TokenizerFolder, **settings: Any) -> TokenizerFolder:
    folder.mkdir()
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


def test_existing_tokenizers_may_define_their_roles_in_several_ways(
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


def test_unusable_tokenizers_are_rejected(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    with pytest.raises(UsageError, match="has no eos_token"):
        save_and_load(tmp_path / "a", tokenizer, bos_token="<|bos|>")
    with pytest.raises(UsageError, match="'</s>' is not in the vocabulary"):
        save_and_load(tmp_path / "b", tokenizer, eos_token="</s>")
    with pytest.raises(UsageError, match="no such folder"):
        get_or_train_tokenizer(make_config(make_recipe(path=str(tmp_path / "없음"))), tmp_path)
    with pytest.raises(UsageError, match=r"no tokenizer\.json in this folder"):
        get_or_train_tokenizer(make_config(make_recipe(path=str(tmp_path))), tmp_path)
    (tmp_path / "b/tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path / "b")


def test_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, krill.tokenizer, krill.data.prepare, krill.data.packing, krill.data.order;"
        "print({'torch', 'transformers', 'datasets', 'trl', 'huggingface_hub'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
