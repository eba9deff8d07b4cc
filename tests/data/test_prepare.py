"""Tests of the preparation: the same input gives the same bytes, and every dropped document is counted."""

from __future__ import annotations

import json
import logging
import shutil
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from source_files import write_json_lines, write_texts
from stores import (
    ENGLISH,
    KOREAN,
    make_byte_tokenizer,
    make_data_config,
    make_tokenizer,
    prepare_and_open,
    read_store_content,
)
from tokenizers import Tokenizer, decoders, models, normalizers

from krill.config.schema import FilesDataConfig, TokenizerConfig, TrainConfig
from krill.data import cache
from krill.data import prepare as preparation
from krill.data.dry_run_sample import format_dry_run_sample
from krill.data.inputs import RunInputs
from krill.data.store import Split, Store
from krill.errors import KrillError, UsageError
from krill.inspection.store_stats import collect_exclusions
from krill.sources.registry import open_source
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer

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
            assert "normalize   66.7 % of the documents have decomposed letters" in caplog.text
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
        "min_chars drops 66.7 % of the documents; to keep them, change data.min_chars (it is 8)"
        in caplog.text
    )
    data = make_data_config(
        path,
        min_chars=1,
        validation_fraction=0.0,
        filters=[{"name": "links"}, {"name": "length", "min_chars": 8}],
    )
    lines = format_dry_run_sample(data, open_source(data))
    assert "length drops 66.7 % of the documents" in lines[-1]
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
    assert "min_tokens                              1  20.00 %" in caplog.text


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


def make_unigram(folder: Path) -> TokenizerFolder:
    """Writes a tokenizer without Hangul, which lower-cases."""
    pieces = [(token, 0.0) for token in ("<unk>", "<s>", "</s>")] + [(letter, -3.0) for letter in "abcdef "]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.Lowercase()
    backend.decoder = decoders.Fuse()
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return load_tokenizer(folder)


def test_lost_text_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "krill")
    texts = ["abc 가 나 def", "bad", "Bad face"]
    data = make_data_config(write_texts(tmp_path / "a.jsonl", texts), validation_fraction=0.0)
    manifest = prepare_and_open(tmp_path / "store", data, make_unigram(tmp_path / "unigram")).manifest
    assert manifest["unknown_tokens"] == 2
    share = 100 * 2 / manifest["read"]["tokens"]
    assert (
        f"unknown     2 of {manifest['read']['tokens']} tokens ({share:.2f} %) are the unk token"
        in caplog.text
    )
    assert "round trip  2 of 3 sampled texts (66.7 %) are not decoded unchanged" in caplog.text
    assert collect_exclusions(manifest)["unknown"] == {"tokens": 2, "share": pytest.approx(share / 100)}


def test_a_tokenizer_that_loses_nothing_is_not_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "krill")
    data = make_data_config(write_texts(tmp_path / "a.jsonl", [*TEXTS, "e\u0301 <|eos|> 가"]))
    tokenizer = make_byte_tokenizer(tmp_path / "nfc", normalizers.NFC())
    assert prepare_and_open(tmp_path / "store", data, tokenizer).manifest["unknown_tokens"] == 0
    assert "round trip" not in caplog.text
    assert "unknown" not in caplog.text


@pytest.mark.parametrize("engine", ["hf", "auto"])
def test_dropout_of_a_tokenizer_is_off(tmp_path: Path, engine: str) -> None:
    backend = make_tokenizer(tmp_path / "bpe").backend
    backend.model.dropout = 0.5
    (tmp_path / "dropout").mkdir()
    backend.save(str(tmp_path / "dropout/tokenizer.json"))
    shutil.copy(tmp_path / "bpe/tokenizer_config.json", tmp_path / "dropout")
    tokenizers = [load_tokenizer(tmp_path / name) for name in ("bpe", "dropout")]
    data = make_data_config(write_texts(tmp_path / "a.jsonl", [ENGLISH * 3, KOREAN * 3]), engine=engine)
    tokens = [
        prepare_and_open(tmp_path / f"{number}", data, tokenizer).train.read(0, 50).tolist()
        for number, tokenizer in enumerate(tokenizers)
    ]
    assert tokens[0] == tokens[1]
    (tmp_path / "model").mkdir()
    tokenizers[1].copy_to(tmp_path / "model", 64)
    assert json.loads((tmp_path / "model/tokenizer.json").read_text())["model"]["dropout"] is None


def test_parts_that_have_changed_are_prepared_again(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    data = make_data_config(write_texts(tmp_path / "a.jsonl", TEXTS))
    expected = read_store_content(prepare_and_open(tmp_path / "one", data, tokenizer).folder)
    for kind, position in (("tokens", 1000), ("npz", 600)):
        folder = tmp_path / kind
        preparation.prepare_task_parts(data.model_copy(update={"num_tasks": 1, "task": 0}), tokenizer, folder)
        path = folder / f"parts/00000.{kind}"
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(
            KrillError, match=r"1 of 1 finished parts have changed .* run the same command again"
        ):
            preparation.prepare_store(data, tokenizer, folder)
        preparation.prepare_store(data, tokenizer, folder)
        assert read_store_content(folder) == expected


def test_a_damaged_record_of_a_shard_is_ignored(
    tmp_path: Path, tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data_config(write_texts(tmp_path / "a.jsonl", TEXTS))
    expected = read_store_content(prepare_and_open(tmp_path / "one", data, tokenizer).folder)
    folder = tmp_path / "two"
    with monkeypatch.context() as patch:
        patch.setattr(preparation.store, "write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            preparation.prepare_store(data, tokenizer, folder)
    record = folder / "parts/train-00000.json"
    record.write_text(record.read_text().replace('"documents": ', '"documents": 1'))
    (folder / "manifest.json").write_text("{")
    preparation.prepare_store(data, tokenizer, folder)
    assert read_store_content(folder) == expected


def test_large_weights_are_quick_and_reported(
    tmp_path: Path, tokenizer: TokenizerFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krill")
    paths = [
        write_texts(tmp_path / f"{name}.jsonl", texts)
        for name, texts in zip("ab", (TEXTS[:3], TEXTS[3:]), strict=True)
    ]
    entries = [{"path": str(path), "weight": weight} for path, weight in zip(paths, (1000, 2), strict=True)]
    data = make_data_config(validation_fraction=0.0, paths=entries)
    started_at = time.process_time()
    manifest = prepare_and_open(tmp_path / "store", data, tokenizer).manifest
    assert time.process_time() - started_at < 3
    assert manifest["splits"]["train"]["documents"] == 3 * 1000 + 197 * 2
    assert manifest["repeated"]["documents"] == 3 * 999 + 197
    assert "tokens      200 documents kept" in caplog.text
    assert "repeated    3,194 repetitions of these documents, by weight: the store has " in caplog.text
    assert "weight      a weight is the number of times that a document occurs in an epoch" in caplog.text
    assert format_dry_run_sample(data, open_source(data))[0].startswith("mix         a.jsonl 8")


@pytest.mark.parametrize(
    ("weights", "advice"),
    [
        ((70, 30), "divide the weights by the smallest"),
        ((0.7, 0.3), "divide them by the largest"),
        ((1, 0.5), None),
    ],
)
def test_weights_that_look_like_shares_are_a_warning(
    tmp_path: Path,
    tokenizer: TokenizerFolder,
    caplog: pytest.LogCaptureFixture,
    weights: tuple[float, float],
    advice: str | None,
) -> None:
    paths = [write_texts(tmp_path / f"{name}.jsonl", [f"{name} {row}" for row in range(9)]) for name in "ab"]
    entries = [{"path": str(path), "weight": weight} for path, weight in zip(paths, weights, strict=True)]
    data = make_data_config(validation_fraction=0.0, paths=entries)
    prepare_and_open(tmp_path / "store", data, tokenizer)
    for output in (caplog.text, "\n".join(format_dry_run_sample(data, open_source(data)))):
        assert ("not a share" in output) == (advice is not None)
        assert (advice or "") in output


def test_a_weight_that_is_a_mistake_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        make_data_config(paths=[{"path": str(tmp_path), "weight": 1e6}])


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
    advice = r"no document is left .*: change data\.min_chars \(it is 1000000\), or use other data$"
    with pytest.raises(UsageError, match=advice):
        get_or_prepare_store(config, tokenizer, tmp_path / "outputs")
    assert not [path for path in (tmp_path / "outputs/data").iterdir() if not path.name.endswith(".lock")]


def test_advice_for_skipped_records_names_no_limit(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", {"text": None})
    config = make_config(make_data_config(path), tokenizer)
    with pytest.raises(
        UsageError, match=r"'text' is null 1\): mend the records named above, or use other data$"
    ):
        get_or_prepare_store(config, tokenizer, tmp_path / "outputs")


def test_advice_names_the_rules_that_drop_every_document(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    path = write_texts(tmp_path / "a.jsonl", ["one of ten letters", "1 2 3 4 5 6 7 8 9"])
    data = make_data_config(path, max_tokens=1, filters=[{"name": "symbols"}], validation_fraction=0.0)
    with pytest.raises(UsageError) as error:
        prepare_and_open(tmp_path / "store", data, tokenizer)
    change = (
        "change data.max_tokens (it is 1), change data.filters.0.min_letters (it is 0.4), or use other data"
    )
    assert str(error.value).endswith(f": {change}")


def test_folder_with_other_tokens_raises(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    first = make_config(make_data_config(write_texts(tmp_path / "a.jsonl", TEXTS)), tokenizer)
    second = make_config(make_data_config(write_texts(tmp_path / "b.jsonl", TEXTS[1:])), tokenizer)
    folder = get_or_prepare_store(first, tokenizer, tmp_path)
    folder.rename(get_store_folder(second, tmp_path))
    with pytest.raises(KrillError, match="holds other tokens"):
        get_or_prepare_store(second, tokenizer, tmp_path)
