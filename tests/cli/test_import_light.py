"""Help, --cfg, --info, completion and what refuses a command line load no torch; completion lists the options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from console import run_command

HEAVY = ("torch", "transformers", "datasets", "accelerate")
CALL = """
import importlib, sys
command, sys.argv = sys.argv[1], sys.argv[1:]
try:
    importlib.import_module(f"krill.cli.{command}").main()
finally:
    print("loaded:", *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


def loaded(cwd: Path, command: str, *words: str, **environment: str) -> set[str]:
    """The packages that a command has loaded at its end."""
    call = [sys.executable, "-c", CALL, command, *words]
    done = subprocess.run(
        call, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )
    *_, last = done.stderr.splitlines()
    assert last.startswith("loaded:"), done.stderr
    assert "krill" in last.split()
    return set(last.split())


@pytest.mark.parametrize(
    "command",
    ["train", "plan", "preprocess", "tokenizer", "inspect", "infer", "evaluate", "serve", "export", "runs"],
)
def test_help_loads_neither_torch_nor_hydra(tmp_path: Path, command: str):
    unneeded = (*HEAVY, "ctypes", "hydra", "omegaconf", "pydantic", *(["yaml"] if command != "runs" else []))
    assert not loaded(tmp_path, command, "--help").intersection(unneeded)


@pytest.mark.parametrize(
    "words", [["list"], ["watch"], ["show", "outputs/runs/a"], ["compare", "outputs/runs/a"]]
)
def test_what_looks_at_runs_loads_neither_torch_nor_the_schema(tmp_path: Path, words: list[str]):
    for name in ("1", "2"):
        run_folder = tmp_path / "outputs/runs/a" / name
        run_folder.mkdir(parents=True)
        (run_folder / "status.json").write_text('{"state": "finished", "signature": "a"}')
    assert not loaded(tmp_path, "runs", *words).intersection((*HEAVY, "hydra", "pydantic", "omegaconf"))


def test_the_help_of_krill_loads_nothing(tmp_path: Path):
    assert not loaded(tmp_path, "main", "--help").intersection((*HEAVY, "hydra", "pydantic"))


@pytest.mark.parametrize(
    "words",
    [
        "--cfg job",
        "--cfg job --resolve model=tiny_ko optimizer=muon_keller",
        "--info defaults-tree",
        "lr=fast",
        "data=files data.paths=[nothere.txt]",
        "-m lr=1e-3,fast",
    ],
)
def test_what_only_composes_loads_no_torch(tmp_path: Path, words: str):
    assert not loaded(tmp_path, "train", *words.split()).intersection(HEAVY)


def test_a_dry_run_of_a_preset_loads_no_transformers(tmp_path: Path):
    """A dry run of thousands of points needs little memory."""
    assert not loaded(tmp_path, "train", "dry_run=true").intersection({*HEAVY, "pyarrow"} - {"torch"})


def test_completion_loads_no_torch(tmp_path: Path):
    line = {"COMP_LINE": "krill-train optimizer="}
    assert not loaded(tmp_path, "train", "-sc", "query=bash", **line).intersection(HEAVY)


def test_completion_of_runs_loads_no_hydra(tmp_path: Path):
    for command, line in (("runs", "krill-runs show "), ("main", "krill runs show ")):
        packages = loaded(tmp_path, command, "-sc", "query=bash", COMP_LINE=line)
        assert not packages.intersection((*HEAVY, "hydra", "pydantic", "omegaconf"))


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        (
            "krill-train optimizer=",
            "optimizer=adamw optimizer=muon_keller optimizer=muon_krill optimizer=muon_moonlight optimizer=muon_pto",
        ),
        ("krill-train hardware=c", "hardware=cpu"),
        ("krill-train model=tiny_ko batch.mic", "batch.micro_batch_size="),
        ("krill-train name=한 opt", ""),
    ],
)
def test_completion_lists_options_and_no_parts_of_them(tmp_path: Path, line: str, choices: str):
    done = run_command(tmp_path, "krill-train", "-sc", "query=bash", COMP_LINE=line)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, choices, "")
