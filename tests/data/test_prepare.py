"""Tests of the preparation: the same input gives the same bytes, and every dropped document is counted."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_files import write_texts
from stores import make_byte_tokenizer, make_data_config, prepare_and_open, read_store_content
from tokenizers import normalizers

from krill.config.schema import FilesDataConfig, TokenizerConfig, TrainConfig
from krill.data import cache
from krill.data import prepare as preparation
from krill.data.dry_run_sample import format_dry_run_sample
from krill.data.inputs import RunInputs
from krill.data.store import Split, Store
from krill.errors import KrillError, UsageError
from krill.sources.registry import open_source
from krill.tokenizer.artifact import TokenizerFolder

TEXTS = [f"문서 number {index}: " + "word " * (index % 7 + 1) for index in range(200)]


@pytest.fixture
def tokenizer(tmp_path: Path) -> TokenizerFolder:
    return make_byte_tokenizer(tmp_path / "bytes")


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
    """Returns the byte-level alphabet: printable bytes map to themselves, the others to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


def test_every_document_is_in_exactly_one_split(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    store = prepare_and_open(
        tmp_path / "store", make_data_config(write_texts(tmp_path / "a.jsonl", TEXTS)), tokenizer
    )
    train, validation = (list(decode_texts(split, tokenizer)) for split in (store.train, store.validation))
    assert sorted(train + validation) == sorted(text.strip() for text in TEXTS)
    assert 20 < len(validation) < 60
    assert store.train.text_bytes == sum(len(text.encode()) for text in train)
    assert store.train.tokens == store.train.text_bytes + 2 * len(train)
    store.verify()


def test_two_preparations_give_the_same_bytes(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    data = make_data_config(write_texts(tmp_path / "a.jsonl", TEXTS))
    first, second = (
        prepare_and_open(tmp_path / name, data, tokenizer, shard_tokens=1000).folder for name in "xy"
    )
    assert len(read_store_content(first)) > 10
    assert read_store_content(first) == read_store_content(second)


def test_split_does_not_depend_on_the_order_of_documents(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    validation_texts = []
    for name, texts in (("a", TEXTS), ("b", TEXTS[::-1]), ("c", TEXTS[50:] + ["more text"] * 3 + TEXTS[:50])):
        store = prepare_and_open(
            tmp_path / name, make_data_config(write_texts(tmp_path / f"{name}.jsonl", texts)), tokenizer
        )
        validation_texts.append(set(decode_texts(store.validation, tokenizer)) - {"more text"})
    assert validation_texts[0] == validation_texts[1] == validation_texts[2]


def test_duplicates_are_dropped_across_files_and_counted(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    paths = [
        write_texts(tmp_path / "a.jsonl", ["하나", "둘"]),
        write_texts(tmp_path / "b.jsonl", [" 하나\r\n", "셋", "둘"]),
    ]
    store = prepare_and_open(tmp_path / "store", make_data_config(*paths, validation_fraction=0.0), tokenizer)
    assert list(decode_texts(store.train, tokenizer)) == ["하나", "둘", "셋"]
    assert store.train.sources.tolist() == [0, 0, 1]
    assert store.sources == ["a.jsonl", "b.jsonl"]
    assert store.manifest["dropped"] == {
        "duplicate": {
            "documents": 2,
            "bytes": 9,
            "tokens": 13,  # encoded, because the first copies are in another part
            "examples": [
                {"place": f"{paths[1]}:1", "text": "하나"},
                {"place": f"{paths[1]}:3", "text": "둘"},
            ],
        }
    }


def test_decomposed_documents_are_those_that_they_compose_to(
    tmp_path: Path, tokenizer: TokenizerFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Hangul in NFD is measured and compared in NFC; the text itself stays as it is, and a hint names the key."""
    near = "버스 요금이 다음 달부터 오른다고 한다. " * 3
    texts = ["가나다라마바사", "아자차카타파하", "가나", near, "English text"]
    composed = [*texts, near + "!"]
    decomposed = [*(unicodedata.normalize("NFD", text) for text in texts[:-1]), texts[-1], near + "!"]
    stores = {}
    for name, lines in (("nfc", composed), ("nfd", decomposed), ("both", composed + decomposed)):
        data = make_data_config(
            write_texts(tmp_path / f"{name}.jsonl", lines),
            min_chars=5,
            validation_fraction=0.3,
            minhash={"threshold": 0.8, "unit": "character", "size": 3, "bands": 16, "rows": 4},
        )
        caplog.clear()
        stores[name] = prepare_and_open(tmp_path / name, data, tokenizer)
        assert ("data.normalize=nfc" in caplog.text) == (name != "nfc")
        if name == "nfd":
            assert "normalize   66.7% of the documents have decomposed letters" in caplog.text
    counts = {
        name: {rule: counts["documents"] for rule, counts in store.manifest["dropped"].items()}
        for name, store in stores.items()
    }
    assert counts["nfc"] == counts["nfd"] == {"min_chars": 1, "near duplicate": 1}
    assert counts["both"] == {"duplicate": 5, "min_chars": 2, "near duplicate": 1}
    assert stores["nfc"].manifest["read"].keys() == {"documents", "tokens"}
    assert stores["nfd"].manifest["read"]["decomposed"] == 4
    for split in ("train", "validation"):
        nfc, nfd = (list(decode_texts(getattr(stores[name], split), tokenizer)) for name in ("nfc", "nfd"))
        assert nfc
        assert nfd != nfc or split == "validation"
        assert [unicodedata.normalize("NFC", text) for text in nfd] == nfc


def test_a_rule_that_drops_most_documents_is_a_warning_with_its_key(
    tmp_path: Path, tokenizer: TokenizerFolder, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_texts(tmp_path / "a.jsonl", ["짧은 글", "또 짧은 글", "이것은 조금 더 긴 글이다"])
    prepare_and_open(
        tmp_path / "store", make_data_config(path, min_chars=8, validation_fraction=0.0), tokenizer
    )
    assert (
        "min_chars drops 66.7% of the documents; to keep them, change data.min_chars (it is 8)" in caplog.text
    )
    data = make_data_config(
        path,
        min_chars=1,
        validation_fraction=0.0,
        filters=[{"name": "links"}, {"name": "length", "min_chars": 8}],
    )
    lines = format_dry_run_sample(data, open_source(data))
    assert "length drops 66.7% of the documents" in lines[-1]
    assert "change data.filters.1.min_chars (it is 8)" in lines[-1]
    caplog.clear()
    prepare_and_open(
        tmp_path / "kept", make_data_config(path, min_chars=5, validation_fraction=0.0), tokenizer
    )
    assert "drops" not in caplog.text


def test_every_rule_is_counted(
    tmp_path: Path, tokenizer: TokenizerFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krill")
    path = write_texts(tmp_path / "a.jsonl", ["", "\x00 ", "short", "가나다라마바", "long enough to stay"])
    with open(path, "a") as file:
        file.write("{cut\n")
    data = make_data_config(path, min_chars=6, min_tokens=19, validation_fraction=0.0)
    manifest = prepare_and_open(tmp_path / "store", data, tokenizer).manifest
    dropped = {
        rule: [counts[key] for key in ("documents", "bytes", "tokens")]
        for rule, counts in manifest["dropped"].items()
    }
    assert dropped == {"empty": [2, 0, 0], "min_chars": [1, 5, 0], "min_tokens": [1, 18, 20]}
    assert manifest["dropped"]["min_tokens"]["examples"] == [{"place": f"{path}:4", "text": "가나다라마바"}]
    assert manifest["skipped"] == {"invalid JSON": {"records": 1, "places": [f"{path}:6"]}}
    assert manifest["read"] == {"documents": 5, "tokens": 41}
    assert "1 documents kept" in caplog.text
    assert "min_tokens                              1  20.00%" in caplog.text


def test_no_usable_document_raises_with_the_counts(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    path = write_texts(tmp_path / "a.jsonl", ["short", "short", "longer"])
    with pytest.raises(UsageError, match=r"min_chars 2; min_tokens 1\).*data\.min_chars \(it is 6\)"):
        prepare_and_open(tmp_path / "store", make_data_config(path, min_chars=6, min_tokens=50), tokenizer)
    assert not (tmp_path / "store/manifest.json").exists()


def test_control_tokens_in_text_do_not_end_a_document(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    texts = ["a<|eos|>b<|bos|><|pad|>", "<|eos|>"]
    store = prepare_and_open(
        tmp_path / "store",
        make_data_config(write_texts(tmp_path / "a.jsonl", texts), validation_fraction=0.0),
        tokenizer,
    )
    assert list(decode_texts(store.train, tokenizer)) == texts
    assert np.isin(store.train.read(0, store.train.tokens), [0, 1, 2]).sum() == 4


def test_text_bytes_are_counted_after_normalization(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer(tmp_path / "nfc", normalizers.NFC())
    path = write_texts(tmp_path / "a.jsonl", ["\u1112\u1161\u11ab" * 10])  # 한, three code points each
    train = prepare_and_open(
        tmp_path / "store", make_data_config(path, validation_fraction=0.0), tokenizer
    ).train
    assert train.text_bytes == 30
    assert train.tokens == 32


# --- reuse ---------------------------------------------------------------------------------------------


def make_config(data: FilesDataConfig, tokenizer: TokenizerFolder) -> TrainConfig:
    tokenizer_config = TokenizerConfig.model_construct(name="bytes", path=str(tokenizer.folder))
    return TrainConfig.model_construct(
        data=data, tokenizer=tokenizer_config, sequence_len=64, packing="best_fit"
    )


def open_inputs(config: TrainConfig, outputs: Path) -> RunInputs:
    return RunInputs(config.data, config.tokenizer, outputs)


def get_store_folder(config: TrainConfig, outputs: Path) -> Path:
    return open_inputs(config, outputs).store_folder


def get_or_prepare_store(config: TrainConfig, tokenizer: TokenizerFolder, outputs: Path) -> Path:
    return cache.get_or_prepare_store(config, open_inputs(config, outputs), tokenizer)


def test_store_is_prepared_once_and_reused(
    tmp_path: Path, tokenizer: TokenizerFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krill")
    outputs = tmp_path / "outputs"
    config = make_config(make_data_config(write_texts(tmp_path / "a.jsonl", TEXTS)), tokenizer)
    expected = get_store_folder(config, outputs)
    assert not outputs.exists()
    folder = get_or_prepare_store(config, tokenizer, outputs)
    assert folder == expected
    assert f"tokens      prepared {folder}" in caplog.text
    caplog.clear()
    assert folder.parent == outputs / "data"
    assert folder.name == f"글-{Store.open(folder).signature[:8]}"
    assert get_or_prepare_store(config, tokenizer, outputs) == folder
    assert "tokens      prepared" not in caplog.text
    assert f"tokens      reused {folder}" in caplog.text


def test_folder_depends_on_content_and_rules_not_on_the_path(
    tmp_path: Path, tokenizer: TokenizerFolder
) -> None:
    def folder(path: Path, texts: list[str], **rules: Any) -> Path:
        return get_store_folder(
            make_config(make_data_config(write_texts(path, texts), **rules), tokenizer), tmp_path
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


def test_interrupted_preparation_leaves_no_store_and_resumes(
    tmp_path: Path,
    tokenizer: TokenizerFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "krill")
    config = make_config(make_data_config(write_texts(tmp_path / "a.jsonl", TEXTS)), tokenizer)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_merge", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get_or_prepare_store(config, tokenizer, tmp_path / "outputs")
    assert not [path for path in (tmp_path / "outputs/data").iterdir() if not path.name.startswith(".")]
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_parts", interrupt)  # not called: the part exists
        get_or_prepare_store(config, tokenizer, tmp_path / "outputs")
    assert "tokens      prepared" in caplog.text
    assert not [path for path in (tmp_path / "outputs/data").iterdir() if path.name.endswith(".partial")]


def test_unusable_input_leaves_no_files(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    config = make_config(
        make_data_config(write_texts(tmp_path / "a.jsonl", TEXTS), min_chars=10**6), tokenizer
    )
    with pytest.raises(UsageError, match="no document is left"):
        get_or_prepare_store(config, tokenizer, tmp_path / "outputs")
    assert not [path for path in (tmp_path / "outputs/data").iterdir() if not path.name.endswith(".lock")]


def test_folder_with_other_tokens_raises(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    first = make_config(make_data_config(write_texts(tmp_path / "a.jsonl", TEXTS)), tokenizer)
    second = make_config(make_data_config(write_texts(tmp_path / "b.jsonl", TEXTS[1:])), tokenizer)
    folder = get_or_prepare_store(first, tokenizer, tmp_path)
    folder.rename(get_store_folder(second, tmp_path))
    with pytest.raises(KrillError, match="holds other tokens"):
        get_or_prepare_store(second, tokenizer, tmp_path)
