"""A real SLURM cluster for tests, as cluster.sh starts it, and krill's commands on it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from console import get_clean_environment, get_forked_starts, get_server
from filelock import FileLock, Timeout

from krill.launch.supervise import Process

SCRIPT = Path(__file__).with_name("cluster.sh")
SMALL_VALIDATION = "data.validation_fraction=0.003"
"""Validation on the 3 % of the default takes longer than a small run."""
SMALL_RUN = (
    "model=llama_pico", SMALL_VALIDATION, "sequence_len=64", "batch.micro_batch_size=2", "hardware.threads=1",
    "steps=4", "eval_every=4",
)  # fmt: skip
"""Overrides that make a run small."""


class Cluster:
    """The cluster as an administrator sees it."""

    def __init__(self, env: dict[str, str]):
        self.env = env
        """The environment of commands that use the cluster."""

    def run(self, *arguments: str) -> str:
        """Runs a command and returns its output."""
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=self.env)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        """Submits lines of shell, whose output is lost unless `options` set a file. Returns the number of the job."""
        return self.run("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}").strip()

    def squeue(self) -> dict[str, str]:
        """Returns the states of jobs that are pending or running; each task of an array separately."""
        return dict(
            line.split() for line in self.run("squeue", "-hr", "-t", "all", "-o", "%i %T").splitlines()
        )

    def sacct(self, job: str) -> dict[str, str]:
        """Returns the states of a job, or of each task of an array, once the accounting knows it."""
        return wait_for(lambda: self._sacct(job), 30)

    def _sacct(self, job: str) -> dict[str, str]:
        lines = self.run("sacct", "-nPX", "-j", job, "-o", "JobID,State").splitlines()
        states = {
            name: state.split()[0] for name, state in (line.split("|") for line in lines)
        }  # CANCELLED by 0
        # For a moment it lists an array as one job that has ended, or only some of its tasks.
        queued = {name for name in self.squeue() if name.split("_")[0] == job}
        is_complete = queued <= set(states) or any("[" in name for name in states)
        return states if is_complete else {}

    def wait_state(self, job: str, states: set[str], timeout: float = 60) -> dict[str, str]:
        """Waits until the accounting has the job, or every task of the array, in one of the states."""
        latest: dict[str, str] = {}

        def is_reached() -> bool:
            latest.clear()
            latest.update(self._sacct(job))
            return bool(latest) and set(latest.values()) <= states

        try:
            wait_for(is_reached, timeout)
        except AssertionError:
            raise AssertionError(f"job {job} is {latest} after {timeout} s, not {sorted(states)}") from None
        return latest

    def final_states(self, *jobs: str) -> list[str]:
        """Returns the final states of jobs, or of tasks of an array."""
        return [self.wait_state(job, {"COMPLETED", "FAILED", "CANCELLED"})[job] for job in jobs]

    def preempt(self, seconds: float = 0.2, nodes: int = 2) -> str:
        """Preempts what runs on whole nodes in the partitions gpu and spot; returns the number of the urgent job."""
        return self.submit(f"sleep {seconds}", "--partition=urgent", f"--nodes={nodes}", "--exclusive")

    def wait_requeued(self, job: str) -> None:
        """Waits until a job has been requeued, and cancels it: it would start again some seconds later."""
        wait_for(lambda: "Restarts=1" in self.run("scontrol", "show", "job", job).split(), 60)
        self.run("scancel", "--me")
        self.wait_idle()

    def requeue(self, job: str) -> None:
        """Requeues a job, as an administrator does."""
        self.run("scontrol", "requeue", job)

    def cancel(self, job: str, signal: str | None = None) -> None:
        """Cancels a job, or only sends it a signal: USR2, or B:USR2 for its script."""
        kind, _, name = (signal or "").rpartition(":")
        batch = ["--batch"] if kind == "B" else []
        self.run("scancel", *([f"--signal={name}", *batch] if name else []), job)

    def wait_idle(self, timeout: float = 60) -> None:
        """Waits until no job is left and every node is idle."""
        wait_for(lambda: not self.run("squeue", "-h").strip(), timeout)
        wait_for(lambda: set(self.run("sinfo", "-hN", "-o", "%T").split()) == {"idle"}, timeout)

    @contextmanager
    def _set(self, option: str, value: str, previous: str) -> Iterator[None]:
        """A context with another setting of the cluster."""
        run_script("set", option, value, env=self.env)
        try:
            yield
        finally:
            run_script("set", option, previous, env=self.env)

    @contextmanager
    def user_signal(self, is_sent: bool) -> Iterator[None]:
        """A context in which preemption sends jobs the signal that they requested, or not, as is SLURM's default."""
        was_sent = any(
            "send_user_signal" in line for line in self._options("SlurmctldParameters", "PreemptParameters")
        )
        with self._set("user-signal", "on" if is_sent else "off", "on" if was_sent else "off"):
            yield

    @contextmanager
    def max_array(self, size: int) -> Iterator[None]:
        """A context with another MaxArraySize: the highest index of a task is one less."""
        (line,) = self._options("MaxArraySize")
        with self._set("max-array", str(size), line.split()[-1]):
            yield

    def _options(self, *names: str) -> list[str]:
        lines = self.run("scontrol", "show", "config").splitlines()
        return [line for line in lines if line.split(" ")[0] in names]


def run_script(*arguments: str, env: dict[str, str], timeout: float = 120) -> None:
    """Runs cluster.sh."""
    subprocess.run(["bash", SCRIPT, *arguments], check=True, timeout=timeout, env=env)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Returns the value of `condition` as soon as it is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"still false after {seconds} s")


def find_running_cluster() -> dict[str, str] | None:
    """Returns the environment of the cluster of SLURM_CONF if cluster.sh started it, since tests change settings."""
    conf = Path(os.environ.get("SLURM_CONF", ""))
    if (
        not conf.is_file()
        or "ClusterName=krill\n" not in conf.read_text()
        or shutil.which("scontrol") is None
    ):
        return None
    env = os.environ | {"KRILL_SLURM_DIR": str(conf.parent)}
    ping = subprocess.run(["scontrol", "ping"], env=env, capture_output=True, timeout=60)
    return env if ping.returncode == 0 else None


def reserve_cluster() -> tuple[FileLock, dict[str, str]]:
    """Returns the environment with a folder and ports that no other test session on this host uses, and its lock."""
    for number in range(8):
        folder = Path(tempfile.gettempdir()) / f"krill-slurm-tests-{number}"
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(blocking=False)
        except (Timeout, PermissionError):
            continue
        env = os.environ | {"KRILL_SLURM_DIR": str(folder), "KRILL_SLURM_PORT": str(28000 + 200 * number)}
        return lock, env | {"SLURM_CONF": str(folder / "slurm.conf")}
    pytest.skip("eight other test sessions have a cluster on this host")


class Krill:
    """Runs krill's commands in a folder, forked from the server of the tests."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = get_clean_environment()

    def start(self, command: str, *arguments: str, stdout: IO[bytes] | None = None) -> Process:
        """Starts a command; its standard error is appended to the file `messages`."""
        script = Path(sys.executable).with_name(f"krill-{command}")
        with open(self.folder / "messages", "ab") as messages:
            return get_server().spawn(
                [script, *arguments], env=self.environment, cwd=self.folder, stdout=stdout, stderr=messages
            )

    def __call__(self, command: str, *arguments: str, code: int = 0) -> str:
        """Runs a command and returns its standard output; `code`: the expected exit code."""
        with tempfile.TemporaryFile() as stdout:
            process = self.start(command, *arguments, stdout=stdout)
            assert process.wait(400) == code, self.messages()
            stdout.seek(0)
            return stdout.read().decode()

    def write_site_profile(self, forks_jobs: bool) -> None:
        """Writes what holds for all jobs; `forks_jobs`: from the server of the tests."""
        lines = ["# @package _global_", "# The fake GPUs of the test cluster compute nothing", "device: cpu"]
        if forks_jobs and (exports := get_forked_starts(self.folder, self.environment)):
            lines += ["hardware:", "  slurm:", "    setup:"]
            lines += [f"      - export {name}={shlex.quote(value)}" for name, value in exports.items()]
        profile = self.folder / "conf" / "hardware" / "_site.yaml"
        profile.parent.mkdir(parents=True)
        profile.write_text("\n".join([*lines, ""]))

    def add_text(self) -> list[str]:
        """Writes a short text; returns the overrides that read it."""
        lines = (
            json.dumps({"text": f"{number} is a short text about {number + 1}"}) for number in range(200)
        )
        (self.folder / "short.jsonl").write_text("\n".join(lines))
        return ["data=files", "data.paths=[short.jsonl]", "data.min_chars=1"]

    def add_custom_model(self, code: str, options: str = "{}") -> None:
        """Adds the option model=own, built by the function build of own.py."""
        (self.folder / "own.py").write_text(code)
        (self.folder / "conf" / "model").mkdir()
        (self.folder / "conf" / "model" / "own.yaml").write_text(
            "# @package _global_\n# A custom model\nsequence_len: 64\nmodel:\n  name: own\n  family: custom\n"
            f"  build: own.py:build\n  max_position_embeddings: 64\n  options: {options}\n"
        )

    def messages(self) -> str:
        """Returns the standard error of all commands so far."""
        return (self.folder / "messages").read_text()

    def status(self, run: str | Path) -> dict[str, Any]:
        """Returns status.json of a run; empty if there is none yet."""
        try:
            return dict(json.loads((self.folder / run / "status.json").read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def count_logged_steps(self, run: str | Path) -> int:
        """Returns the number of lines in metrics.jsonl of a run."""
        try:
            return len((self.folder / run / "metrics.jsonl").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def list_runs(self, *arguments: str) -> list[dict[str, Any]]:
        """Returns the rows of krill-runs list."""
        return list(json.loads(self("runs", "list", *arguments, "--json")))
