"""Names of runs in a configuration become folders once, before anything is computed from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from krill.cli import infer
from krill.cli.argv import parse_arguments
from krill.cli.compose import compose_config, normalize_overrides
from krill.config.schema import InferConfig, TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.launch.run_names import log_choice, resolve_run_names


@pytest.fixture(scope="module")
def train_config() -> TrainConfig:
    words = ["model=pretrained", "model.from=none", "sequence_len=64", "steps=3"]
    return validate_config(TrainConfig, compose_config("train", words))


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run of the name `trunk` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KRILL_OUTPUTS", raising=False)
    log_choice.cache_clear()
    folder = Path("outputs/runs/trunk/1-aaaa1111")
    (folder / "model").mkdir(parents=True)
    (folder / "checkpoints/checkpoint-2").mkdir(parents=True)
    (folder / "model/config.json").write_text("{}")
    status = {
        "state": "finished",
        "signature": "a" * 64,
        "name": "trunk",
        "start": "2030-01-01T00:00:00+00:00",
    }
    (folder / "status.json").write_text(json.dumps(status))
    return str(folder)


@pytest.mark.parametrize("name", ["trunk", "last", "aaaaaaaa", "outputs/runs/*/*", "outputs/runs/trunk"])
def test_each_key_takes_every_name_of_a_run(
    train_config: TrainConfig, run: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "krill")
    model = train_config.model.model_copy(update={"from_": name})
    config = resolve_run_names(
        train_config.model_copy(update={"branch": name, "resume": name, "model": model})
    )
    assert (config.branch, config.resume, config.model.from_) == (run, run, run)  # type: ignore[union-attr]
    assert caplog.messages == [f"branch      {run}", f"resume      {run}", f"model.from  {run}"]


def test_what_is_written_as_a_folder_stays_as_it_is(
    train_config: TrainConfig, run: str, tmp_path: Path
) -> None:
    checkpoint = f"{tmp_path}/{run}/checkpoints/checkpoint-2"
    model = train_config.model.model_copy(update={"from_": f"{run}/model"})
    changes: dict[str, Any] = {"branch": checkpoint, "resume": run, "model": model}
    config = train_config.model_copy(update=changes)
    assert resolve_run_names(config) == config


@pytest.mark.parametrize("mode", ["auto", "local", "remote", True, False])
def test_a_mode_of_resume_is_not_a_name(train_config: TrainConfig, mode: bool | str) -> None:
    model = train_config.model.model_copy(update={"from_": "user/name"})
    config = train_config.model_copy(update={"resume": mode, "model": model})
    assert resolve_run_names(config) == config, "nor is the id of a model on the Hub"


@pytest.mark.parametrize("key", ["branch", "resume", "model.from"])
def test_a_wrong_name_is_reported_with_its_key(train_config: TrainConfig, run: str, key: str) -> None:
    model = train_config.model.model_copy(update={"from_": "trnk" if key == "model.from" else run})
    changes = {"model": model} | ({} if key == "model.from" else {key: "trnk"})
    with pytest.raises(UsageError, match=rf"{key}=trnk: not the name of a run .* Did you mean trunk\?"):
        resolve_run_names(train_config.model_copy(update=changes))


@pytest.mark.parametrize("words", [[], ["model=last"], ["trunk"], ["model=outputs/runs/trunk/*"]])
def test_inference_takes_the_newest_finished_run_and_logs_it(
    run: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["krill-infer", "prompt=가", "dry_run=true", *words])
    assert infer.main() == 0
    captured = capsys.readouterr()
    assert captured.out == f"model       {run}/model\n"
    assert captured.err == f"model       {run}\n"


def test_inference_without_any_run_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "argv", ["krill-infer", "prompt=x"])
    assert infer.main() == 2
    assert "no run in " in (error := capsys.readouterr().err)
    assert "train one with krill-train, or use model=<folder or Hub id>" in error


def test_the_answer_of_a_sweep_belongs_to_the_folder_of_the_model(run: str) -> None:
    config = validate_config(InferConfig, compose_config("infer", ["model.path=last"]))
    assert resolve_run_names(config).model.path == run


@pytest.mark.parametrize("signature", ["12345678", "1e100000"])
def test_a_signature_of_digits_names_its_run_everywhere(
    run: str, signature: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = json.loads(Path(run, "status.json").read_text())
    Path(run, "status.json").write_text(json.dumps(status | {"signature": signature * 8}))
    Path(run, ".hydra").mkdir()
    Path(run, ".hydra/overrides.yaml").write_text("- lr=0.5\n")

    words = parse_arguments([f"resume={signature}", f"branch={signature}"])
    config = validate_config(TrainConfig, compose_config("train", normalize_overrides("train", words)))
    assert (config.resume, config.branch) == (signature, signature)
    resolved = resolve_run_names(config)
    assert (resolved.resume, resolved.branch) == (run, run)
    assert normalize_overrides("train", parse_arguments([f"from={signature}"])) == ["lr=0.5"]
    continued = normalize_overrides("train", parse_arguments([f"continue={signature}", "steps=9"]))
    assert f"branch={run}/checkpoints/checkpoint-2" in continued
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["krill-infer", signature, "prompt=가", "dry_run=true"])
    assert infer.main() == 0
    assert capsys.readouterr().out == f"model       {run}/model\n"


@pytest.mark.parametrize("key", ["resume", "branch"])
def test_numbers_in_yaml_name_a_run_only_if_no_digit_is_lost(key: str) -> None:
    composed = compose_config("train", [f"{key}=12345678"])
    assert getattr(validate_config(TrainConfig, composed), key) == "12345678"
    with pytest.raises(UsageError, match=rf"{key}: 10000000000\.0 is read as a number; put .* in quotes"):
        validate_config(TrainConfig, compose_config("train", [f"{key}=1e10"]))


def test_a_run_is_logged_unless_the_configuration_is_only_printed(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "krill")
    Path(run, ".hydra").mkdir()
    Path(run, ".hydra/overrides.yaml").write_text("- lr=0.5\n")
    for key in ("from", "continue"):
        for flags in (["--cfg", "job"], []):
            assert normalize_overrides("train", parse_arguments([*flags, f"{key}=trunk", "steps=9"]))
            assert caplog.messages == ([] if flags else [f"{key:<11} {run}"])
            caplog.clear()
