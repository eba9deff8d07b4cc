"""The identity of the held-out set is that of its texts: not of their order, the tokenizer or the training text."""

from __future__ import annotations

import json
from pathlib import Path

from stores import make_byte_tokenizer, make_data_config, make_tokenizer, prepare_and_open, write_store

from krill.data.store import Store
from krill.text.dedup import assign_split, hash_text
from krill.tokenizer.artifact import TokenizerFolder

TEXTS = [f"text number {number}" for number in range(40)]
FRACTION = 0.2


def is_held_out(text: str) -> bool:
    return assign_split(hash_text(text.encode()), FRACTION) == "validation"


def prepare(folder: Path, texts: list[str], tokenizer: TokenizerFolder) -> Store:
    folder.mkdir()
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return prepare_and_open(folder / "store", make_data_config(path), tokenizer)


def test_the_identity_is_that_of_the_texts(tmp_path: Path) -> None:
    one, other = make_tokenizer(tmp_path / "one"), make_byte_tokenizer(tmp_path / "other")
    held_out = [text for text in TEXTS if is_held_out(text)]
    trained = [text for text in TEXTS if not is_held_out(text)]
    assert len(held_out) > 2
    store = prepare(tmp_path / "a", TEXTS, one)
    assert store.validation.documents == len(held_out)
    same = [
        prepare(tmp_path / "b", TEXTS[::-1], one),
        prepare(tmp_path / "c", TEXTS, other),
        prepare(tmp_path / "d", [*trained[1:], *held_out], one),
        prepare(tmp_path / "e", [*held_out, *TEXTS], one),  # copies are dropped
    ]
    assert {each.validation_set for each in same} == {store.validation_set}
    assert prepare(tmp_path / "f", [*trained, *held_out[1:]], one).validation_set != store.validation_set
    assert prepare(tmp_path / "g", trained, one).validation_set is None


def test_a_store_of_an_earlier_version_is_identified_by_its_files(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer(tmp_path / "t")
    stores = [
        write_store(tmp_path / name, tokenizer, [("a", "x")], [("a", held_out)])
        for name, held_out in (("a", "one"), ("b", "one"), ("c", "two"))
    ]
    first, same, other = (store.validation_set for store in stores)
    assert first == same != other
    assert write_store(tmp_path / "d", tokenizer, [("a", "x")]).validation_set is None
