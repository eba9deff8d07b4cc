"""Several ranks train as one process does: same losses, same files, one folder; and none of them outlives the run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trainings import TWO_RANKS, assert_same_result

from krill.runs import checkpoints
from krill.runs.record import read_metrics, read_status

COMMAND = Path(sys.executable).with_name("krill-train")
pytestmark = pytest.mark.slow


def losses(run: Path) -> dict[tuple[int, str], float]:
    """(step, figure) → value of the losses and norms of a run."""
    kept = ("loss", "grad_norm", "eval_loss", "eval_bits_per_byte")
    return {
        (line["step"], key): value
        for line in read_metrics(run)
        for key, value in line.items()
        if key in kept or key.startswith("eval_loss/")
    }


def started(krill_train: Any, *words: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [str(COMMAND), *krill_train.overrides, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Until a run in `folder` has written the line of `step`."""
    until = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(folder)):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < until
        time.sleep(0.02)


def ranks_of(folder: Path) -> list[int]:
    """Processes that train in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"krill.launch.rank" in words and str(folder).encode() in words:
            found.append(int(process.name))
    return found


def assert_gone(folder: Path) -> None:
    until = time.monotonic() + 10
    while ranks_of(folder):
        assert time.monotonic() < until, "a rank has outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "muon_keller"])
def test_the_split_of_a_step_does_not_change_the_losses(
    optimizer: str, krill_train: Any, texts: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"".join(texts.read_bytes().splitlines(keepends=True)[::3]).replace(b"fox", b"wolf"))
    words = (
        f"data.paths=[{texts},{other}]", f"optimizer={optimizer}", "steps=20", "eval_every=10", "save_every=100",
    )  # fmt: skip
    splits = {
        "one": ("batch.micro_batch_size=8",),
        "accumulated": ("batch.micro_batch_size=4", "batch.gradient_accumulation_steps=2"),
        "ranks": TWO_RANKS,
    }
    found = {}
    for name, split in splits.items():
        assert krill_train(*words, *split, f"output={name}") == 0
        found[name] = losses(tmp_path / name)
    assert len([step for step, key in found["one"] if key == "loss"]) == 20
    assert any("eval_loss/" in key for _, key in found["one"])
    for name in ("accumulated", "ranks"):
        assert found[name] == pytest.approx(found["one"], rel=1e-5), name
    for status in map(read_status, (tmp_path / "one", tmp_path / "ranks")):
        assert status is not None
        assert status["rows_per_step"] == 8


def test_stopped_with_two_ranks_it_ends_with_the_same_bytes(krill_train: Any) -> None:
    words = (*TWO_RANKS, "steps=8", "eval_every=4", "save_every=3")
    assert krill_train(*words, "output=whole") == 0
    whole, stopped, killed = (krill_train.outputs / name for name in ("whole", "stopped", "killed"))
    for folder, number, code in ((stopped, signal.SIGTERM, 75), (killed, signal.SIGKILL, -9)):
        process = started(krill_train, *words, f"output={folder.name}")
        wait_for_step(folder, 4, process)
        process.send_signal(number)
        assert process.wait(60) == code
        assert_gone(folder)
        assert not (folder / "model").exists()
        assert krill_train(*words, f"output={folder.name}") == 0
        assert_same_result(folder, whole)
    assert (read_status(stopped) or {})["starts"] == 2


def test_sharded_it_has_the_same_losses_and_goes_on_with_the_same_bytes(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("steps=8", "eval_every=4", "save_every=3")
    whole, sharded, stopped = (krill_train.outputs / name for name in ("whole", "sharded", "stopped"))
    assert krill_train(*words, "batch.micro_batch_size=8", "output=whole") == 0
    words = (*words, *TWO_RANKS, "hardware.sharding=fsdp2")
    assert krill_train(*words, "output=sharded") == 0
    found = {key: value for key, value in losses(sharded).items() if key[1] != "grad_norm"}
    expected = losses(whole)
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-5)
    assert not (checkpoints.list_checkpoints(sharded / "checkpoints")[-1] / "model.safetensors").exists()

    process = started(krill_train, *words, "output=stopped")
    wait_for_step(stopped, 4, process)
    process.terminate()
    assert process.wait(60) == 75
    capsys.readouterr()
    assert krill_train(*words, "hardware.sharding=none", "output=stopped") == 2
    assert "is sharded: resume with hardware.sharding=fsdp2" in capsys.readouterr().err
    assert krill_train(*words, "output=stopped") == 0
    for name in ("model/model.safetensors", "sample.txt"):
        assert (stopped / name).read_bytes() == (sharded / name).read_bytes()
    assert losses(stopped) == losses(sharded)


def test_a_run_goes_on_with_another_number_of_ranks(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("steps=8", "eval_every=4", "save_every=3")
    assert krill_train(*words, "batch.micro_batch_size=8", "output=whole") == 0
    process = started(krill_train, *words, *TWO_RANKS, "output=moved")
    moved = krill_train.outputs / "moved"
    wait_for_step(moved, 4, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert_gone(moved)
    step = checkpoints.parse_step(checkpoints.list_checkpoints(moved / "checkpoints")[-1])
    assert 4 <= step < 8

    capsys.readouterr()
    assert krill_train(*words, "batch.micro_batch_size=8", "output=moved") == 0
    told = capsys.readouterr().err
    assert "changed     hardware.processes=1 (was 2)" in told
    assert "but for rounding" in told
    assert losses(moved) == pytest.approx(losses(krill_train.outputs / "whole"), rel=1e-5)


FAULTY = """
import os, torch

def build(model, lr, rank, **options):
    if os.environ["RANK"] == str(rank):
        raise ValueError("no optimizer today")
    return torch.optim.AdamW(model.parameters(), lr=lr)
"""
OPTION = """# @package _global_
# Fails on one rank
defaults:
  - _adamw@optimizer
  - _self_
lr: 1.0e-03
optimizer:
  name: custom
  build: faulty.py:build
  options: {rank: 0}
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_is_named_with_its_error(
    rank: int, krill_train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "faulty.yaml").write_text(OPTION)
    words = ("--config-dir=conf", "optimizer=faulty", f"optimizer.options.rank={rank}", "output=faulty")
    code = krill_train(*TWO_RANKS, *words)
    told = capsys.readouterr().err
    assert code == 1, told
    assert "ValueError: no optimizer today" in told
    assert ("rank 1: ValueError" in told) == (rank == 1)
    status = read_status(tmp_path / "faulty") or {}
    assert status["state"] == "failed"
    assert "no optimizer today" in status["error"]
    assert_gone(tmp_path / "faulty")


def test_torchrun_starts_ranks_of_one_run(krill_train: Any, tmp_path: Path) -> None:
    words = ("batch.micro_batch_size=4", "steps=4", "eval_every=2", "output=torchrun")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--no-python",
        str(COMMAND),
    ]
    done = subprocess.run(
        [*command, *krill_train.overrides, *words], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["torchrun"], "one of them speaks"
    assert krill_train(*words, "batch.micro_batch_size=8", "output=one") == 0
    assert losses(tmp_path / "torchrun") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)

    again = subprocess.run(
        [*command, *krill_train.overrides, *words], capture_output=True, text=True, timeout=200
    )
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stderr
    refused = subprocess.run(
        [*command, *krill_train.overrides, *words, "seed=1"], capture_output=True, text=True, timeout=200
    )
    assert refused.stderr.count("holds a run of another configuration") == 1
