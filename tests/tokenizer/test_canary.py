"""A tokenizer that gives other ids than it was made with is reported in one line, wherever it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import make_byte_tokenizer, make_data_config, make_tokenizer, prepare_and_open
from tokenizers import Tokenizer, pre_tokenizers

from krill.checksum import read_checksummed_json, write_checksummed_json
from krill.config.schema import FilesDataConfig
from krill.errors import KrillError
from krill.inference.load import ModelFiles
from krill.tokenizer import artifact
from krill.tokenizer.artifact import load_tokenizer
from krill.tokenizer.canary import CANARY_TEXT, check_canary

Upgrade = Callable[[], None]


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Upgrade:
    """Lets the library read every file with another pre-tokenizer, as transformers 5 did."""
    load_backend = artifact._load_backend

    def load(path: Path) -> Tokenizer:
        backend = load_backend(path)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
        )
        return backend

    def start() -> None:
        monkeypatch.setattr(artifact, "_load_backend", load)
        monkeypatch.setattr("tokenizers.__version__", "99.0")

    return start


def test_other_ids_of_a_trained_tokenizer_and_of_its_copies_are_reported(
    tmp_path: Path, upgrade: Upgrade
) -> None:
    trained = make_tokenizer(tmp_path / "t")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    trained.copy_to(model, 128)
    assert load_tokenizer(model).canary == load_tokenizer(trained.folder).canary == trained.canary
    version = trained.canary["tokenizers"]
    upgrade()
    message = f"tokenizers 99.0 gives other ids than it was made with by tokenizers {version}: .* instead of "
    for load in (lambda: load_tokenizer(trained.folder), lambda: ModelFiles.locate(str(model))):
        with pytest.raises(KrillError, match=message) as error:
            load()
        assert f"Install tokenizers=={version}" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_file_that_was_edited_together_with_its_record_is_reported(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path / "t").folder
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    artifact.refresh_record(folder)
    with pytest.raises(KrillError, match="gives other ids than it was made with"):
        load_tokenizer(folder)


def write_texts(folder: Path) -> FilesDataConfig:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"하나 둘 {number}"}) + "\n" for number in range(30)))
    return make_data_config(path)


def test_a_tokenizer_without_a_record_is_checked_by_its_tokens(tmp_path: Path, upgrade: Upgrade) -> None:
    tokenizer = make_byte_tokenizer(tmp_path / "t")
    manifest = prepare_and_open(tmp_path / "store", write_texts(tmp_path), tokenizer).manifest
    canary = manifest["tokenizer"]["canary"]
    assert bytes(map(_byte_of(tokenizer.backend), canary["ids"])).decode() == CANARY_TEXT
    check_canary(canary, tokenizer.backend, "store", "")
    upgrade()
    with pytest.raises(
        KrillError, match=r"^store: tokenizers 99\.0 gives other ids .* garbage with them\. do it$"
    ):
        check_canary(canary, load_tokenizer(tokenizer.folder).backend, "store", "do it")


def _byte_of(backend: Tokenizer) -> Callable[[int], int]:
    """Returns the function that decodes an id to its byte."""
    names = {name: byte for byte, name in _list_byte_names().items()}
    return lambda token: names[str(backend.id_to_token(token))]


def _list_byte_names() -> dict[int, str]:
    """The name of each byte in a byte-level vocabulary: printable ones by themselves, others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def test_parts_of_other_ids_are_not_mixed(tmp_path: Path, upgrade: Upgrade) -> None:
    tokenizer = make_byte_tokenizer(tmp_path / "t")
    data = write_texts(tmp_path)
    prepare_and_open(tmp_path / "store", data, tokenizer)
    parts = tmp_path / "interrupted/parts"
    parts.mkdir(parents=True)
    for _ in range(2):  # a preparation of the same ids resumes
        prepare_and_open(tmp_path / "interrupted", data, tokenizer)
        (tmp_path / "interrupted/manifest.json").unlink()
    assert not parts.exists()
    parts.mkdir()
    identity = json.loads((tmp_path / "store/manifest.json").read_text())["signature"]
    write_checksummed_json(parts / "canary.json", {**tokenizer.canary, "identity": identity})
    upgrade()
    with pytest.raises(KrillError, match=r"parts: tokenizers 99\.0 gives other ids .* everywhere, or remove"):
        prepare_and_open(tmp_path / "interrupted", data, load_tokenizer(tokenizer.folder))


def test_records_without_a_canary_are_read(tmp_path: Path, upgrade: Upgrade) -> None:
    folder = make_tokenizer(tmp_path / "t").folder
    record: dict[str, Any] = read_checksummed_json(folder / "record.json")
    del record["canary"]
    write_checksummed_json(folder / "record.json", record)
    upgrade()
    assert load_tokenizer(folder).vocab_size == 330


def test_truncation_of_a_tokenizer_does_not_shorten_the_canary(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer(tmp_path / "t")
    copy = shutil.copytree(tokenizer.folder, tmp_path / "truncated")
    backend = Tokenizer.from_file(str(copy / "tokenizer.json"))
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    backend.save(str(copy / "tokenizer.json"))
    truncated = load_tokenizer(copy)
    assert truncated.canary["ids"] == tokenizer.canary["ids"]
    assert len(truncated.backend.encode("a long text").ids) == 8
