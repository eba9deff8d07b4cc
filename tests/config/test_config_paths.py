"""Where configurations come from and results go to: the strongest folder first, krill's own last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from krill.config.paths import (
    CONF_DIR,
    find_shadowed_configs,
    find_user_config_dirs,
    get_outputs_root,
    list_config_groups,
    list_config_options,
    read_config_description,
)
from krill.errors import UsageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("KRILL_CONF", "KRILL_OUTPUTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_krills_own_are_found():
    assert (CONF_DIR / "train.yaml").is_file()
    expected = ["data", "experiment", "filters", "hardware", "model", "optimizer", "scheduler", "tokenizer"]
    assert list_config_groups() == expected


def test_outputs(here: Path, monkeypatch: pytest.MonkeyPatch):
    assert get_outputs_root() == here / "outputs"
    monkeypatch.setenv("KRILL_OUTPUTS", "elsewhere")
    assert get_outputs_root() == here / "elsewhere"
    monkeypatch.setenv("KRILL_OUTPUTS", "")
    assert get_outputs_root() == here / "outputs"


def test_the_order_of_a_persons_folders(here: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a", "b", "c", "conf/model"):
        (here / name).mkdir(parents=True)
    monkeypatch.setenv("KRILL_CONF", os.pathsep.join(["b", "c", "a"]))
    assert find_user_config_dirs(["a"]) == [here / name for name in ("a", "b", "c", "conf")]


def test_conf_counts_only_with_one_of_krills_groups(here: Path):
    assert find_user_config_dirs([]) == []
    (here / "conf" / "server").mkdir(parents=True)
    assert find_user_config_dirs([]) == []
    (here / "conf" / "optimizer").mkdir()
    assert find_user_config_dirs([]) == [here / "conf"]


def test_krills_own_folder_is_nobodys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(CONF_DIR.parent)
    assert find_user_config_dirs([str(CONF_DIR)]) == []
    assert find_shadowed_configs([*find_user_config_dirs([]), CONF_DIR]) == []


def test_a_folder_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="no such folder of configurations: none"):
        find_user_config_dirs(["none"])
    monkeypatch.setenv("KRILL_CONF", "nowhere")
    with pytest.raises(UsageError, match="nowhere"):
        find_user_config_dirs([])


def test_the_first_folder_that_has_a_name_wins(here: Path):
    first, second = here / "first", here / "second"
    for folder in (first, second):
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "both.yaml").touch()
        (folder / "model" / f"{folder.name}.yaml").touch()
        (folder / "model" / "_part.yaml").touch()
    found = list_config_options("model", [first, second])
    assert found == {
        "both": first / "model" / "both.yaml",
        "first": first / "model" / "first.yaml",
        "second": second / "model" / "second.yaml",
    }
    hidden = dict(find_shadowed_configs([first, second]))
    assert hidden[first / "model" / "both.yaml"] == second / "model" / "both.yaml"
    assert first / "model" / "first.yaml" not in hidden


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# 한 문장\nx: 1\n", "한 문장"),
        ("# @package _global_\n# What it is\nx: 1\n", "What it is"),
        ("x: 1\n# late\n", ""),
        ("", ""),
    ],
)
def test_a_file_says_what_it_is(here: Path, text: str, sentence: str):
    (here / "file.yaml").write_text(text, encoding="utf-8")
    assert read_config_description(here / "file.yaml") == sentence
