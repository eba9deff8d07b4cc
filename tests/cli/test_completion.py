"""Completion in a shell: commands, subcommands of krill-runs and names of runs, besides what Hydra completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from krill.cli import main as umbrella
from krill.cli import runs, train
from krill.cli.completion import list_run_names, prepare_query
from krill.errors import DONE, USAGE

COMPLETE = """
PATH={scripts}:$PATH
eval "$(krill -sc install=bash)"
eval "$(krill-runs -sc install=bash)"
complete_line() {{
    COMP_LINE=$1 COMP_POINT=${{#1}} COMP_WORDS=($1)
    COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
    [[ $1 == *' ' ]] && COMP_CWORD=${{#COMP_WORDS[@]}}
    hydra_bash_completion
    echo "$1: ${{COMPREPLY[@]}}"
}}
complete_line 'krill tr'
complete_line 'krill train optimizer=muon_k'
complete_line 'krill-runs show '
"""


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the folders of some runs and a sweep in outputs/."""
    for name in (
        "runs/llama_nano/2026-01-01_00-00-00-5018b806", "runs/나무/2026-01-01_00-00-00-10000000",
        "runs/$(touch executed)/2026-01-01_00-00-00-2", "runs/a b/2026-01-01_00-00-00-3", "sweeps/grid/abcdef01",
    ):  # fmt: skip
        (tmp_path / "outputs" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/bin/krill", "-sc", "query=bash"])
    return tmp_path


def test_bash_completes_commands_options_and_runs(outputs: Path) -> None:
    script = COMPLETE.format(scripts=Path(sys.executable).parent)
    done = subprocess.run(["bash", "-c", script], cwd=outputs, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "krill tr: train train-tokenizer",
        "krill train optimizer=muon_k: optimizer=muon_keller optimizer=muon_krill",
        "krill-runs show : grid last llama_nano 나무",
    ], done.stderr
    assert not (outputs / "executed").exists()


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("kr in", "inspect infer inspect-dataset inference"),
        ("krill runs ca", "cancel"),
        ("krill runs list --state fi", "finished"),
        ("krill runs compare grid 50", "5018b806"),
        ("krill nothing ", ""),
    ],
)
def test_krill_completes_what_its_commands_complete(
    outputs: Path,
    line: str,
    choices: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert umbrella.main() == DONE
    assert capsys.readouterr().out.split() == choices.split()


def test_names_that_a_shell_would_execute_are_left_out(outputs: Path) -> None:
    assert list_run_names("") == ["grid", "last", "llama_nano", "나무"]
    assert list_run_names("1") == ["10000000"]
    assert list_run_names("abc") == ["abcdef01"]


@pytest.mark.parametrize(
    ("line", "positional_key", "printed", "rest"),
    [
        ("krill-infer ", "model", "grid last llama_nano 나무", "krill "),
        ("krill-infer lla", "model", "llama_nano", "krill lla"),
        ("krill-infer grid device=cpu pro", "model", "", "krill device=cpu pro"),
        ("krill-inspect a", "data", "", "krill a"),
        ("krill-train from=g", None, "from=grid", "krill-train from=g"),
        ("krill-train lr=1 opt", None, "", "krill-train lr=1 opt"),
    ],
)
def test_runs_are_completed_where_hydra_knows_none(
    outputs: Path, line: str, positional_key: str | None, printed: str, rest: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COMP_LINE", line)
    prepare_query(positional_key)
    assert capsys.readouterr().out.split() == printed.split()
    assert os.environ["COMP_LINE"] == rest


def test_another_shell_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry_point, name in (
        (runs.main, "krill-runs"),
        (umbrella.main, "krill"),
        (train.main, "krill-train"),
    ):
        monkeypatch.setattr(sys, "argv", [f"/bin/{name}", "-sc", "install=ksh"])
        assert entry_point() == USAGE
        expected = f"{name}: error: use {name} -sc install=SHELL, where SHELL is one of bash, fish, zsh"
        assert capsys.readouterr().err.strip() == expected
