"""The user's configurations in --config-dir, KRILL_CONF and ./conf: which takes precedence, which files it hides."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from console import CompletedCommand, error_messages, run_command
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from krill.cli import app

MODEL = """# @package _global_
# {sentence}
defaults:
  - /model/llama_pico@_global_
  - _self_
sequence_len: {length}
"""


def write_model(conf: Path, name: str, length: int, group: str = "model") -> Path:
    """Writes a model option: one of krill's with another sequence length."""
    (conf / group).mkdir(parents=True, exist_ok=True)
    file = conf / group / f"{name}.yaml"
    file.write_text(MODEL.format(sentence=f"길이 {length}", length=length), encoding="utf-8")
    return file


def get_sequence_len(done: CompletedCommand) -> int:
    """Returns the sequence length of a printed configuration."""
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["sequence_len"]


def print_config(cwd: Path, *overrides: str, **environment: str) -> CompletedCommand:
    return run_command(cwd, "krill-train", *overrides, "--cfg", "job", **environment)


def test_options_of_each_folder(tmp_path: Path):
    write_model(tmp_path / "a", "mine", 40)
    write_model(tmp_path / "b", "yours", 48)
    write_model(tmp_path / "conf", "ours", 56)
    environment = {"KRILL_CONF": str(tmp_path / "b")}
    assert get_sequence_len(print_config(tmp_path, "model=mine", "--config-dir", "a", **environment)) == 40
    assert get_sequence_len(print_config(tmp_path, "--config-dir=a", "model=yours", **environment)) == 48
    assert get_sequence_len(print_config(tmp_path, "model=ours", "--config-dir", "a", **environment)) == 56


def test_precedence_of_folders_and_the_report_of_hidden_files(tmp_path: Path):
    """--config-dir precedes KRILL_CONF (in its order), which precedes ./conf, which precedes krill's own."""
    files = [
        write_model(tmp_path / name, "llama_pico2", size) for name, size in (("a", 40), ("b", 48), ("c", 56))
    ]
    local = write_model(tmp_path / "conf", "llama_pico2", 64)
    environment = {"KRILL_CONF": os.pathsep.join(str(tmp_path / name) for name in ("b", "c"))}

    done = print_config(tmp_path, "model=llama_pico2", "--config-dir", "a", **environment)
    assert get_sequence_len(done) == 40
    hidden = [line.partition(" hides ")[2] for line in done.stderr.splitlines()]
    assert hidden == [str(file) for file in (*files[1:], local)]
    assert all(line.startswith(f"conf        {files[0]} hides ") for line in done.stderr.splitlines())
    assert get_sequence_len(print_config(tmp_path, "model=llama_pico2", **environment)) == 48
    assert get_sequence_len(print_config(tmp_path, "model=llama_pico2")) == 64


def test_replacing_an_option_of_krill_is_reported(tmp_path: Path):
    file = write_model(tmp_path / "conf", "llama_nano", 72)
    file.write_text(file.read_text().replace("llama_pico", "llama_micro"))
    done = print_config(tmp_path)
    assert get_sequence_len(done) == 72
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"conf        {file} hides ")
    assert line.endswith(os.path.join("model", "llama_nano.yaml"))


def test_the_conf_folder_of_another_tool_is_ignored(tmp_path: Path):
    (tmp_path / "conf" / "server").mkdir(parents=True)
    (tmp_path / "conf" / "train.yaml").write_text("anything: else\n")
    done = print_config(tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "anything" not in yaml.safe_load(done.stdout)


def test_an_experiment_of_the_user(tmp_path: Path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "실험.yaml").write_text(
        "# @package _global_\n# 내 실험\ndefaults:\n  - override /model: tiny_ko\nlr: 5.0e-4\nseed: 7\n"
    )
    values = yaml.safe_load(print_config(tmp_path, "experiment=실험", "seed=8").stdout)
    assert (values["model"]["name"], values["lr"], values["seed"]) == ("tiny_ko", 5e-4, 8)


def test_options_of_the_user_are_suggested(tmp_path: Path):
    write_model(tmp_path / "mine", "my_llama", 40)
    (message,) = error_messages(run_command(tmp_path, "krill-train", "model=my_lama", "--config-dir", "mine"))
    assert "Did you mean model=my_llama?" in message


@pytest.mark.parametrize("way", ["--config-dir", "KRILL_CONF"])
def test_a_missing_folder_is_an_error(tmp_path: Path, way: str):
    words, environment = (
        (["--config-dir", "none"], {}) if way == "--config-dir" else ([], {"KRILL_CONF": "none"})
    )
    (message,) = error_messages(run_command(tmp_path, "krill-train", *words, **environment))
    assert message.startswith("no such configuration folder: none")


def test_completion_offers_options_of_the_user(tmp_path: Path):
    write_model(tmp_path / "conf", "내것", 40)
    done = run_command(tmp_path, "krill-train", "-sc", "query=bash", COMP_LINE="krill-train model=내")
    assert done.stdout.strip() == "model=내것"


SWEEP = """# @package _global_
# Two learning rates
hydra:
  mode: MULTIRUN
  sweeper:
    params: {lr: "1e-3,3e-3"}
"""


def test_a_file_can_make_a_command_a_sweep(tmp_path: Path):
    """As Hydra does: hydra.mode, which is otherwise not composed for."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "rates.yaml").write_text(SWEEP)
    done = run_command(
        tmp_path, "krill-train", "experiment=rates", "model=llama_pico", "steps=2", "dry_run=true"
    )
    assert done.returncode == 0, done.stderr
    assert "2 points" in done.stdout


def test_a_command_composes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    composed = []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "load_configuration",
        lambda *args, **kwargs: composed.append(1) or load(*args, **kwargs),
    )
    assert app.main("tokenizer", lambda *_: 0, ["tokenizer.vocab_size=300"]) == 0
    assert len(composed) == 1
