"""hardware.slurm.time=auto and memory=auto: a job requests what its plan says, an array the most of all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_slurm
import pytest

from krill.cli import preprocess, train
from krill.launch import cluster
from krill.launch.planned_limits import find_device_of_type, round_minutes
from krill.plan import setting

NODES = """\
cpu|(null)|8|2-00:00:00
h100*|gpu:nvidia_h100_80gb_hbm3:4|32|2-00:00:00
short|gpu:h100:4|32|1:00:00
two|gpu:h100:4|32|infinite
two|gpu:l4:4|32|infinite
plain|gpu:8|32|infinite
"""
AUTO = ["hardware.slurm.time=auto", "hardware.slurm.memory=auto", "dry_run=true"]
LONG = ["model=llama_125m", "tokenizer=bpe_32k", "steps=20000", "batch.micro_batch_size=16"]

Submit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Submit:
    """submit("steps=5", …): exit code, output and errors of krill-train with time and memory auto."""
    fake_slurm.install(tmp_path, monkeypatch, sinfo=NODES, scontrol="MaxArraySize            = 1001\n")
    cluster.query_nodes.cache_clear()
    monkeypatch.setattr(setting, "_measure_cpu_flops", lambda: 1e11)
    monkeypatch.setattr("krill.resources.count_cpu_cores", lambda: 4)
    monkeypatch.setattr(setting, "count_cpu_cores", lambda: 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KRILL_OUTPUTS", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["krill-train", *AUTO, *arguments])
        code = train.main()
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    return run


def read_option(script: str, name: str) -> int:
    (value,) = re.findall(rf"^#SBATCH --{name}=(\d+)", script, re.MULTILINE)
    return int(value)


def test_a_job_on_a_gpu_requests_what_its_plan_says(submit: Submit) -> None:
    code, script, log = submit("hardware=slurm_gpu", *LONG)
    assert code == 0
    assert read_option(script, "time") > 60
    assert 5 < read_option(script, "mem") < 20
    assert re.search(r"time limit \d+:\d\d:00: planned to take [\d:]+ to [\d:]+ on h100 \(assumed\)", log)
    assert re.search(r"memory \d+G: host memory, assumed; planned for [\d.]+ GB on a node", log)
    twice = submit("hardware=slurm_gpu", *LONG, "steps=40000")[1]
    assert read_option(twice, "time") > 1.7 * read_option(script, "time")


def test_a_job_on_cpus_requests_the_memory_of_all_ranks(submit: Submit) -> None:
    cpu = ["hardware=slurm_cpu", "hardware.slurm.partition=cpu", "batch.tokens=null", "model=llama_125m"]
    _, script, log = submit(*cpu, "tokenizer=bpe_32k", "steps=100")
    assert "on 8 CPUs like those here" in log
    _, ranks, log = submit(*cpu, "tokenizer=bpe_32k", "steps=100", "hardware.processes=2")
    assert re.search(r"planned for 2 ranks with [\d.]+ GB each on a node", log)
    assert read_option(ranks, "mem") > 1.8 * read_option(script, "mem")


def test_an_array_requests_the_most_of_its_points(submit: Submit) -> None:
    long = read_option(submit("hardware=slurm_gpu", *LONG)[1], "time")
    code, script, log = submit("hardware=slurm_gpu", *LONG, "-m", "steps=10,20000,100")
    assert code == 0
    assert read_option(script, "time") == long
    assert script.count("#SBATCH --array=0-2") == 1
    assert "the longest of 3 points is planned to take" in log


def test_the_slower_of_two_types_of_gpu_counts(submit: Submit) -> None:
    both = submit("hardware=slurm_gpu", *LONG, "hardware.slurm.partition=two")
    one = submit("hardware=slurm_gpu", *LONG, "hardware.slurm.partition=two", "hardware.slurm.gpu_type=h100")
    assert "on l4" in both[2]
    assert "on h100" in one[2]
    assert read_option(both[1], "time") > read_option(one[1], "time")


def test_the_device_of_the_plan_can_be_named(submit: Submit) -> None:
    arguments = ["hardware=slurm_gpu", *LONG, "hardware.slurm.partition=plain"]
    _, script, log = submit(*arguments, "hardware.slurm.plan_device=l4")
    assert "on l4" in log
    assert "l4" not in script


def test_a_partition_that_allows_less_is_requested_in_full(submit: Submit) -> None:
    _, script, log = submit("hardware=slurm_gpu", *LONG, "hardware.slurm.partition=short")
    assert read_option(script, "time") == 60
    assert "time limit 1:00:00" in log
    assert "the partition allows no more, so the run is requeued" in log


def test_a_limit_of_the_launcher_comes_first(submit: Submit) -> None:
    _, script, log = submit("hardware=slurm_gpu", *LONG, "hydra.launcher.timeout_min=7")
    assert read_option(script, "time") == 7
    assert "time limit" not in log
    assert "memory" in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hardware.slurm.partition=plain"], "without a type, so not in krill's table of devices; name them, as in "
         "hardware.slurm.plan_device=h100; or use hardware.slurm.time=24h hardware.slurm.memory=64G"),
        (["hardware.slurm.gpu_type=mi300x"], "of type mi300x, which is not in krill's table"),
        (["hardware.slurm.plan_device=h10"], "Did you mean hardware.slurm.plan_device=h100?"),
        (["hardware.slurm.memory=8G", "hardware.precision=fp8", "hardware.slurm.plan_device=a100"],
         "hardware.slurm.time=auto cannot be planned: hardware.precision=fp8"),
        (["epochs=1", "steps=null", "data=tiny_korean_100k"], "once the tokens are prepared (krill-preprocess)"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_planned_says_what_to_type(
    submit: Submit, arguments: list[str], message: str
) -> None:
    code, script, error = submit("hardware=slurm_gpu", *arguments)
    assert (code, script) == (2, "")
    assert message in error


def test_other_commands_get_the_limits_of_the_cluster(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["krill-preprocess", *AUTO, "hardware=slurm_cpu", "hardware.slurm.partition=cpu"]
    )
    assert preprocess.main() == 0
    script = capsys.readouterr().out
    assert read_option(script, "time") == 24 * 60
    assert "--mem" not in script


def test_the_type_of_a_gpu_is_found_in_the_table() -> None:
    names = (
        "h100",
        "nvidia_h100_80gb_hbm3",
        "H100-PCIe",
        "A100-SXM4-40GB",
        "a100_40gb",
        "mi300x",
        "tesla-v100",
    )
    found = [find_device_of_type(name) for name in names]
    assert [device and device.name for device in found] == [
        "h100", "h100", "h100_pcie", "a100_40gb", "a100_40gb", None, "v100",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "minutes"), [(1, 30), (3600, 80), (5 * 3600, 350), (36_000, 720), (86_400, 1620)]
)
def test_time_limits_are_rounded_up(seconds: float, minutes: int) -> None:
    assert round_minutes(seconds, save_before=120) == minutes


CALL = """
import sys
from krill.cli import train
assert train.main() == 0
print("loaded:", *sorted(name for name in sys.modules if "." not in name))
"""


def test_a_submission_of_a_preset_loads_no_torch(submit: Submit, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALL, *AUTO, "hardware=slurm_gpu", *LONG], cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_option(done.stdout, "time") > 60
    assert {"torch", "transformers", "datasets"} & set(done.stdout.splitlines()[-1].split()) == set()
