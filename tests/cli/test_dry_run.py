"""dry_run=true prints what would be done and writes nothing; a header names what differs from the experiment."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from console import is_empty, run_command

from krill.cli import app, train

Plan = Callable[..., dict[str, str]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """plan("lr=1", …): what krill-train would do, the first word of a line → the rest of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)

    def told(*words: str) -> dict[str, str]:
        assert app.main("train", train.run_task, [*words, "dry_run=true"]) == 0
        assert is_empty(tmp_path)
        lines = capsys.readouterr().out.splitlines()
        return {name: rest.strip() for name, _, rest in (line.partition(" ") for line in lines)}

    return told


def test_a_model_of_an_experiment_names_what_differs_from_it(plan: Plan):
    lines = plan("model=tiny_ko", "optimizer=muon_keller", "filters=web")
    assert lines["name"] == "tiny_ko"
    assert lines["model"].startswith("tiny_ko: ")
    assert "python_docs" in lines["tokens"]
    assert "bpe_4k" in lines["tokenizer"]
    assert "rows of 8192" in lines["batch"]
    differs = lines["differs"]
    assert differs.startswith("from experiment=tiny_ko: ")
    for part in (
        "data.name=python_docs (tiny_ko)",
        "tokenizer.vocab_size=4096 (32000)",
        "optimizer.name=muon_keller (muon_moonlight)",
        "lr=0.0039 (0.001)",
        "epochs=None (1.0)",
    ):
        assert part in differs


def test_what_an_option_has_not_differs_too(plan: Plan):
    assert "scheduler.min_ratio=None (0.0)" in plan("model=tiny_ko", "scheduler=constant")["differs"]


def test_a_model_that_is_no_experiment_differs_from_nothing(plan: Plan):
    assert "differs" not in plan("model=llama_nano")


def test_a_dry_run_says_that_it_did_not_look_at_the_hub(plan: Plan):
    assert "hub" not in plan("model=llama_pico", "hub.id=me/mine")
    required = plan("model=llama_pico", "hub.id=me/mine", "resume=remote")["hub"]
    assert required.startswith("not read; the run would resume from the checkpoint in me/mine if it is newer")
    assert required.endswith("and fail without one")
    assert "fail" not in plan("model=llama_pico", "hub.id=me/mine", "hub.checkpoints=true")["hub"]


@pytest.mark.slow
def test_every_point_of_a_sweep_is_printed(tmp_path: Path):
    """glob(*) takes the options of a group and not the parts they are made of."""
    done = run_command(tmp_path, "krill-train", "-m", "optimizer=glob(*)", "dry_run=true")
    assert done.returncode == 0, done.stderr
    names = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("optimizer")]
    assert names == ["adamw,", "muon_keller,", "muon_krill,", "muon_moonlight,", "muon_pto,"]
    assert is_empty(tmp_path)


def test_a_sweep_names_the_folders_of_its_points_and_their_total_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    small = ["model=llama_pico", "sequence_len=64", "steps=2", "device=cpu"]
    assert app.main("train", train.run_task, ["-m", *small, "seed=0,1", "output=mine", "dry_run=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folders = {line.split()[1] for line in lines if line.startswith("folder")}
    assert len(folders) == 2
    assert {str(Path(folder).parent) for folder in folders} == {"mine"}
    assert lines[-1].startswith("total       2 points: about ")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]


def test_preprocess_and_tokenizer_say_what_they_would_make(tmp_path: Path):
    for command, line, lines in (
        ("krill-preprocess", "tokens      prepare ", 5),
        ("krill-tokenizer", "tokenizer   train ", 1),
    ):
        done = run_command(tmp_path, command, "dry_run=true")
        assert done.stdout.startswith(f"{line}outputs/"), done.stderr
        assert len(done.stdout.splitlines()) == lines
        assert is_empty(tmp_path)


def test_a_trial_shows_what_each_rule_would_drop(tmp_path: Path):
    texts = [
        "short",
        "buy now " * 200,
        "A sentence that says something and is long enough to be kept by its length.",
    ]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*texts, texts[2]])
    )
    done = run_command(
        tmp_path, "krill-preprocess", "dry_run=true", "data=files", "data.paths=[a.jsonl]", "data.min_chars=20",
        "data.filters=[{name: length, max_chars: 1000}]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, *table = done.stdout.splitlines()[1:]
    assert head == "sample      4 documents of 1 of 1 parts: 1 kept"
    rows = {line[2:30].strip(): re.split(r"\s{2,}", line[30:].strip()) for line in table[1:]}
    assert rows["min_chars"] == ["1", "25.00 %", "0.00", "a.jsonl:1 'short'"]
    assert rows["length: too long"][:2] == rows["duplicate"][:2] == ["1", "25.00 %"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]
