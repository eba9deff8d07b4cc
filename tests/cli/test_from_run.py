"""from=<run> repeats a run with changes: all that was typed then, less its place, then what is typed now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from console import error_messages, run_command
from omegaconf import OmegaConf

from krill.checksum import write_checksummed_text
from krill.cli.argv import parse_arguments
from krill.cli.compose import compose_config, normalize_overrides
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.training.checkpoint.branch import resolve_branch

THEN = [
    "model=llama_pico", "optimizer=adamw", "lr=0.002", "steps=7", "epochs=null", "name='한국 어'", "output=there",
    "resume=false", "dry_run=false", "data=files", "data.paths=['말뭉치/가.jsonl','b c.jsonl']",
    r"sample_prompt='옛날, \'왕\' = \${x}'",
]  # fmt: skip


def earlier(folder: Path, overrides: list[str]) -> Path:
    """A run's folder, as far as from= reads it."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(overrides)))
    return folder


def again(run_folder: Path, *words: str) -> TrainConfig:
    return validate_config(
        TrainConfig,
        compose_config(
            "train", normalize_overrides("train", parse_arguments([f"from={run_folder}", *words]))
        ),
    )


@pytest.fixture
def then(tmp_path: Path) -> Path:
    return earlier(tmp_path / "지난 run", THEN)


def test_what_was_typed_is_repeated(then: Path):
    config = again(then)
    assert (config.model.name, config.optimizer.name, config.lr) == ("llama_pico", "adamw", 0.002)
    assert (config.steps, config.epochs, config.name) == (7, None, "한국 어")
    assert config.sample_prompt == "옛날, '왕' = ${x}"
    assert config.data.model_dump()["paths"] == ["말뭉치/가.jsonl", "b c.jsonl"]


def test_damaged_overrides_are_an_error(then: Path):
    file = then / ".hydra" / "overrides.yaml"
    write_checksummed_text(file, file.read_text())
    assert again(then).lr == 0.002
    file.write_bytes(file.read_bytes().replace(b"lr=0.002", b"lr=0.006"))
    with pytest.raises(UsageError, match=r"overrides\.yaml is damaged"):
        again(then)


def test_continue_names_a_damaged_status(tmp_path: Path):
    (tmp_path / "run" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / "status.json").write_text("{")
    with pytest.raises(UsageError, match=r"continue=.*: status\.json of .* is damaged"):
        normalize_overrides("train", parse_arguments([f"continue={tmp_path / 'run'}", "steps=9"]))
    with pytest.raises(UsageError, match=r"branch=.*: status\.json of .* is damaged"):
        resolve_branch(str(tmp_path / "run" / "checkpoints" / "checkpoint-2"))


def test_its_place_is_not(then: Path):
    config = again(then)
    assert (config.output, config.resume, config.dry_run) == (None, "auto", False)


def test_a_group_chosen_anew_takes_its_details_with_it(tmp_path: Path):
    run_folder = earlier(tmp_path / "run", ["optimizer=muon_keller", "optimizer.momentum=0.9", "seed=3"])
    assert again(run_folder).optimizer.model_dump()["momentum"] == 0.9
    assert again(run_folder, "optimizer=muon_pto").optimizer.model_dump()["momentum"] == 0.95
    assert again(run_folder, "optimizer=adamw").seed == 3


def test_what_is_typed_now_wins(then: Path):
    config = again(
        then, "optimizer=muon_keller", "lr=1e-4", "output=here", "name=새 이름", "data=python_docs"
    )
    assert (config.optimizer.name, config.lr, config.output) == ("muon_keller", 1e-4, "here")
    assert config.name == "새 이름"


@pytest.mark.parametrize(
    ("typed_then", "typed_now", "left"),
    [
        (["steps=7", "epochs=null"], "epochs=2", {"steps": None, "epochs": 2}),
        (["epochs=2", "steps=null"], "steps=7", {"steps": 7, "epochs": None}),
        (
            ["batch.tokens=512", "batch.gradient_accumulation_steps=null"],
            "batch.gradient_accumulation_steps=2",
            {"tokens": None, "gradient_accumulation_steps": 2},
        ),
        (
            ["batch.gradient_accumulation_steps=2", "batch.tokens=null"],
            "batch.tokens=512",
            {"tokens": 512, "gradient_accumulation_steps": None},
        ),
    ],
)
def test_the_other_key_of_a_pair_is_cleared(
    tmp_path: Path, typed_then: list[str], typed_now: str, left: dict[str, int | None]
):
    config = again(earlier(tmp_path / "run", typed_then), typed_now)
    found = config.model_dump() | config.batch.model_dump()
    assert {key: found[key] for key in left} == left


def test_an_experiment_can_be_left_out(tmp_path: Path):
    run_folder = earlier(tmp_path / "run", ["experiment=tiny_ko", "seed=3"])
    assert again(run_folder).model.name == "tiny_ko"
    assert again(run_folder, "experiment=null").model.name == "llama_nano"
    assert again(run_folder, "experiment=null").seed == 3


def test_no_run_there(tmp_path: Path):
    with pytest.raises(UsageError, match=r"from=.*: no run, and no configuration in it"):
        again(tmp_path)


def test_a_name_means_the_newest_run_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    for day, name in ((2, "1-aaaa1111"), (1, "2-bbbb2222")):
        run_folder = earlier(tmp_path / "outputs" / "runs" / "ko" / name, [f"seed={day}"])
        status = {
            "state": "stopped",
            "signature": "a",
            "name": "ko",
            "start": f"2030-01-0{day}T00:00:00+00:00",
        }
        (run_folder / "status.json").write_text(json.dumps(status))
    caplog.set_level("INFO", "krill")
    parsed = parse_arguments(["from=ko", "lr=1e-4"])
    assert normalize_overrides("train", parsed) == ["seed=2", "lr=1e-4"]
    assert caplog.messages == ["from        outputs/runs/ko/1-aaaa1111"]


def test_the_command_takes_it(tmp_path: Path, then: Path):
    done = run_command(
        tmp_path, "krill-train", f"from={then.name}", "seed=5", "data=python_docs", "--cfg", "job"
    )
    assert done.returncode == 0, done.stderr
    values = yaml.safe_load(done.stdout)
    assert (values["seed"], values["lr"], values["data"]["source"]) == (5, 0.002, "python_docs")


def test_inference_has_no_from(tmp_path: Path, then: Path):
    assert error_messages(run_command(tmp_path, "krill-infer", f"from={then.name}")) == [
        f"from= is for training; use model={then.name}"
    ]


def test_masked_secrets_are_asked_for_again(tmp_path: Path):
    run_folder = earlier(
        tmp_path / "run", ["data=files", "+hydra.job.env_set.HF_TOKEN='***'", "data.paths=[a.txt]"]
    )
    arguments = parse_arguments([f"from={run_folder}"])
    with pytest.raises(UsageError, match=r"set again: hydra.job.env_set.HF_TOKEN=…"):
        normalize_overrides("train", arguments)


def test_lr_and_lr_scale_replace_each_other(tmp_path: Path):
    scaled, absolute = earlier(tmp_path / "a", ["lr_scale=0.5"]), earlier(tmp_path / "b", ["lr=0.002"])
    assert (again(scaled).lr_scale, again(scaled, "lr=1e-3").lr_scale) == (0.5, 1.0)
    assert again(scaled, "lr=1e-3").lr == 1e-3
    assert again(absolute, "lr_scale=2").lr == 2 * again(tmp_path / "b", "lr_scale=1").lr != 0.004
