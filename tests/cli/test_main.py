"""krill COMMAND and kr COMMAND: one name for all commands, those of the original among them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from console import error_messages, get_clean_environment, run_command, run_words

from krill.cli import main
from krill.cli.main import COMMAND_ALIASES, COMMANDS


def test_the_help_names_every_command(tmp_path: Path):
    done = run_command(tmp_path, "krill", "--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    assert run_command(tmp_path, "krill").stdout == done.stdout == run_command(tmp_path, "kr", "help").stdout


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("train", "train"),
        ("train-tokenizer", "tokenizer"),
        ("inference", "infer"),
        ("preprocess", "preprocess"),
        ("inspect-dataset", "inspect"),
    ],
)
def test_a_name_stands_for_its_command(tmp_path: Path, name: str, command: str):
    assert run_command(tmp_path, "kr", name, "--help").stdout.startswith(f"krill-{command}: ")


def test_arguments_go_to_the_command(tmp_path: Path):
    assert error_messages(run_command(tmp_path, "krill", "train", "lrr=1")) == [
        "no such key 'lrr'. Did you mean lr?"
    ]


def test_the_package_runs_as_a_module(tmp_path: Path):
    words = [sys.executable, "-m", "krill", "train", "lrr=1"]
    assert error_messages(run_words(tmp_path, words, get_clean_environment())) == [
        "no such key 'lrr'. Did you mean lr?"
    ]


def test_the_first_bare_word_of_inference_is_the_model(tmp_path: Path):
    (told,) = error_messages(run_command(tmp_path, "krill", "inference", "outputs/없는 모델", "prompt=가"))
    assert told.startswith("model=outputs/없는 모델: ")


@pytest.mark.parametrize(("typed", "meant"), [("trian", "krill train?"), ("inferense", "krill inference?")])
def test_an_unknown_command_is_told_the_near_one(tmp_path: Path, typed: str, meant: str):
    (told,) = error_messages(run_command(tmp_path, "krill", typed))
    assert f"Did you mean {meant}" in told


def test_control_characters_of_an_unknown_command_are_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["krill", "\x1b[31mred"])
    assert main.main() == 2
    assert "no command '\\x1b[31mred'" in capsys.readouterr().err


@pytest.mark.parametrize("redirection", [">&-", "| true"])
def test_a_help_that_nobody_reads_is_no_error(tmp_path: Path, redirection: str):
    script = Path(sys.executable).with_name("krill")
    done = subprocess.run(
        ["bash", "-c", f"'{script}' --help {redirection}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == ""


def test_a_command_of_no_likeness_gets_the_list(tmp_path: Path):
    (told,) = error_messages(run_command(tmp_path, "krill", "xyzzy"))
    assert "Did you mean" not in told
    assert told.endswith(f"Available: {', '.join((*COMMANDS, *COMMAND_ALIASES))}")


def test_abort_of_a_library_is_reported_with_what_to_lower() -> None:
    """Rust aborts when it cannot allocate memory."""
    program = (
        "import os; from types import SimpleNamespace; from krill.cli import app\n"
        "invocation = SimpleNamespace(command='preprocess', validate=lambda schema: None)\n"
        "app.run_command(invocation, None, lambda *_: os.abort())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "krill-preprocess: error: a library aborted" in done.stderr
    assert "data.workers" in done.stderr
