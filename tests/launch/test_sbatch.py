"""The sbatch parameters and scripts of a submission, and what is queried from the cluster before it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import compositions
import fake_slurm
import pytest

from krill.cli import compose, train
from krill.config.overrides import quote_override
from krill.config.schema import HardwareConfig, TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.launch import cluster
from krill.launch.auto_processes import resolve_auto_processes
from krill.launch.sbatch import Submission, build_sbatch_parameters

NODES = """\
cpu|(null)|64|2-00:00:00
a100*|gpu:a100:4(S:0-1),license:2|32+|1-12:00:00
a100*|gpu:a100:4(S:0-1)|48|1-12:00:00
mixed|gpu:a100:4|32|infinite
mixed|gpu:v100:8|40|infinite
"""


def make_config(*overrides: str) -> TrainConfig:
    return validate_config(TrainConfig, compositions.compose("train", *overrides))


def make_hardware(*overrides: str) -> HardwareConfig:
    return resolve_auto_processes(make_config(*overrides)).hardware


@pytest.fixture
def slurm_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fake_slurm.install(tmp_path, monkeypatch, sinfo=NODES, scontrol="MaxArraySize            = 1001\n")


def test_processes_auto_is_the_number_of_gpus_per_node(slurm_calls: Path) -> None:
    assert make_hardware("hardware=slurm_node").processes == 4
    assert make_hardware("hardware=slurm_gpu").processes == 1
    partition = "hardware.slurm.partition=mixed"
    assert make_hardware("hardware=slurm_node", partition, "hardware.slurm.gpu_type=v100").processes == 8
    with pytest.raises(UsageError, match=r"nodes with 4 and 8 GPUs: set hardware.processes=…"):
        make_hardware("hardware=slurm_node", partition)
    with pytest.raises(UsageError, match="partition cpu has no GPUs: choose another"):
        make_hardware("hardware=slurm_node", "hardware.slurm.partition=cpu")
    with pytest.raises(UsageError, match=r"no such partition\. Available: a100, cpu, mixed"):
        make_hardware("hardware=slurm_node", "hardware.slurm.partition=gpu")


def sbatch_parameters(
    *overrides: str, launcher: dict[str, Any] | None = None, is_training: bool = True
) -> dict[str, Any]:
    return build_sbatch_parameters(make_hardware(*overrides), launcher or {}, "name", is_training)


def test_a_job_requests_what_its_processes_need(slurm_calls: Path) -> None:
    training = sbatch_parameters(
        "hardware=slurm_nodes", "hardware.slurm.nodes=3", "hardware.slurm.gpu_type=a100"
    )
    assert {key: training[key] for key in ("nodes", "ntasks_per_node", "gpus_per_node", "cpus_per_task", "time")} == {
        "nodes": 3, "ntasks_per_node": 4, "gpus_per_node": "a100:4", "cpus_per_task": 8, "time": 24 * 60,
    }  # fmt: skip
    other = sbatch_parameters("hardware=slurm_nodes", is_training=False)
    assert (other["nodes"], other["ntasks_per_node"], other["gpus_per_node"]) == (1, 1, 1)
    batch = build_sbatch_parameters(make_hardware("hardware=slurm_node"), {}, "name", False, True)
    assert (batch["nodes"], batch["ntasks_per_node"], batch["gpus_per_node"]) == (1, 1, 4)
    assert batch["cpus_per_task"] == 4 * other["cpus_per_task"]
    cpu = sbatch_parameters(
        "hardware=slurm_cpu", "hardware.slurm.partition=cpu", "hardware.slurm.time=3-00:00:00"
    )
    assert "gpus_per_node" not in cpu
    assert (cpu["cpus_per_task"], cpu["time"], cpu["partition"]) == (8, 3 * 24 * 60, "cpu")


def test_keys_of_the_launcher_override_those_of_hardware(slurm_calls: Path) -> None:
    parameters = sbatch_parameters(
        "hardware=slurm_gpu", launcher={"timeout_min": 5, "qos": "high", "partition": None, "name": "x"}
    )
    assert (parameters["time"], parameters["qos"], parameters["job_name"]) == (5, "high", "x")
    alone = sbatch_parameters(launcher={"gpus_per_node": 2, "mem_gb": 3})
    assert alone == {"job_name": "name", "requeue": True, "time": 24 * 60, "gpus_per_node": 2, "mem": 3}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("gpus", "2", {"gpus_per_node": 2}), ("cpus", "3", {"cpus_per_task": 3}), ("memory", "64G", {"mem": "64G"}),
        ("save_before", "60", {"signal_delay_s": 60}), ("account", "lab", {"account": "lab"}),
        ("qos", "high", {"qos": "high"}), ("constraint", "ib", {"constraint": "ib"}),
        ("setup", "[module load x]", {"setup": ["module load x"]}), ("options", "{nice: 7}", {"nice": "7"}),
        ("options.mail-type", "END", {"mail-type": "END"}),
    ],
)  # fmt: skip
def test_each_key_sets_its_parameter(
    slurm_calls: Path, key: str, value: str, expected: dict[str, Any]
) -> None:
    override = compose._prefix_free_key(quote_override(f"hardware.slurm.{key}={value}"))
    assert expected.items() <= sbatch_parameters("hardware=slurm_gpu", override).items()
    assert not expected.items() <= sbatch_parameters("hardware=slurm_gpu").items()


def test_the_signal_of_a_short_job_comes_before_its_end(slurm_calls: Path) -> None:
    assert sbatch_parameters("hardware=slurm_gpu")["signal_delay_s"] == 120
    assert sbatch_parameters("hardware=slurm_gpu", "hardware.slurm.time=1m")["signal_delay_s"] == 20


def test_1002_jobs_are_two_arrays(slurm_calls: Path, tmp_path: Path) -> None:
    submission = Submission(
        tmp_path, ["run", "it"], sbatch_parameters("hardware=slurm_gpu"), 1002, max_parallel=7
    )
    first, second = submission.render_scripts()
    assert "#SBATCH --array=0-1000%7" in first
    assert first.rstrip().endswith("run it 0 slurm")
    assert "--array" not in second
    assert second.rstrip().endswith("run it 1001 slurm")


@pytest.mark.parametrize(
    ("text", "minutes"), [("90m", 90), ("12h", 720), ("2d", 2880), ("1-12:00:00", 2160), ("00:30:00", 30)]
)
def test_time_limits_with_units(text: str, minutes: int) -> None:
    section = make_config("hardware=slurm_gpu", f"hardware.slurm.time='{text}'").hardware.slurm
    assert section is not None
    assert section.time == minutes
    assert type(section).model_validate(section.model_dump(mode="json")) == section


@pytest.mark.parametrize("text", ["43200", "12", "soon", "'1:2:3'"])
def test_a_time_limit_without_unit_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match=r"use 90m, 12h, 2d"):
        make_config("hardware=slurm_gpu", f"hardware.slurm.time={text}")


def test_a_machine_without_slurm_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no SLURM on this machine") as raised:
        cluster.require_slurm()
    assert raised.value.exit_code == 2


def test_time_limits_of_partitions_are_parsed() -> None:
    assert cluster._parse_time_limit("10:00:00") == 600
    assert cluster._parse_time_limit("30:00") == 30
    assert cluster._parse_time_limit("infinite") is None


@pytest.mark.parametrize("broken", ["sinfo", "sbatch"])
def test_a_submission_that_fails_leaves_nothing_behind(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm.install(tmp_path, monkeypatch, sinfo=NODES, scontrol="MaxArraySize            = 1001\n")
    (tmp_path / "bin" / broken).write_text("#!/bin/sh\necho 'error: no configuration' >&2\nexit 1\n")
    cluster.query_nodes.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KRILL_OUTPUTS", raising=False)
    monkeypatch.setattr(sys, "argv", ["krill-train", "hardware=slurm_cpu", "steps=2"])
    assert train.main() != 0
    assert "no configuration" in capsys.readouterr().err
    assert [*(tmp_path / "outputs").glob("runs/*"), *(tmp_path / "outputs").glob("jobs*")] == []
