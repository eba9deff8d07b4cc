"""A mistake in a user's YAML file is an error with its file and line that names the fix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from krill.cli import app
from krill.config.paths import CONF_DIR
from krill.config.schema import TrainConfig
from krill.config.yaml_files import check_config_file
from krill.errors import UsageError
from krill.launch.invocation import Invocation

HEADER = "# @package _global_\n"

MISTAKES = {
    "no package": ("# mine\nlr: 1.0e-3\n", 1, "must be # @package _global_"),
    "package below another comment": (f"# mine\n{HEADER}lr: 1.0e-3\n", 1, "must be # @package _global_"),
    "another package": ("# @package _globl_\nlr: 1\n", 1, "section '_globl_'"),
    "no value of the package": ("# @package\nlr: 1\n", 1, "use # @package _global_"),
    "empty": ("", 1, "must be # @package _global_"),
    "no override": (f"{HEADER}defaults:\n  - /optimizer: adamw\n", 3, "use - override /optimizer: adamw"),
    "no slash": (f"{HEADER}defaults:\n  - override model: auto\n", 3, "use - override /model: auto"),
    "no override and no slash": (f"{HEADER}defaults:\n  - model: auto\n", 3, "use - override /model: auto"),
    "no colon": (f"{HEADER}defaults:\n  - override /model auto\n", 3, "write it as in"),
    "unknown option": (f"{HEADER}defaults:\n  - override /model: llama_pixo\n", 3, "Did you mean llama_pico?"),
    "unknown base": (f"{HEADER}defaults: [tiny_kk]\n", 2, "Did you mean tiny_ko?"),
    "unknown group": (f"{HEADER}defaults:\n  - override /modle: llama_pico\n", 3, "Did you mean model?"),
    "defaults is a mapping": (f"{HEADER}defaults:\n  override /model: auto\n", 3, "is a list"),
    "defaults is text": (f"{HEADER}defaults: auto\n", 2, "is a list"),
    "an option as a value": (f"{HEADER}lr: 1\nmodel: auto\n", 3, "- override /model: auto"),
    "a list as a section": (f"{HEADER}data: [a.jsonl]\n", 2, "data: is a section"),
    "hydra.run.dir": (f"{HEADER}hydra:\n  run:\n    dir: mine\n", 4, "output=…"),
    "open bracket": (f"{HEADER}lr: [1\nseed: 3\n", 3, "close the list with ]"),
    "tab": (f"{HEADER}batch:\n\ttokens: 512\n", 3, "not with tabs"),
    "indentation": (f"{HEADER}batch:\n   tokens: 512\n  x: 2\n", 4, "indent the lines of a section equally"),
    "duplicate": (f"{HEADER}lr: 1\nlr: 2\n", 3, "duplicate key lr; write it once"),
    "a list": (f"{HEADER}- a\n- b\n", 2, "the file is a list"),
    "text": (f"{HEADER}lr\n", 2, "the file is text"),
    "two documents": (f"{HEADER}---\nlr: 1\n---\nlr: 2\n", 4, "leave the line --- out"),
    "tag": (f"{HEADER}lr: !!python/name:os.system x\n", 2, "quote a value that begins with !"),
    "alias": (f"{HEADER}lr: *base\n", 2, "quote a value that begins with *"),
    "odd key": (f"{HEADER}? [a]\n: 3\n", 2, "a key is a name"),
    "colon": (f"{HEADER}name: a: b\n", 2, "quote a value that contains ': '"),
    "open interpolation": (f"{HEADER}lr: ${{seed\n", 2, "${seed"),
    "control character": (f"{HEADER}name: a\x00\n", 2, "remove the control character"),
    "Latin-1": (f"{HEADER}name: café\n".encode("latin-1"), 2, "save it as UTF-8"),
    "UTF-16": (f"{HEADER}lr: 1\n".encode("utf-16"), 1, "save it as UTF-8"),
    "BOM": (f"{HEADER}lr: 1\n".encode("utf-8-sig"), 1, "without a BOM"),
}  # fmt: skip
"""Mistake → an experiment, the line of the mistake and a part of the message."""


def write_file(conf: Path, content: str | bytes, name: str = "experiment/mine") -> Path:
    file = conf / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def find_errors(tmp_path: Path, content: str | bytes, name: str = "experiment/mine") -> list[str]:
    file = write_file(tmp_path / "conf", content, name)
    try:
        check_config_file(file, name.rpartition("/")[0], [tmp_path / "conf", CONF_DIR])
    except UsageError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str):
    monkeypatch.chdir(tmp_path)
    content, line, fix = MISTAKES[mistake]
    (error,) = find_errors(tmp_path, content)
    assert error.startswith(f"conf/experiment/mine.yaml:{line}: ")
    assert fix in error


def test_all_mistakes_of_a_file_are_reported(tmp_path: Path):
    content = "defaults:\n  - /model: llama_pixo\n  - override data: files\noptimizer: adamw\n"
    assert len(find_errors(tmp_path, HEADER + content)) == 3


@pytest.mark.parametrize(
    "file", sorted(CONF_DIR.rglob("*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}"
)
def test_krills_own_files_have_no_mistake(file: Path):
    folder = str(file.parent.relative_to(CONF_DIR))
    check_config_file(file, "" if folder == "." else folder, [CONF_DIR])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("experiment/mine", f"{HEADER}defaults: [tiny_ko, _self_]\n"),
        (
            "experiment/mine",
            f"{HEADER}defaults:\n  - optional local: x\n  - override /hydra/launcher: pool\n",
        ),
        ("experiment/_base", "lr: 1.0e-3\n"),
        ("model/mine", f"{HEADER}defaults:\n  - /model/llama_pico@_global_\n"),
        ("data/mine", "# mine\ndefaults: [files, _self_]\nname: ${tokenizer.name}\n"),
        ("hardware/_site", "# empty\n"),
        ("train", "defaults:\n  - model: auto\n"),
    ],
)
def test_valid_files(tmp_path: Path, name: str, content: str):
    assert find_errors(tmp_path, content, name) == []


@pytest.fixture
def validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """validate("lr=1"): the errors of krill-train in `tmp_path`, which only validates."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)

    def run_task(invocation: Invocation) -> None:
        invocation.validate(TrainConfig)

    def run(*arguments: str) -> list[str]:
        code = app.main("train", run_task, arguments)
        errors = capsys.readouterr().err.splitlines()
        assert code == (2 if errors else 0)
        return [error.removeprefix("krill-train: error: ") for error in errors]

    return run


def test_unknown_keys_and_values_have_a_line_unless_they_are_overridden(tmp_path: Path, validate: Any):
    write_file(tmp_path / "conf", f"{HEADER}lrr: 1\nseed: soon\nmodel:\n  hiden: 3\nsteps: many\n")
    errors = validate("experiment=mine", "steps=few")
    assert sorted(error.partition(": ")[0] for error in errors) == [
        "conf/experiment/mine.yaml:2", "conf/experiment/mine.yaml:3", "conf/experiment/mine.yaml:5", "steps=few"
    ]  # fmt: skip


def test_a_file_of_data_without_defaults_names_the_base(tmp_path: Path, validate: Any):
    write_file(tmp_path / "conf", "# mine\nname: mine\nsource: files\npaths: [a.jsonl]\n", "data/mine")
    (error,) = validate("data=mine")
    assert error.startswith("conf/data/mine.yaml: data.normalize and 13 other keys are not set")
    assert "defaults: [files, _self_]" in error
    write_file(tmp_path / "conf", "defaults: [files, _self_]\nname: mine\npaths: [a.jsonl]\n", "data/mine")
    assert validate("data=mine") == []


@pytest.mark.parametrize(
    ("option", "content", "key", "base"),
    [
        ("data", "paths: [a.jsonl]\n", "data.source", "files"),
        ("optimizer", "weight_decay: 3\n", "optimizer.name", "adamw"),
        ("scheduler", "warmup: 0.1\n", "scheduler.name", "cosine"),
    ],
)
def test_a_file_without_its_kind_names_the_base(
    tmp_path: Path, validate: Any, option: str, content: str, key: str, base: str
):
    write_file(tmp_path / "conf", content, f"{option}/mine")
    (error,) = [error for error in validate(f"{option}=mine") if option in error]
    assert error.startswith(f"conf/{option}/mine.yaml: {key} ")
    assert f"defaults: [{base}, _self_]" in error


def test_a_key_that_is_a_number_is_an_error(tmp_path: Path, validate: Any):
    write_file(tmp_path / "conf", f"{HEADER}3: ???\n")
    assert validate("experiment=mine")


def test_a_mistake_in_a_file_ends_the_command_before_anything_is_made(tmp_path: Path, validate: Any):
    write_file(tmp_path / "conf", f"{HEADER}lr: [1\n")
    (error,) = validate("experiment=mine")
    assert error.startswith("conf/experiment/mine.yaml:")
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]
