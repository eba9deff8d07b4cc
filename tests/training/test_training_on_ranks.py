"""Tests that several ranks train as one process does, into one folder, and that no rank outlives the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from console import get_clean_environment, get_forked_starts, get_server
from torch.distributed import TCPStore
from trainings import TWO_RANKS, assert_same_result

from krill.launch.supervise import Process
from krill.runs import checkpoints
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status

COMMAND = Path(sys.executable).with_name("krill-train")
pytestmark = pytest.mark.slow


RESUMED = ("steps=8", "eval_every=4", "save_every=3")
"""Overrides of a run that is interrupted after step 4."""
ONE_RANK = "batch.micro_batch_size=8"
"""The rows of a step of TWO_RANKS, in one process."""


def read_losses_and_norms(run: Path) -> dict[tuple[int, str], float]:
    """Returns the losses and gradient norms of a run by (step, metric)."""
    keys = ("loss", "grad_norm", "eval_loss", "eval_bits_per_byte")
    return {
        (line["step"], key): value
        for line in read_metrics(run)
        for key, value in line.items()
        if key in keys or key.startswith("eval_loss/")
    }


def start_command(krill_train: Any, *overrides: str, **environment: object) -> Process:
    """Starts krill-train in a process of its own; its output goes to the file command.log."""
    added = {key: str(value) for key, value in environment.items()}
    with open(krill_train.outputs / "command.log", "ab") as log:
        return get_server().spawn(
            [COMMAND, *krill_train.overrides, *overrides], env=os.environ | added, stdout=log, stderr=log
        )


def wait_for_step(folder: Path, step: int, process: Process) -> None:
    """Waits until the run in `folder` has written the line of `step`."""
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(folder)):
        assert process.poll() is None, (folder.parent / "command.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def list_rank_pids(folder: Path) -> list[int]:
    """Returns the process ids of the ranks that train in `folder`."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"krill.launch.rank" in arguments and str(folder).encode() in arguments:
            pids.append(int(process.name))
    return pids


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while list_rank_pids(folder):
        assert time.monotonic() < deadline, "a rank has outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "muon_keller"])
def test_ranks_and_accumulation_do_not_change_the_losses(
    optimizer: str, krill_train: Any, texts: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"".join(texts.read_bytes().splitlines(keepends=True)[::3]).replace(b"fox", b"wolf"))
    overrides = (
        f"data.paths=[{texts},{other}]", f"optimizer={optimizer}", "steps=10", "eval_every=5", "save_every=100",
    )  # fmt: skip
    splits = {
        "one": (ONE_RANK,),
        "accumulated": ("batch.micro_batch_size=4", "batch.gradient_accumulation_steps=2"),
        "ranks": TWO_RANKS,
    }
    results = {}
    for name, split in splits.items():
        assert krill_train(*overrides, *split, f"output={name}") == 0
        results[name] = read_losses_and_norms(tmp_path / name)
    assert len([step for step, key in results["one"] if key == "loss"]) == 10
    assert any("eval_loss/" in key for _, key in results["one"])
    for name in ("accumulated", "ranks"):
        assert results[name] == pytest.approx(results["one"], rel=1e-5), name
    for status in map(read_status, (tmp_path / "one", tmp_path / "ranks")):
        assert status is not None
        assert status["rows_per_step"] == 8


def test_two_ranks_resume_and_end_with_the_same_bytes(krill_train: Any) -> None:
    overrides = (*TWO_RANKS, *RESUMED)
    assert krill_train(*overrides, "output=whole") == 0
    uninterrupted, interrupted, killed = (
        krill_train.outputs / name for name in ("whole", "stopped", "killed")
    )
    for folder, number, code in ((interrupted, signal.SIGTERM, 75), (killed, signal.SIGKILL, -9)):
        process = start_command(krill_train, *overrides, f"output={folder.name}")
        wait_for_step(folder, 4, process)
        process.send_signal(number)
        assert process.wait(60) == code
        wait_until_gone(folder)
        assert not (folder / "model").exists()
        assert krill_train(*overrides, f"output={folder.name}") == 0
        assert_same_result(folder, uninterrupted)
    assert (read_status(interrupted) or {})["starts"] == 2


def test_sharding_has_the_same_losses_and_resumes_with_the_same_bytes(
    krill_train: Any, reference_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sharded, interrupted = (krill_train.outputs / name for name in ("sharded", "stopped"))
    uninterrupted = reference_run(*RESUMED, ONE_RANK)
    overrides = (*RESUMED, *TWO_RANKS, "hardware.sharding=fsdp2")
    assert krill_train(*overrides, "output=sharded") == 0
    results = {key: value for key, value in read_losses_and_norms(sharded).items() if key[1] != "grad_norm"}
    expected = read_losses_and_norms(uninterrupted)
    assert results == pytest.approx({key: expected[key] for key in results}, rel=1e-5)
    assert not (checkpoints.list_checkpoints(sharded / "checkpoints")[-1] / "model.safetensors").exists()

    process = start_command(krill_train, *overrides, "output=stopped")
    wait_for_step(interrupted, 4, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    capsys.readouterr()
    assert krill_train(*overrides, "hardware.sharding=none", "output=stopped") == 2
    assert "is sharded: resume with hardware.sharding=fsdp2" in capsys.readouterr().err
    assert krill_train(*overrides, "output=stopped") == 0
    for name in ("model/model.safetensors", "sample.txt"):
        assert (interrupted / name).read_bytes() == (sharded / name).read_bytes()
    assert read_losses_and_norms(interrupted) == read_losses_and_norms(sharded)


def test_a_run_resumes_with_another_number_of_ranks(
    krill_train: Any, reference_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    process = start_command(krill_train, *RESUMED, *TWO_RANKS, "output=moved")
    resumed = krill_train.outputs / "moved"
    wait_for_step(resumed, 4, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    wait_until_gone(resumed)
    step = checkpoints.parse_step(checkpoints.list_checkpoints(resumed / "checkpoints")[-1])
    assert 4 <= step < 8

    capsys.readouterr()
    assert krill_train(*RESUMED, ONE_RANK, "output=moved") == 0
    error = capsys.readouterr().err
    assert "changed     hardware.processes=1 (was 2)" in error
    assert "up to rounding" in error
    assert read_losses_and_norms(resumed) == pytest.approx(
        read_losses_and_norms(reference_run(*RESUMED, ONE_RANK)), rel=1e-5
    )


FAULTY = """
import os, torch

def build(model, lr, rank, **options):
    if os.environ["RANK"] == str(rank):
        raise ValueError("cannot build the optimizer")
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
def test_the_error_of_a_failing_rank_is_reported_with_its_number(
    rank: int, krill_train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "faulty.yaml").write_text(OPTION)
    overrides = ("--config-dir=conf", "optimizer=faulty", f"optimizer.options.rank={rank}", "output=faulty")
    code = krill_train(*TWO_RANKS, *overrides)
    error = capsys.readouterr().err
    assert code == 1, error
    assert "ValueError: cannot build the optimizer" in error
    assert ("rank 1: ValueError" in error) == (rank == 1)
    status = read_status(tmp_path / "faulty") or {}
    assert status["state"] == "failed"
    assert "cannot build the optimizer" in status["error"]
    wait_until_gone(tmp_path / "faulty")


def test_torchrun_starts_the_ranks_of_one_run(krill_train: Any, tmp_path: Path) -> None:
    overrides = ("batch.micro_batch_size=4", "steps=4", "eval_every=2", "output=torchrun")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--no-python",
        str(COMMAND),
    ]
    environment = get_clean_environment() | {"KRILL_OUTPUTS": str(tmp_path)}
    first = subprocess.run(
        [*command, *krill_train.overrides, *overrides], capture_output=True, text=True, timeout=200,
        env=environment | get_forked_starts(tmp_path, environment),
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == ["torchrun"], "only rank 0 prints the folder"
    assert krill_train(*overrides, ONE_RANK, "output=one") == 0
    assert read_losses_and_norms(tmp_path / "torchrun") == pytest.approx(
        read_losses_and_norms(tmp_path / "one"), rel=1e-5
    )

    def run_again(*more: str) -> tuple[list[int], str]:
        """Starts the same ranks without torchrun, whose own start takes seconds; returns exit codes and output."""
        (tmp_path / "command.log").write_bytes(b"")
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ranks = [
            start_command(
                krill_train, *overrides, *more, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2,
                MASTER_ADDR="127.0.0.1", MASTER_PORT=store.port, TORCHELASTIC_USE_AGENT_STORE=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        return [rank.wait(60) for rank in ranks], (tmp_path / "command.log").read_text()

    codes, printed = run_again()
    assert codes == [0, 0]
    assert "already finished" in printed
    codes, printed = run_again("seed=1")
    assert codes == [2, 0]
    assert printed.count("holds a run of another configuration") == 1, "rank 0 alone says so"
