"""From text to a store: the same input gives the same bytes, and everything dropped is counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading import RULES
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from krill.config.schema import FilesDataConfig, TokenizerConfig, TrainConfig
from krill.data import cache
from krill.data import prepare as preparation
from krill.data.inputs import RunInputs
from krill.data.prepare import prepare_store
from krill.data.store import Split, Store
from krill.errors import KrillError, UsageError
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer

TEXTS = [f"문서 number {index}: " + "word " * (index % 7 + 1) for index in range(200)]


@pytest.fixture
def tokenizer(tmp_path: Path) -> TokenizerFolder:
    """One token a byte; bos 0, eos 1, pad 2."""
    return save_byte_tokenizer(tmp_path / "bytes")


def save_byte_tokenizer(folder: Path, normalizer: normalizers.Normalizer | None = None) -> TokenizerFolder:
    folder.mkdir()
    names = ["<|bos|>", "<|eos|>", "<|pad|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Backend(models.BPE({name: index for index, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(names[:3])
    backend.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return load_tokenizer(folder)


def json_lines(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


DEFAULTS: dict[str, Any] = RULES | {
    "name": "글", "source": "files", "text_column": "text", "min_chars": 0, "validation_fraction": 0.2,
    "engine": "hf", "workers": 1,
}  # fmt: skip


def make_files(*paths: Path, **rules: Any) -> FilesDataConfig:
    return FilesDataConfig(**{**DEFAULTS, "paths": [str(path) for path in paths], **rules})


def prepare_and_open(
    folder: Path, data: FilesDataConfig, tokenizer: TokenizerFolder, **options: Any
) -> Store:
    folder.mkdir(exist_ok=True)
    prepare_store(data, tokenizer, folder, **options)
    return Store.open(folder)


def read_content(folder: Path) -> dict[str, bytes]:
    """What the store is: all but how it was made."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "record.json"}


def decode_texts(split: Split, tokenizer: TokenizerFolder) -> Iterator[str]:
    alphabet = {character: byte for byte, character in _byte_characters().items()}
    start = 0
    for end in split.ends.tolist():
        ids = split.read(start, end).tolist()
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        characters = [tokenizer.backend.id_to_token(token) for token in ids[1:-1]]
        yield bytes(alphabet[character] for character in characters).decode()
        start = end


def _byte_characters() -> dict[int, str]:
    """The byte-level alphabet: printable bytes stand for themselves, the others for U+0100 and on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


def test_every_document_comes_back_in_one_split(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    store = prepare_and_open(
        tmp_path / "store", make_files(json_lines(tmp_path / "a.jsonl", TEXTS)), tokenizer
    )
    train, validation = (list(decode_texts(split, tokenizer)) for split in (store.train, store.validation))
    assert sorted(train + validation) == sorted(text.strip() for text in TEXTS)
    assert 20 < len(validation) < 60
    assert store.train.text_bytes == sum(len(text.encode()) for text in train)
    assert store.train.tokens == store.train.text_bytes + 2 * len(train)
    store.verify()


def test_twice_gives_the_same_bytes(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    data = make_files(json_lines(tmp_path / "a.jsonl", TEXTS))
    first, second = (
        prepare_and_open(tmp_path / name, data, tokenizer, shard_tokens=1000).folder for name in "xy"
    )
    assert len(read_content(first)) > 10
    assert read_content(first) == read_content(second)


def test_order_of_documents_does_not_change_the_split(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    held = []
    for name, texts in (("a", TEXTS), ("b", TEXTS[::-1]), ("c", TEXTS[50:] + ["more text"] * 3 + TEXTS[:50])):
        store = prepare_and_open(
            tmp_path / name, make_files(json_lines(tmp_path / f"{name}.jsonl", texts)), tokenizer
        )
        held.append(set(decode_texts(store.validation, tokenizer)) - {"more text"})
    assert held[0] == held[1] == held[2]


def test_duplicates_are_dropped_across_files_and_counted(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    paths = [
        json_lines(tmp_path / "a.jsonl", ["하나", "둘"]),
        json_lines(tmp_path / "b.jsonl", [" 하나\r\n", "셋", "둘"]),
    ]
    store = prepare_and_open(tmp_path / "store", make_files(*paths, validation_fraction=0.0), tokenizer)
    assert list(decode_texts(store.train, tokenizer)) == ["하나", "둘", "셋"]
    assert store.train.sources.tolist() == [0, 0, 1]
    assert store.sources == ["a.jsonl", "b.jsonl"]
    assert store.manifest["dropped"] == {
        "duplicate": {
            "documents": 2,
            "bytes": 9,
            "tokens": 13,  # they were encoded: the first copies are in another part
            "examples": [
                {"place": f"{paths[1]}:1", "text": "하나"},
                {"place": f"{paths[1]}:3", "text": "둘"},
            ],
        }
    }


def test_every_rule_is_counted(
    tmp_path: Path, tokenizer: TokenizerFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krill")
    path = json_lines(tmp_path / "a.jsonl", ["", "\x00 ", "short", "가나다라마바", "long enough to stay"])
    with open(path, "a") as file:
        file.write("{cut\n")
    data = make_files(path, min_chars=6, min_tokens=19, validation_fraction=0.0)
    manifest = prepare_and_open(tmp_path / "store", data, tokenizer).manifest
    dropped = {
        rule: [found[key] for key in ("documents", "bytes", "tokens")]
        for rule, found in manifest["dropped"].items()
    }
    assert dropped == {"empty": [2, 0, 0], "min_chars": [1, 5, 0], "min_tokens": [1, 18, 20]}
    assert manifest["dropped"]["min_tokens"]["examples"] == [{"place": f"{path}:4", "text": "가나다라마바"}]
    assert manifest["skipped"] == {"invalid JSON": {"records": 1, "places": [f"{path}:6"]}}
    assert manifest["read"] == {"documents": 5, "tokens": 41}
    assert "1 documents kept" in caplog.text
    assert "min_tokens                              1  20.00%" in caplog.text


def test_no_usable_document_is_an_error_that_counts(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    path = json_lines(tmp_path / "a.jsonl", ["short", "short", "longer"])
    with pytest.raises(UsageError, match=r"min_chars 2; min_tokens 1\).*data\.min_chars=6"):
        prepare_and_open(tmp_path / "store", make_files(path, min_chars=6, min_tokens=50), tokenizer)
    assert not (tmp_path / "store/manifest.json").exists()


def test_text_cannot_end_a_document(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    texts = ["a<|eos|>b<|bos|><|pad|>", "<|eos|>"]
    store = prepare_and_open(
        tmp_path / "store",
        make_files(json_lines(tmp_path / "a.jsonl", texts), validation_fraction=0.0),
        tokenizer,
    )
    assert list(decode_texts(store.train, tokenizer)) == texts
    assert np.isin(store.train.read(0, store.train.tokens), [0, 1, 2]).sum() == 4


def test_bytes_are_those_of_the_normalized_text(tmp_path: Path) -> None:
    tokenizer = save_byte_tokenizer(tmp_path / "nfc", normalizers.NFC())
    path = json_lines(tmp_path / "a.jsonl", ["\u1112\u1161\u11ab" * 10])  # 한, three code points each
    train = prepare_and_open(tmp_path / "store", make_files(path, validation_fraction=0.0), tokenizer).train
    assert train.text_bytes == 30
    assert train.tokens == 32


# --- made once ---------------------------------------------------------------------------------------------


def make_config(data: FilesDataConfig, tokenizer: TokenizerFolder) -> TrainConfig:
    ready = TokenizerConfig.model_construct(name="bytes", path=str(tokenizer.folder))
    return TrainConfig.model_construct(data=data, tokenizer=ready, sequence_len=64, packing="best_fit")


def open_inputs(config: TrainConfig, outputs: Path) -> RunInputs:
    return RunInputs(config.data, config.tokenizer, outputs)


def get_store_folder(config: TrainConfig, outputs: Path) -> Path:
    return open_inputs(config, outputs).store_folder


def get_or_prepare_store(config: TrainConfig, tokenizer: TokenizerFolder, outputs: Path) -> Path:
    return cache.get_or_prepare_store(config, open_inputs(config, outputs), tokenizer)


def test_a_store_is_made_once_and_found_again(
    tmp_path: Path, tokenizer: TokenizerFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krill")
    outputs = tmp_path / "outputs"
    setting = make_config(make_files(json_lines(tmp_path / "a.jsonl", TEXTS)), tokenizer)
    expected = get_store_folder(setting, outputs)
    assert not outputs.exists()
    folder = get_or_prepare_store(setting, tokenizer, outputs)
    assert folder == expected
    assert f"tokens: prepared {folder}" in caplog.text
    caplog.clear()
    assert folder.parent == outputs / "data"
    assert folder.name == f"글-{Store.open(folder).signature[:8]}"
    assert get_or_prepare_store(setting, tokenizer, outputs) == folder
    assert "tokens: prepared" not in caplog.text
    assert f"tokens: reused {folder}" in caplog.text


def test_the_folder_follows_content_and_rules_not_place(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    def folder(path: Path, texts: list[str], **rules: Any) -> Path:
        return get_store_folder(
            make_config(make_files(json_lines(path, texts), **rules), tokenizer), tmp_path
        )

    first = folder(tmp_path / "a.jsonl", TEXTS)
    assert folder(tmp_path / "moved/a.jsonl", TEXTS) == first
    others = {
        folder(tmp_path / "b/a.jsonl", TEXTS[1:]),
        folder(tmp_path / "c/a.jsonl", TEXTS, min_chars=5),
        folder(tmp_path / "d/a.jsonl", TEXTS, min_tokens=5),
        folder(tmp_path / "e/a.jsonl", TEXTS, validation_fraction=0.1),
    }
    assert len(others - {first}) == 4


def test_an_interrupted_preparation_shows_nothing_and_goes_on(
    tmp_path: Path, tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krill")
    setting = make_config(make_files(json_lines(tmp_path / "a.jsonl", TEXTS)), tokenizer)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_merge", fail)
        with pytest.raises(KeyboardInterrupt):
            get_or_prepare_store(setting, tokenizer, tmp_path / "outputs")
    assert not [path for path in (tmp_path / "outputs/data").iterdir() if not path.name.startswith(".")]
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_parts", fail)  # the part is there
        get_or_prepare_store(setting, tokenizer, tmp_path / "outputs")
    assert "tokens: prepared" in caplog.text
    assert not [path for path in (tmp_path / "outputs/data").iterdir() if path.name.endswith(".partial")]


def test_input_that_is_of_no_use_leaves_nothing_behind(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    setting = make_config(make_files(json_lines(tmp_path / "a.jsonl", TEXTS), min_chars=10**6), tokenizer)
    with pytest.raises(UsageError, match="no document is left"):
        get_or_prepare_store(setting, tokenizer, tmp_path / "outputs")
    assert not [path for path in (tmp_path / "outputs/data").iterdir() if not path.name.endswith(".lock")]


def test_a_folder_that_holds_other_tokens_is_refused(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    first = make_config(make_files(json_lines(tmp_path / "a.jsonl", TEXTS)), tokenizer)
    second = make_config(make_files(json_lines(tmp_path / "b.jsonl", TEXTS[1:])), tokenizer)
    folder = get_or_prepare_store(first, tokenizer, tmp_path)
    folder.rename(get_store_folder(second, tmp_path))
    with pytest.raises(KrillError, match="holds other tokens"):
        get_or_prepare_store(second, tokenizer, tmp_path)
