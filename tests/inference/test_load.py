"""Models are loaded from a run, a model folder, a checkpoint or the Hub; errors are clear."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from faults import flip_bit
from safetensors.torch import load_file, save_file

from krill.config.signature import hash_file
from krill.errors import KrillError, UsageError
from krill.inference.load import load_model, locate_model
from krill.models import model_folder as model_folder_module
from krill.models.model_folder import verify_model
from krill.models.pretrained import hash_model
from krill.runs.checkpoints import write_checkpoint_manifest
from krill.tokenizer.artifact import TokenizerFolder
from krill.training.checkpoint.export import write_model_manifest


@pytest.fixture
def finished_run(tmp_path: Path, model_folder: Path) -> Path:
    run = tmp_path / "finished"
    shutil.copytree(model_folder, run / "model")
    return run


@pytest.fixture
def unfinished_run(tmp_path: Path, model_folder: Path, tokenizer: TokenizerFolder) -> Path:
    """A run with two checkpoints, which have no tokenizer."""
    run = tmp_path / "unfinished"
    for step in (9, 10):
        checkpoint = run / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(model_folder / name, checkpoint)
    status = {"state": "running", "signature": "a", "tokenizer": {"folder": str(tokenizer.folder)}}
    (run / "status.json").write_text(json.dumps(status))
    return run


def test_a_model_folder(model_folder: Path) -> None:
    assert locate_model(str(model_folder)) == (model_folder, model_folder)


def test_a_finished_run(finished_run: Path, unfinished_run: Path) -> None:
    assert locate_model(str(finished_run)) == (finished_run / "model", finished_run / "model")
    shutil.copytree(unfinished_run / "checkpoints", finished_run / "checkpoints")
    assert locate_model(str(finished_run))[0] == finished_run / "model"


def test_a_finished_model_without_its_config_is_not_replaced_by_a_checkpoint(
    unfinished_run: Path, model_folder: Path
) -> None:
    shutil.copytree(model_folder, unfinished_run / "model")
    write_model_manifest(unfinished_run / "model", unfinished_run)
    (unfinished_run / "model" / "config.json").unlink()
    with pytest.raises(UsageError, match=r"config\.json is missing; restore it"):
        load_model(str(unfinished_run), torch.device("cpu"))


def test_an_unfinished_run_gives_its_newest_checkpoint(
    unfinished_run: Path, tokenizer: TokenizerFolder
) -> None:
    assert locate_model(str(unfinished_run)) == (
        unfinished_run / "checkpoints" / "checkpoint-10",
        tokenizer.folder,
    )


def test_the_tokenizer_in_a_checkpoint_needs_no_status(
    unfinished_run: Path, tokenizer: TokenizerFolder
) -> None:
    checkpoint = unfinished_run / "checkpoints" / "checkpoint-10"
    shutil.copytree(tokenizer.folder, checkpoint, dirs_exist_ok=True)
    (unfinished_run / "status.json").write_text("{")
    assert locate_model(str(unfinished_run)) == (checkpoint, checkpoint)


def test_weights_are_hashed_once_unless_they_are_written_in_between(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = finished_run / "model"
    write_model_manifest(model, finished_run)
    hashed: list[str] = []
    monkeypatch.setattr(
        model_folder_module, "hash_file", lambda path: hashed.append(path.name) or hash_file(path)
    )
    verify_model(model, "model=run")
    assert "model.safetensors" in hashed, "written just now: its time of change proves nothing"
    monkeypatch.setattr(model_folder_module, "MIN_FILE_AGE_NS", -(10**9))
    hashed.clear()
    digests = hash_model(str(model))
    verify_model(model, "model=run")
    assert digests == [hash_file(model / name) for name in ("config.json", "model.safetensors")]
    assert sorted(hashed) == sorted(set(hashed))
    os.utime(model / "model.safetensors", (5, 5))
    verify_model(model, "model=run")
    assert hashed.count("model.safetensors") == 2


def test_a_checkpoint_by_name(
    unfinished_run: Path, tokenizer: TokenizerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = unfinished_run / "checkpoints" / "checkpoint-9"
    assert locate_model(str(checkpoint)) == (checkpoint, tokenizer.folder)
    monkeypatch.chdir(checkpoint.parent)
    assert locate_model("checkpoint-9") == (Path("checkpoint-9"), tokenizer.folder)


def test_a_folder_may_look_like_a_glob(finished_run: Path) -> None:
    odd = finished_run.rename(finished_run.with_name("[odd]"))
    assert locate_model(str(odd))[0] == odd / "model"


def test_a_tilde_is_the_home_folder(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(finished_run.parent))
    assert locate_model("~/finished")[0] == finished_run / "model"


def test_a_path_without_a_model_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (
        ("empty", "no model in this folder"),
        ("file", "no model in this folder"),
        ("a/b/c", "no such folder, and not a Hub id"),
        ("none", "no such folder, and not a Hub id"),
        ("./none/x", "no such folder, and not a Hub id"),
    ):
        with pytest.raises(UsageError, match=message):
            locate_model(name if name in ("a/b/c", "none", "./none/x") else str(tmp_path / name))


def test_a_model_without_a_tokenizer_is_rejected(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "x" / "y" / "m")
    (tmp_path / "x" / "y" / "m" / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        load_model(str(tmp_path / "x" / "y" / "m"), torch.device("cpu"))


def test_the_error_for_an_invalid_config_is_one_line(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="transformers cannot load") as error:
        load_model(str(tmp_path / "m"), torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_truncated_weights_are_rejected(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UsageError, match="transformers cannot load"):
        load_model(str(tmp_path / "m"), torch.device("cpu"))


def test_missing_weights_are_rejected(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UsageError, match=r"lacks 1 weights, the first of them model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load_model(str(tmp_path / "m"), torch.device("cpu"))


def test_damaged_weights_of_a_run_are_named(finished_run: Path, unfinished_run: Path) -> None:
    write_model_manifest(finished_run / "model", finished_run)
    write_checkpoint_manifest(unfinished_run / "checkpoints" / "checkpoint-10")
    for run, weights in (
        (finished_run, "model/model.safetensors"),
        (unfinished_run, "checkpoints/checkpoint-10/model.safetensors"),
    ):
        load_model(str(run), torch.device("cpu"))
        flip_bit(run / weights)
        with pytest.raises(UsageError, match=f"{weights} was changed since it was saved") as error:
            load_model(str(run), torch.device("cpu"))
        assert "\n" not in str(error.value)
    (finished_run / "model-manifest.json").unlink()  # as in a folder that krill did not write
    load_model(str(finished_run), torch.device("cpu"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        (
            {"num_hidden_layers": 10**8},
            "num_hidden_layers is 100,000,000, but the weights have only 21 tensors",
        ),
        ({"vocab_size": 10**11}, "parameters, but the weights have"),
        ({"head_dim": 0}, "cannot be raised"),
        ({"dtype": "none"}, "no attribute"),
        ({"num_key_value_heads": 4}, "shapes of the weights"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    values: dict[str, Any], reason: str, tmp_path: Path, model_folder: Path
) -> None:
    config = shutil.copytree(model_folder, tmp_path / "m") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(UsageError, match=f"transformers cannot load .*{reason}") as error:
        load_model(str(tmp_path / "m"), torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_code_in_a_model_folder_never_runs(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers' question on a terminal
    config = shutil.copytree(model_folder, tmp_path / "m") / "config.json"
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"auto_map": auto_map, "model_type": "evil"})
    )
    with pytest.raises(UsageError, match="Python code from that folder, which krill does not run"):
        load_model(str(tmp_path / "m"), torch.device("cpu"))
    shutil.copy(model_folder / "config.json", config)
    (tmp_path / "m" / "model.safetensors").unlink()
    payload = pickle.dumps(subprocess.Popen) + bytes(10**6)
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(payload)
    with pytest.raises(UsageError, match=r"pytorch_model\.bin is not safetensors; save the model again"):
        load_model(str(tmp_path / "m"), torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(KrillError, match="model=me/mine: not a folder, not in the Hub's cache, and") as error:
        locate_model("me/mine")
    assert error.value.exit_code == 1


def test_an_invalid_hub_id_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="neither a folder nor a model on the Hugging Face Hub"):
        locate_model("not ok/at all!")


def test_a_loaded_model_is_ready_to_generate(
    model_folder: Path, model: Any, tokenizer: TokenizerFolder
) -> None:
    loaded = load_model(str(model_folder), torch.device("cpu"))
    assert not loaded.model.training
    assert loaded.tokenizer.vocab_size == tokenizer.vocab_size
    ids = torch.tensor([[0, 70, 71]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16), ("tf32", torch.float32)]
)
def test_the_precision_is_that_of_the_configuration(
    model_folder: Path, precision: str, dtype: torch.dtype
) -> None:
    loaded = load_model(str(model_folder), torch.device("cpu"), precision=precision)
    assert next(loaded.model.parameters()).dtype == dtype


def test_fp8_is_for_training(model_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"fp8 is for training; use hardware\.precision=bf16"):
        load_model(str(model_folder), torch.device("cpu"), precision="fp8")


def test_another_tokenizer_can_be_used(
    model_folder: Path, tokenizer: TokenizerFolder, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"no tokenizer\.json in the folder of the model; set tokenizer="):
        load_model(str(bare), torch.device("cpu"))
    assert (
        load_model(str(bare), torch.device("cpu"), str(tokenizer.folder)).tokenizer.folder == tokenizer.folder
    )
