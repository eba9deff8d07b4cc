"""Tests a run from the command to the model: its folder, its metrics, and what two runs have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from krill.config.schema import TrainConfig
from krill.data.packing import pack, pack_windows
from krill.data.store import Store
from krill.errors import UsageError
from krill.models.build import build_model
from krill.optim.schedules import compute_lr_factor
from krill.runs import checkpoints
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training.batch_shape import BatchShape
from krill.training.batches import RowBatchSampler

MakeConfig = Callable[..., TrainConfig]
TrainIn = Callable[..., Path]
ReadLosses = Callable[[Path], list[float]]
LARGE = "model.initializer_range=0.5"
"""Weights so large that rows have very different losses and attention across documents is measurable."""


# --- the folder --------------------------------------------------------------------------------------------


def test_a_run_writes_the_documented_files(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train("eval_every=2", "keep_checkpoints=2", "save_every=1", "sample_prompt=the quick") == 0
    (folder,) = krill_train.runs()
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", ".hydra", "status.json", "metrics.jsonl", "log.txt", "checkpoints", "model", "loss.png",
        "sample.txt", "optimizer.json", ".lock", "model-manifest.json", ".metrics.jsonl.checksums",
    }  # fmt: skip
    assert {path.name for path in (folder / ".hydra").iterdir()} == {
        "config.yaml", "hydra.yaml", "overrides.yaml",
    }  # fmt: skip
    assert [
        checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(folder / "checkpoints")
    ] == [3, 4]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "sample.txt").read_text().startswith("the quick")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["sequence_len"] == 64
    assert TrainConfig.model_validate(config).lr == 3e-3

    lines = read_metrics(folder)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]

    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["exit"], status["starts"]) == ("finished", 0, 1)
    assert status["end"] >= status["start"]
    assert status["metrics"]["eval_loss"] == lines[-1]["eval_loss"]
    assert status["metrics"]["loss"] == lines[-2]["loss"]
    assert status["metrics"]["uniform"] == pytest.approx(math.log(320))
    assert status["data"]["signature"] == Store.open(Path(status["data"]["folder"])).signature
    assert "sequence_len=64" in status["overrides"]
    assert {"python", "torch", "transformers"} <= status["versions"].keys()
    assert "Traceback" not in (folder / "log.txt").read_text()

    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == f"runs/llama_pico/{folder.name}"
    assert str(krill_train.outputs) not in output.err.split("name        ")[1], "paths are relative"
    assert f"next        krill-infer runs/llama_pico/{folder.name}" in output.err


def test_the_model_loads_with_transformers_and_has_the_same_loss(
    train_in: TrainIn, make_config: MakeConfig, prepared_data: Any
) -> None:
    folder = train_in(make_config("eval_every=2", LARGE, "model=qwen3_pico", "model.rope_theta=5e5"))
    config = json.loads((folder / "model" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert config["vocab_size"] == len(tokenizer) == 320
    assert config["rope_parameters"]["rope_theta"] == 5e5
    ids = [config[f"{role}_token_id"] for role in ("bos", "eos", "pad")]
    assert ids == [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert len(set(ids)) == 3
    assert "varlen" not in json.dumps(config)
    assert config["use_cache"] is True
    assert tokenizer("the").input_ids[0] == tokenizer.bos_token_id

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    nats, tokens = 0.0, 0
    split = Store.open(prepared_data.store).validation
    windows = pack_windows(split, 64)
    for start, length in zip(windows.starts.tolist(), windows.lengths.tolist(), strict=True):
        ids = torch.from_numpy(split.read(start, start + length).astype("int64"))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        nats += F.cross_entropy(logits, ids[1:], reduction="sum").item()
        tokens += length - 1
    status = read_status(folder) or json.loads((folder / "status.json").read_text())
    assert nats / tokens == pytest.approx(status["metrics"]["eval_loss"], rel=1e-5)


def test_validation_does_not_depend_on_the_micro_batch(
    train_in: TrainIn, make_config: MakeConfig, read_losses: ReadLosses
) -> None:
    ones = train_in(make_config(LARGE, "steps=1", "lr=1e-9", "batch.micro_batch_size=1"), "one")
    fives = train_in(make_config(LARGE, "steps=1", "lr=1e-9", "batch.micro_batch_size=5"), "five")
    assert read_losses(ones)[-1] == pytest.approx(read_losses(fives)[-1], rel=1e-6)


def test_a_run_without_validation_text_trains_and_warns(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("data.validation_fraction=0") == 0
    (folder,) = krill_train.runs()
    status = read_status(folder)
    assert status is not None
    assert "eval_loss" not in status["metrics"]
    assert status["metrics"]["loss"] > 0
    assert "raise data.validation_fraction" in capsys.readouterr().err


# --- the computation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["varlen", "sdpa", "eager"])
def test_the_training_loss_isolates_documents(
    backend: str, train_in: TrainIn, make_config: MakeConfig, prepared_data: Any, read_losses: ReadLosses
) -> None:
    config = make_config(
        LARGE, f"hardware.attention={backend}", "batch.micro_batch_size=8", "steps=1", "seed=3"
    )
    folder = train_in(config, backend)

    torch.manual_seed(config.seed)
    model = build_model(
        config.model, 320, *(getattr(prepared_data.tokenizer, f"{role}_id") for role in ("bos", "eos", "pad"))
    )
    rows = pack(Store.open(prepared_data.store).train, 64, "best_fit")
    order = RowBatchSampler(len(rows), config.seed, 1, BatchShape(8, 1), None, lambda: 0)
    nats, tokens, leaking_nats = 0.0, 0, 0.0
    with torch.no_grad():
        for index in next(iter(order)):
            row, start = rows.get_row(index), 0
            full_row = model(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0, :-1]
            leaking_nats += F.cross_entropy(
                full_row, torch.from_numpy(row.labels[1:]), reduction="sum"
            ).item()
            for length in row.lengths.tolist():
                labels = torch.from_numpy(row.labels[start + 1 : start + length])
                if (labels != -100).any():
                    ids = torch.from_numpy(row.input_ids[start : start + length])
                    logits = model(input_ids=ids[None]).logits[0, :-1]
                    nats += F.cross_entropy(logits, labels, reduction="sum").item()
                    tokens += length - 1
                start += length
    assert read_losses(folder)[0] == pytest.approx(nats / tokens, rel=1e-5)
    assert abs(leaking_nats - nats) / tokens > 1e-3  # otherwise the line above proves nothing


def with_sgd(config: TrainConfig, file: Path, max_grad_norm: float = 0.0) -> TrainConfig:
    """Returns `config` with SGD, which unlike Adam does not hide a wrong scale of the gradient."""
    file.write_text(
        "import torch\n\ndef sgd(model, lr, **_):\n    return torch.optim.SGD(model.parameters(), lr)\n"
    )
    values = config.model_dump()
    values["optimizer"] = {
        key: values["optimizer"][key] for key in ("lr", "weight_decay", "betas", "eps")
    } | {
        "name": "custom",
        "build": f"{file}:sgd",
        "options": {},
        "max_grad_norm": max_grad_norm,
        "z_loss": 0.0,
    }
    return TrainConfig.model_validate(values)


def test_micro_batches_change_neither_loss_nor_weights(
    train_in: TrainIn, make_config: MakeConfig, prepared_data: Any, read_losses: ReadLosses, tmp_path: Path
) -> None:
    folders = []
    for micro, accumulation in ((4, 1), (2, 2), (1, 4)):
        config = make_config(
            LARGE, f"batch.micro_batch_size={micro}", f"batch.gradient_accumulation_steps={accumulation}",
            "epochs=1", "lr=0.05",
        )  # fmt: skip
        folders.append(train_in(with_sgd(config, tmp_path / "sgd.py"), f"{micro}x{accumulation}"))
    reference_weights = load_file(folders[0] / "model" / "model.safetensors")
    for folder in folders[1:]:
        assert read_losses(folder) == pytest.approx(read_losses(folders[0]), rel=1e-5)
        for name, weights in load_file(folder / "model" / "model.safetensors").items():
            torch.testing.assert_close(weights, reference_weights[name], rtol=0, atol=1e-5)

    # The last step has empty rows, and rows differ in their number of labels: a mean of means would differ.
    rows = pack(Store.open(prepared_data.store).train, 64, "best_fit")
    assert len(rows) % 4
    assert len({int((rows.get_row(index).labels != -100).sum()) for index in range(len(rows))}) > 3


def test_a_seed_determines_the_losses_bit_for_bit(
    train_in: TrainIn, make_config: MakeConfig, read_losses: ReadLosses
) -> None:
    first, second = (read_losses(train_in(make_config("eval_every=2"), name)) for name in ("first", "second"))
    other = read_losses(train_in(make_config("eval_every=2", "seed=1"), "other"))
    assert first == second
    assert all(loss != other_loss for loss, other_loss in zip(first, other, strict=True))


def test_intervals_of_logging_validation_and_saving_change_no_result(
    train_in: TrainIn, make_config: MakeConfig, read_losses: ReadLosses
) -> None:
    frequent = train_in(make_config("eval_every=1", "save_every=1"), "often")
    infrequent = train_in(
        make_config("eval_every=100", "save_every=100", "log_every=2", "hardware.workers=1"), "seldom"
    )
    assert read_losses(frequent)[-1] == read_losses(infrequent)[-1]
    steps = {line["step"]: line["loss"] for line in read_metrics(frequent) if "loss" in line}
    lines = [line for line in read_metrics(infrequent) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 4]
    mean = (steps[3] + steps[4]) / 2  # since the previous line
    assert lines[2]["loss"] == pytest.approx(mean, rel=1e-6)


def test_bf16_keeps_weights_in_fp32(
    train_in: TrainIn, make_config: MakeConfig, read_losses: ReadLosses
) -> None:
    fp32, folder = (
        train_in(make_config(f"hardware.precision={name}", LARGE, "steps=2"), name)
        for name in ("fp32", "bf16")
    )
    weights = load_file(folder / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert read_losses(folder) != pytest.approx(read_losses(fp32), rel=1e-5)
    assert read_losses(folder) == pytest.approx(read_losses(fp32), rel=0.02)


def test_the_learning_rate_follows_the_schedule(train_in: TrainIn, make_config: MakeConfig) -> None:
    """That is `lr`, whatever multiple of it the first parameter group has."""
    config = make_config("steps=6", "scheduler.warmup=0.4", "optimizer.lr_embeddings=2")
    rates = [line["lr"] for line in read_metrics(train_in(config)) if "lr" in line]
    assert rates == pytest.approx(
        [config.lr * compute_lr_factor(config.scheduler, step, 6) for step in range(6)]
    )
    assert rates[0] < rates[1] > rates[-1]


@pytest.mark.parametrize("max_grad_norm", [0.01, 0.0])
def test_gradients_are_clipped_to_max_grad_norm(
    train_in: TrainIn, make_config: MakeConfig, tmp_path: Path, max_grad_norm: float
) -> None:
    config = with_sgd(
        make_config(LARGE, "steps=2", "save_every=1", "scheduler=constant", "scheduler.warmup=0", "lr=1"),
        tmp_path / "sgd.py",
        max_grad_norm=max_grad_norm,
    )
    folder = train_in(config)
    before, after = (
        load_file(checkpoint / "model.safetensors")
        for checkpoint in checkpoints.list_checkpoints(folder / "checkpoints")
    )
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm().item()
    assert (moved == pytest.approx(0.01, rel=1e-2)) is bool(max_grad_norm)
    assert moved > 0


def test_one_epoch_ends_at_epoch_1(train_in: TrainIn, make_config: MakeConfig) -> None:
    lines = read_metrics(train_in(make_config("epochs=1")))
    assert lines[-1]["epoch"] == 1.0


# --- failures ----------------------------------------------------------------------------------------------


def test_a_diverged_run_fails_with_a_remedy_and_records_it(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("optimizer=adamw", "lr=1e30", "skip_step.max_skips=2") == 1
    (folder,) = krill_train.runs()
    status = read_status(folder)
    assert status is not None
    assert status["state"] == "failed"
    assert status["exit"] == 1
    assert " is nan at step " in status["error"]  # loss or gradients: NaN is not averaged away
    assert "diverged" in status["error"]
    assert "set lr= below 1e+30" in capsys.readouterr().err
    assert not (folder / "model").exists()


def test_a_sample_prompt_that_is_too_long_fails_before_training(
    train_in: TrainIn, make_config: MakeConfig
) -> None:
    prompt = "x" * 64
    with pytest.raises(UsageError, match="sample_prompt has 65 tokens, the model reads at most 64"):
        train_in(make_config(f"sample_prompt={prompt}"), "run")
    train_in(make_config(f"sample_prompt={prompt[:62]}", "steps=1"), "fits")


def test_the_log_has_the_traceback_of_an_error(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raise_error(*_: Any, **__: Any) -> Any:
        raise RuntimeError("build failed")

    monkeypatch.setattr("krill.training.run.build_model", raise_error)
    assert krill_train() == 1
    (folder,) = krill_train.runs()
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: build failed")
    text = (folder / "log.txt").read_text()
    assert "Traceback" in text
    assert "in raise_error" in text
    capsys.readouterr()
