"""Where configurations are read from and results are written to; the first folder has precedence, krill's is last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from krill.config.paths import (
    CONF_DIR,
    expand_home,
    find_shadowed_configs,
    find_user_config_dirs,
    get_outputs_root,
    list_config_groups,
    list_config_options,
    quote_path,
    read_config_description,
)
from krill.errors import UsageError


@pytest.fixture(autouse=True)
def working_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("KRILL_CONF", "KRILL_OUTPUTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_krills_configurations_are_found():
    assert (CONF_DIR / "train.yaml").is_file()
    expected = [
        "data",
        "evaluation",
        "experiment",
        "filters",
        "hardware",
        "model",
        "optimizer",
        "scheduler",
        "tokenizer",
    ]
    assert list_config_groups() == expected


def test_a_path_in_a_suggested_command_is_relative_and_quoted(working_dir: Path):
    assert quote_path(working_dir / "outputs" / "runs") == "outputs/runs"
    assert quote_path(working_dir / "한국 어") == "'한국 어'"


def test_the_outputs_root(working_dir: Path, monkeypatch: pytest.MonkeyPatch):
    assert get_outputs_root() == working_dir / "outputs"
    monkeypatch.setenv("KRILL_OUTPUTS", "elsewhere")
    assert get_outputs_root() == working_dir / "elsewhere"
    monkeypatch.setenv("KRILL_OUTPUTS", "")
    assert get_outputs_root() == working_dir / "outputs"


def test_the_precedence_of_user_folders(working_dir: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a", "b", "c", "conf/model"):
        (working_dir / name).mkdir(parents=True)
    monkeypatch.setenv("KRILL_CONF", os.pathsep.join(["b", "c", "a"]))
    assert find_user_config_dirs(["a"]) == [working_dir / name for name in ("a", "b", "c", "conf")]


def test_conf_counts_only_with_a_group_of_krill(working_dir: Path):
    assert find_user_config_dirs([]) == []
    (working_dir / "conf" / "server").mkdir(parents=True)
    assert find_user_config_dirs([]) == []
    (working_dir / "conf" / "optimizer").mkdir()
    assert find_user_config_dirs([]) == [working_dir / "conf"]


def test_krills_folder_is_not_a_user_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(CONF_DIR.parent)
    assert find_user_config_dirs([str(CONF_DIR)]) == []
    assert find_shadowed_configs([*find_user_config_dirs([]), CONF_DIR]) == []


def test_a_given_folder_must_exist(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="no such configuration folder: none"):
        find_user_config_dirs(["none"])
    monkeypatch.setenv("KRILL_CONF", "nowhere")
    with pytest.raises(UsageError, match="nowhere"):
        find_user_config_dirs([])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("project", "has none of the folders .*; use project/conf "),
        ("project/conf/experiment", "has none of the folders .*; use project/conf "),
        ("project/conf/experiment/mine.yaml", "is a file; name the folder"),
        ("flat", "has none of the folders .*; move its files into such folders"),
    ],
)
def test_a_given_folder_whose_files_would_be_ignored_is_rejected(
    working_dir: Path, name: str, message: str
) -> None:
    for file in ("project/conf/experiment/mine.yaml", "flat/mine.yaml"):
        (working_dir / file).parent.mkdir(parents=True)
        (working_dir / file).touch()
    with pytest.raises(UsageError, match=message):
        find_user_config_dirs([name])
    assert find_user_config_dirs(["project/conf"]) == [working_dir / "project" / "conf"]


def test_the_first_folder_with_a_name_has_precedence(working_dir: Path):
    first, second = working_dir / "first", working_dir / "second"
    for folder in (first, second):
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "both.yaml").touch()
        (folder / "model" / f"{folder.name}.yaml").touch()
        (folder / "model" / "_part.yaml").touch()
        (folder / "model" / ".#both.yaml").symlink_to("user@host.1")
    assert list_config_options("model", [first, second]) == {
        "both": first / "model" / "both.yaml",
        "first": first / "model" / "first.yaml",
        "second": second / "model" / "second.yaml",
    }
    hidden = dict(find_shadowed_configs([first, second]))
    assert hidden[first / "model" / "both.yaml"] == second / "model" / "both.yaml"
    assert first / "model" / "first.yaml" not in hidden


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("# 한 문장\nx: 1\n", "한 문장"),
        ("# @package _global_\n# What it is\nx: 1\n", "What it is"),
        ("x: 1\n# late\n", ""),
        ("", ""),
    ],
)
def test_the_description_is_the_first_comment(working_dir: Path, text: str, description: str):
    (working_dir / "file.yaml").write_text(text, encoding="utf-8")
    assert read_config_description(working_dir / "file.yaml") == description


def test_the_home_of_a_user_who_does_not_exist_is_a_folder_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    assert expand_home("~/b") == Path("/home/a/b")
    assert expand_home("~nosuchuser/b") == Path("~nosuchuser/b")
