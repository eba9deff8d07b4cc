"""--help: every option with its sentence, every key that it names exists; --cfg job prints YAML that comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from console import is_empty, run_command
from omegaconf import OmegaConf

from krill import __version__
from krill.cli import app, help, key_help, train
from krill.cli.compose import compose_config
from krill.config.commands import COMMAND_SCHEMAS
from krill.config.key_aliases import SHORT_EVALUATION_KEYS
from krill.config.overrides import clear_exclusive_keys, iterate_dotted_keys, quote_override
from krill.config.paths import CONF_DIR, list_config_groups, list_config_options, read_config_description
from krill.config.schema import MinHashConfig, TrainConfig
from krill.config.validation import validate_config


def test_the_help_of_train_describes_every_option():
    text = help.format_help("train", [CONF_DIR])
    for group in list_config_groups():
        for name, file in list_config_options(group, [CONF_DIR]).items():
            assert any(
                line.split() == [name, *read_config_description(file).split()] for line in text.splitlines()
            ), f"{group}={name}"


def test_every_file_begins_with_what_it_is():
    for file in CONF_DIR.rglob("*.yaml"):
        assert read_config_description(file), file


@pytest.mark.parametrize("command", COMMAND_SCHEMAS)
def test_every_command_has_a_help(command: str):
    text = help.format_help(command, [CONF_DIR])
    assert text.startswith(f"krill-{command}: {read_config_description(CONF_DIR / f'{command}.yaml')}")
    assert "…" not in text.splitlines()[0]


@pytest.mark.parametrize("command", COMMAND_SCHEMAS)
def test_the_keys_of_the_help_exist(command: str):
    known = yaml.safe_dump(COMMAND_SCHEMAS[command].model_json_schema())
    for sentence, _ in help.COMMAND_KEYS[command]:
        for part in sentence.split(" or "):
            key = part.partition("=")[0]
            assert all(name in known for name in key.split(".")) or key == "experiment", key


@pytest.mark.parametrize("command", ["train", "plan", "preprocess", "tokenizer", "inspect"])
def test_the_examples_of_the_help_compose(command: str):
    for line in help.COMMAND_EXAMPLES[command]:
        words = [
            word for word in line.split()[1:] if "=" in word and not word.startswith(("from=", "continue="))
        ]
        first = {
            "lr=1e-3,3e-3": "lr=1e-3",
            "model=llama_125m,llama_350m": "model=llama_125m",
            "plan.device=h100,l4": "plan.device=h100",
            "'data.task=range(0,64)'": "data.task=0",
            "model=last": "trained_model=last",
        }  # of the points of a sweep, and as the command rewrites it beside text=
        values = [quote_override(first.get(word, word)) for word in words]
        assert compose_config(command, values)


def test_help_is_printed_by_the_script_also_for_a_persons_own_options(tmp_path: Path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("# @package _global_\n# 내 모델\nmodel: {}\n")
    done = run_command(tmp_path, "krill-train", "lr=1", "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert any(line.split() == ["mine", "내", "모델"] for line in done.stdout.splitlines())


@pytest.mark.parametrize("arguments", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd=mine"]])
def test_the_help_has_the_options_of_a_folder_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "wide.yaml").write_text("# A wide model\n")
    (tmp_path / "mine" / "model" / ".#wide.yaml").symlink_to("user@host.1")  # Emacs has the file open
    monkeypatch.chdir(tmp_path)
    assert app.main("train", train.run_task, [*arguments, "--help"]) == 0
    assert any(
        line.split() == ["wide", "A", "wide", "model"] for line in capsys.readouterr().out.splitlines()
    )


def test_the_help_of_a_key_is_its_sentence(capsys: pytest.CaptureFixture[str]):
    assert app.main("train", train.run_task, ["--help", "optimizer.muon_lr"]) == 0
    assert capsys.readouterr().out.startswith("optimizer.muon_lr  Learning rate of the matrices")
    assert app.main("train", train.run_task, ["lr=1", "-h", "data.minhash"]) == 0
    keys = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert keys == [
        "data.minhash",
        *(f"data.minhash.{name}" for name in MinHashConfig.model_fields),
        "values:",
    ]


def test_the_help_of_an_unknown_key_names_what_to_set(capsys: pytest.CaptureFixture[str]):
    for argument, answer in (
        ("learning_rate", "Use lr=…"),
        ("optimizer.muon_lrr", "mean optimizer.muon_lr?"),
    ):
        assert app.main("train", train.run_task, ["--help", argument]) == 2
        assert answer in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMAND_SCHEMAS)
def test_every_key_has_a_help(command: str):
    for key in iterate_dotted_keys(OmegaConf.to_container(compose_config(command, []))):
        assert key_help.format_key_help(command, key).startswith(key)


def test_version(tmp_path: Path):
    assert run_command(tmp_path, "krill-train", "--version").stdout == f"krill {__version__}\n"


@pytest.mark.parametrize(
    "words", [(), ("model=tiny_ko", "name=한국어", "epochs=2"), ("experiment=qwen_micro_1k",)]
)
def test_cfg_job_prints_nothing_but_yaml_that_validates_again(tmp_path: Path, words: tuple[str, ...]):
    done = run_command(tmp_path, "krill-train", *words, "--cfg", "job", "--resolve")
    assert done.returncode == 0
    assert done.stderr == ""
    values = yaml.safe_load(done.stdout)
    assert set(values) == set(TrainConfig.model_fields)
    again = TrainConfig.model_validate(values)
    assert again == validate_config(
        TrainConfig, compose_config("train", [*clear_exclusive_keys([*map(quote_override, words)])])
    )
    assert is_empty(tmp_path)


@pytest.mark.parametrize("command", COMMAND_SCHEMAS)
def test_cfg_job_of_every_command(tmp_path: Path, command: str):
    done = run_command(tmp_path, f"krill-{command}", "--cfg", "job")
    assert done.returncode == 0
    assert set(yaml.safe_load(done.stdout)) == set(COMMAND_SCHEMAS[command].model_fields)


def test_short_keys_have_the_help_of_their_keys() -> None:
    for key, full_key in SHORT_EVALUATION_KEYS.items():
        assert key_help.format_key_help("evaluate", key) == key_help.format_key_help("evaluate", full_key)


def test_the_usage_names_what_is_given_without_a_key() -> None:
    assert "usage: krill-evaluate [MODEL …] [key=value …]" in help.format_help("evaluate", [CONF_DIR])
    assert "usage: krill-train [key=value …]" in help.format_help("train", [CONF_DIR])
