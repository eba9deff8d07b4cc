"""A run from the command to the model: its folder, its figures, what two runs have in common."""

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
from krill.runs.record import read_metrics, read_status
from krill.training.batch_shape import BatchShape
from krill.training.batches import RowBatchSampler

Configure = Callable[..., TrainConfig]
Train = Callable[..., Path]
Losses = Callable[[Path], list[float]]
LARGE = "model.initializer_range=0.5"
"""Weights so large that rows have very different losses, and a leak shows."""


# --- the folder --------------------------------------------------------------------------------------------


def test_a_run_writes_the_folder_of_the_design(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train("eval_every=2", "keep_checkpoints=2", "save_every=1", "sample_prompt=the quick") == 0
    (folder,) = krill_train.runs()
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", ".hydra", "status.json", "metrics.jsonl", "log.txt", "checkpoints", "model", "loss.png",
        "sample.txt", "optimizer.json", ".lock",
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

    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"runs/llama_pico/{folder.name}"
    assert (
        str(krill_train.outputs) not in shown.err.split("name        ")[1]
    )  # paths are as short as typed here
    assert f"next        krill-infer runs/llama_pico/{folder.name}" in shown.err


def test_the_model_loads_with_transformers_and_scores_the_same(
    train_in: Train, make_config: Configure, prepared_data: Any
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
    held = pack_windows(split, 64)
    for start, length in zip(held.starts.tolist(), held.lengths.tolist(), strict=True):  # each alone
        piece = torch.from_numpy(split.read(start, start + length).astype("int64"))
        with torch.no_grad():
            logits = model(input_ids=piece[None]).logits[0, :-1]
        nats += F.cross_entropy(logits, piece[1:], reduction="sum").item()
        tokens += length - 1
    status = read_status(folder) or json.loads((folder / "status.json").read_text())
    assert nats / tokens == pytest.approx(status["metrics"]["eval_loss"], rel=1e-5)


def test_validation_does_not_depend_on_the_micro_batch(
    train_in: Train, make_config: Configure, read_losses: Losses
) -> None:
    one = train_in(make_config(LARGE, "steps=1", "lr=1e-9", "batch.micro_batch_size=1"), "one")
    five = train_in(make_config(LARGE, "steps=1", "lr=1e-9", "batch.micro_batch_size=5"), "five")
    assert read_losses(one)[-1] == pytest.approx(read_losses(five)[-1], rel=1e-6)


def test_without_validation_text_it_trains_and_says_so(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("data.validation_fraction=0") == 0
    (folder,) = krill_train.runs()
    status = read_status(folder)
    assert status is not None
    assert "eval_loss" not in status["metrics"]
    assert status["metrics"]["loss"] > 0
    assert "raise data.validation_fraction" in capsys.readouterr().err


# --- what is computed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["varlen", "sdpa", "eager"])
def test_the_trained_loss_is_of_documents_alone(
    backend: str, train_in: Train, make_config: Configure, prepared_data: Any, read_losses: Losses
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
    nats, tokens, leaking = 0.0, 0, 0.0
    with torch.no_grad():
        for index in next(iter(order)):
            row, start = rows.get_row(index), 0
            whole = model(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0, :-1]
            leaking += F.cross_entropy(whole, torch.from_numpy(row.labels[1:]), reduction="sum").item()
            for length in row.lengths.tolist():
                labels = torch.from_numpy(row.labels[start + 1 : start + length])
                if (labels != -100).any():
                    ids = torch.from_numpy(row.input_ids[start : start + length])
                    logits = model(input_ids=ids[None]).logits[0, :-1]
                    nats += F.cross_entropy(logits, labels, reduction="sum").item()
                    tokens += length - 1
                start += length
    assert read_losses(folder)[0] == pytest.approx(nats / tokens, rel=1e-5)
    assert abs(leaking - nats) / tokens > 1e-3  # else the line above shows nothing


def plain_gradient_descent(config: TrainConfig, file: Path, max_grad_norm: float = 0.0) -> TrainConfig:
    """`config` with an optimizer that, unlike Adam, does not undo a wrong scale of the gradient."""
    file.write_text(
        "import torch\n\ndef sgd(model, lr, **_):\n    return torch.optim.SGD(model.parameters(), lr)\n"
    )
    values = config.model_dump()
    values["optimizer"] = {
        key: values["optimizer"][key] for key in ("lr", "weight_decay", "betas", "eps")
    } | {"name": "custom", "build_model": f"{file}:sgd", "options": {}, "max_grad_norm": max_grad_norm}
    return TrainConfig.model_validate(values)


def test_the_split_of_a_batch_changes_neither_loss_nor_weights(
    train_in: Train, make_config: Configure, prepared_data: Any, read_losses: Losses, tmp_path: Path
) -> None:
    folders = []
    for micro, accumulation in ((4, 1), (2, 2), (1, 4)):
        config = make_config(
            LARGE, f"batch.micro_batch_size={micro}", f"batch.gradient_accumulation_steps={accumulation}",
            "epochs=1", "lr=0.05",
        )  # fmt: skip
        folders.append(
            train_in(plain_gradient_descent(config, tmp_path / "sgd.py"), f"{micro}x{accumulation}")
        )
    whole = load_file(folders[0] / "model" / "model.safetensors")
    for folder in folders[1:]:
        assert read_losses(folder) == pytest.approx(read_losses(folders[0]), rel=1e-5)
        for name, weights in load_file(folder / "model" / "model.safetensors").items():
            torch.testing.assert_close(weights, whole[name], rtol=0, atol=1e-5)

    # The last step, which empty rows fill up, and rows of unlike numbers of labels: a mean of means would differ.
    rows = pack(Store.open(prepared_data.store).train, 64, "best_fit")
    assert len(rows) % 4
    assert len({int((rows.get_row(index).labels != -100).sum()) for index in range(len(rows))}) > 3


def test_same_seed_same_losses_to_the_bit_another_seed_others(
    train_in: Train, make_config: Configure, read_losses: Losses
) -> None:
    first, second = (read_losses(train_in(make_config("eval_every=2"), name)) for name in ("first", "second"))
    other = read_losses(train_in(make_config("eval_every=2", "seed=1"), "other"))
    assert first == second
    assert all(mine != its for mine, its in zip(first, other, strict=True))


def test_seeing_less_often_changes_nothing(
    train_in: Train, make_config: Configure, read_losses: Losses
) -> None:
    often = train_in(make_config("eval_every=1", "save_every=1"), "often")
    seldom = train_in(
        make_config("eval_every=100", "save_every=100", "log_every=2", "hardware.workers=1"), "seldom"
    )
    assert read_losses(often)[-1] == read_losses(seldom)[-1]
    steps = {line["step"]: line["loss"] for line in read_metrics(often) if "loss" in line}
    lines = [line for line in read_metrics(seldom) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 4]
    assert lines[2]["loss"] == pytest.approx(
        (steps[3] + steps[4]) / 2, rel=1e-6
    )  # the mean since the line before


def test_in_bf16_the_weights_stay_fp32(train_in: Train, make_config: Configure, read_losses: Losses) -> None:
    plain, folder = (
        train_in(make_config(f"hardware.precision={name}", LARGE, "steps=2"), name)
        for name in ("fp32", "bf16")
    )
    weights = load_file(folder / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert read_losses(folder) != pytest.approx(read_losses(plain), rel=1e-5)
    assert read_losses(folder) == pytest.approx(read_losses(plain), rel=0.02)


def test_the_rate_follows_the_schedule_of_this_run(train_in: Train, make_config: Configure) -> None:
    config = make_config("steps=6", "scheduler.warmup=0.4")
    rates = [line["lr"] for line in read_metrics(train_in(config)) if "lr" in line]
    assert rates == pytest.approx(
        [config.lr * compute_lr_factor(config.scheduler, step, 6) for step in range(6)]
    )
    assert rates[0] < rates[1] > rates[-1]


@pytest.mark.parametrize("norm", [0.01, 0.0])
def test_gradients_are_clipped_to_the_norm(
    train_in: Train, make_config: Configure, tmp_path: Path, norm: float
) -> None:
    config = plain_gradient_descent(
        make_config(LARGE, "steps=2", "save_every=1", "scheduler=constant", "scheduler.warmup=0", "lr=1"),
        tmp_path / "sgd.py",
        max_grad_norm=norm,
    )
    folder = train_in(config)
    before, after = (
        load_file(place / "model.safetensors")
        for place in checkpoints.list_checkpoints(folder / "checkpoints")
    )
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm().item()
    assert (moved == pytest.approx(0.01, rel=1e-2)) is bool(norm)
    assert moved > 0


def test_one_epoch_counts_as_one(train_in: Train, make_config: Configure) -> None:
    lines = read_metrics(train_in(make_config("epochs=1")))
    assert lines[-1]["epoch"] == 1.0


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_a_diverged_run_fails_with_the_remedy_and_a_true_status(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("optimizer=adamw", "lr=1e30", "skip_step.max_skips=2") == 1
    (folder,) = krill_train.runs()
    status = read_status(folder)
    assert status is not None
    assert status["state"] == "failed"
    assert status["exit"] == 1
    assert " is nan at step " in status["error"]  # of loss or gradients: NaN is not averaged away
    assert "diverged" in status["error"]
    assert "lower lr=1e+30" in capsys.readouterr().err
    assert not (folder / "model").exists()


def test_a_sample_prompt_that_is_too_long_fails_before_training(
    train_in: Train, make_config: Configure
) -> None:
    prompt = "x" * 64
    with pytest.raises(UsageError, match="sample_prompt has 65 tokens, the model reads 64"):
        train_in(make_config(f"sample_prompt={prompt}"), "run")
    train_in(make_config(f"sample_prompt={prompt[:62]}", "steps=1"), "fits")


def test_an_error_leaves_its_traceback_in_the_log(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("krill.training.run.build_model", broken)
    assert krill_train() == 1
    (folder,) = krill_train.runs()
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: no such luck")
    text = (folder / "log.txt").read_text()
    assert "Traceback" in text
    assert "in broken" in text
    capsys.readouterr()
