"""A custom model, optimizer and data source: one Python file and one YAML each, in the user's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from console import CompletedCommand, error_messages, run_command

from krill.cli import app, train
from krill.cli.compose import compose_config
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.data.inputs import RunInputs
from krill.launch import identity

FILES = {
    "my_model.py": '''
from transformers import GPT2Config, GPT2LMHeadModel


def build(vocab_size, max_position_embeddings, width, **ids):
    sizes = {"n_positions": max_position_embeddings, "n_embd": width, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes, **ids))
''',
    "conf/model/mine.yaml": """# @package _global_
# A small GPT-2
sequence_len: 64
model:
  name: mine
  family: custom
  build: my_model.py:build
  max_position_embeddings: ${sequence_len}
  options: {width: 16}
""",
    "my_optimizer.py": '''
import torch


def build(model, lr, weight_decay, alpha, **_):
    return torch.optim.RMSprop(model.parameters(), lr=lr, weight_decay=weight_decay, alpha=alpha)
''',
    "conf/optimizer/mine.yaml": """# @package _global_
# RMSprop
defaults:
  - _adamw@optimizer
  - _self_
lr: 2.0e-04
optimizer:
  name: custom
  build: my_optimizer.py:build
  options: {alpha: 0.9}
""",
    "my_data.py": '''
def read(count):
    for index in range(count):
        yield f"문서 {index}: " + " ".join(f"word{(index * step) % 97}" for step in range(1, 60))
''',
    "conf/data/mine.yaml": """# Made-up sentences
defaults:
  - _rules
  - _self_
name: mine
source: custom
read: my_data.py:read
options: {count: 300}
validation_fraction: 0.1
""",
}  # fmt: skip
CHOICE = ("model=mine", "optimizer=mine", "data=mine")
SMALL = (*CHOICE, "tokenizer.vocab_size=350", "batch.micro_batch_size=2", "steps=2", "device=cpu")


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    """A working directory with the files of a user."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.lstrip("\n"), encoding="utf-8")
    return tmp_path


def read_status(folder: Path) -> dict[str, object]:
    return json.loads((folder / "status.json").read_text(encoding="utf-8"))


def get_run_folder(done: CompletedCommand, working_dir: Path) -> Path:
    """Returns the folder that a successful krill-train printed."""
    assert done.returncode == 0, done.stderr
    return working_dir / done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_custom_components_train_and_their_code_is_part_of_the_signature(working_dir: Path):
    first = get_run_folder(run_command(working_dir, "krill-train", *SMALL), working_dir)
    assert read_status(first)["state"] == "finished"
    config = json.loads((first / "model" / "config.json").read_text())
    assert (config["architectures"], config["n_embd"], config["vocab_size"]) == (["GPT2LMHeadModel"], 16, 350)
    stores = list((working_dir / "outputs" / "data").glob("mine-*"))
    assert len(stores) == 1

    printed = run_command(working_dir, "krill-train", f"from={first}", "steps=9", "--cfg", "job")
    config = yaml.safe_load(printed.stdout)
    assert (config["steps"], config["model"]["name"], config["batch"]["micro_batch_size"]) == (9, "mine", 2)

    (working_dir / "my_optimizer.py").write_text(FILES["my_optimizer.py"] + "# changed\n")
    second = get_run_folder(run_command(working_dir, "krill-train", *SMALL), working_dir)
    assert read_status(second)["signature"] != read_status(first)["signature"]
    assert list((working_dir / "outputs" / "data").glob("mine-*")) == stores


@pytest.mark.parametrize("name", ["my_model.py", "my_optimizer.py", "my_data.py"])
def test_each_file_changes_the_signature(working_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(working_dir)
    before = compute_run_signature(working_dir)
    assert compute_run_signature(working_dir) == before
    (working_dir / name).write_text(FILES[name] + "# changed\n", encoding="utf-8")
    assert compute_run_signature(working_dir) != before


def compute_run_signature(working_dir: Path) -> str:
    """Returns the signature of the run as a new process computes it."""
    for module in [name for name in sys.modules if name.startswith("krill_custom_")]:
        del sys.modules[module]
    config = validate_config(TrainConfig, compose_config("train", CHOICE, [working_dir / "conf"]))
    return identity.compute_identity("train", config, RunInputs.open(config))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.build=gone.py:build", "gone.py: no such file"),
        ("model.build=my_model.py:bild", "my_model.py has no function 'bild'"),
        ("optimizer.build=gone.py:build", "gone.py: no such file"),
        ("optimizer.build=my_optimizer.py", "use file.py:function"),
        ("data.read=gone.py:read", "gone.py: no such file"),
        ("data.read=no_such_module:read", "no module 'no_such_module'"),
    ],
)
def test_missing_code_is_a_usage_error(
    working_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
):
    monkeypatch.chdir(working_dir)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert app.main("train", train.run_task, [*SMALL, override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("krill-train: error: ")
    assert message in line
    assert not (working_dir / "outputs").exists()


def test_a_dry_run_loads_custom_code_and_does_not_know_its_memory(
    working_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(working_dir)
    monkeypatch.setattr(sys, "argv", sys.argv)
    arguments = ["model=llama_pico", "sequence_len=64", "optimizer=mine", "dry_run=true"]
    (working_dir / "broken.py").write_text("def build(:\n")
    assert app.main("train", train.run_task, [*arguments, "optimizer.build=broken.py:build"]) == 2
    assert capsys.readouterr().err == (
        "krill-train: error: broken.py:1: cannot be imported: SyntaxError: invalid syntax\n"
    )
    assert app.main("train", train.run_task, [*arguments, "optimizer.build=my_optimizer.py:nope"]) == 2
    assert "my_optimizer.py has no function 'nope'" in capsys.readouterr().err
    assert app.main("train", train.run_task, arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("optimizer unknown" in line for line in lines if line.startswith("memory"))
    assert any("with the state of AdamW" in line for line in lines if line.startswith("disk"))


def test_a_preset_that_needs_a_hidden_size_reports_it(working_dir: Path):
    messages = error_messages(run_command(working_dir, "krill-train", "model=mine", "optimizer=muon_keller"))
    assert messages == [
        "optimizer.muon_lr: the model has no hidden_size to derive it from at optimizer.scale=spectral; set "
        "optimizer.muon_lr and optimizer.muon_weight_decay, or use optimizer=muon_krill"
    ]


def test_options_reach_the_function(
    working_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(working_dir)
    monkeypatch.setattr(sys, "argv", sys.argv)
    parameters = []
    for width in ("16", "32"):
        assert (
            app.main("train", train.run_task, [*SMALL, f"model.options.width={width}", "dry_run=true"]) == 0
        )
        parameters.append(int(capsys.readouterr().out.split("mine: ")[1].split()[0].replace(",", "")))
    assert parameters[1] > 1.9 * parameters[0]
