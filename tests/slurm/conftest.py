"""A real SLURM cluster, started once for all tests, and commands that see it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

SCRIPT = Path(__file__).with_name("cluster.sh")
SMALL = (
    "model=llama_pico", "sequence_len=64", "batch.micro_batch_size=2", "hardware.threads=1", "steps=4",
    "eval_every=4",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They start a cluster, one in each worker of xdist: under pytest 9.2 its groups are not heeded."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)


class Cluster:
    """The cluster as an administrator sees it."""

    def __init__(self, env: dict[str, str]):
        self.env = env
        """For commands that shall see it."""

    def ask(self, *words: str) -> str:
        """What a command prints."""
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=self.env)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        """Number of a new job that runs lines of shell; what they print is lost unless `options` say where to."""
        return self.ask("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}").strip()

    def squeue(self) -> dict[str, str]:
        """Jobs that wait or run, and their states; each task of an array by itself."""
        return dict(
            line.split() for line in self.ask("squeue", "-hr", "-t", "all", "-o", "%i %T").splitlines()
        )

    def sacct(self, job: str) -> dict[str, str]:
        """States of a job, or of each task of an array, by the accounting. Waits until it knows the job."""
        return wait_for(lambda: self._sacct(job), 30)

    def _sacct(self, job: str) -> dict[str, str]:
        lines = self.ask("sacct", "-nPX", "-j", job, "-o", "JobID,State").splitlines()
        found = {
            name: state.split()[0] for name, state in (line.split("|") for line in lines)
        }  # CANCELLED by 0
        # For a moment it lists an array as one job that has ended, or only the tasks that it heard of.
        known = {name for name in self.squeue() if name.split("_")[0] == job}
        whole = known <= set(found) or any("[" in name for name in found)
        return found if whole else {}

    def wait_state(self, job: str, states: set[str], timeout: float = 60) -> dict[str, str]:
        """Wait until the job, or every task of the array, is in one of the states by the accounting."""
        last: dict[str, str] = {}

        def reached() -> bool:
            last.clear()
            last.update(self._sacct(job))
            return bool(last) and set(last.values()) <= states

        try:
            wait_for(reached, timeout)
        except AssertionError:
            raise AssertionError(f"job {job} is {last} after {timeout} s, not {sorted(states)}") from None
        return last

    def states(self, *jobs: str) -> list[str]:
        """How jobs, or tasks of an array, have ended."""
        return [self.wait_state(job, {"COMPLETED", "FAILED", "CANCELLED"})[job] for job in jobs]

    def preempt(self, seconds: float = 2, nodes: int = 2) -> str:
        """Take whole nodes from what runs in gpu and spot; the number of the job that does."""
        return self.submit(f"sleep {seconds}", "--partition=urgent", f"--nodes={nodes}", "--exclusive")

    def requeue(self, job: str) -> None:
        """Start a job again from its beginning, as an administrator does."""
        self.ask("scontrol", "requeue", job)

    def cancel(self, job: str, signal: str | None = None) -> None:
        """End a job, or only send it a signal: USR2, or B:USR2 for its script."""
        kind, _, name = (signal or "").rpartition(":")
        batch = ["--batch"] if kind == "B" else []
        self.ask("scancel", *([f"--signal={name}", *batch] if name else []), job)

    def wait_idle(self, timeout: float = 60) -> None:
        """Wait until no job is left, and every node is free."""
        wait_for(lambda: not self.ask("squeue", "-h").strip(), timeout)
        wait_for(lambda: set(self.ask("sinfo", "-hN", "-o", "%T").split()) == {"idle"}, timeout)

    @contextmanager
    def _having(self, option: str, value: str, usual: str) -> Iterator[None]:
        """The cluster with another setting."""
        _script("set", option, value, env=self.env)
        try:
            yield
        finally:
            _script("set", option, usual, env=self.env)

    @contextmanager
    def user_signal(self, sent: bool) -> Iterator[None]:
        """Whether preemption sends jobs the signal that they asked for; SLURM's default is that it does not."""
        usual = any(
            "send_user_signal" in line for line in self._options("SlurmctldParameters", "PreemptParameters")
        )
        with self._having("user-signal", "on" if sent else "off", "on" if usual else "off"):
            yield

    @contextmanager
    def max_array(self, size: int) -> Iterator[None]:
        """The cluster with another MaxArraySize: the highest index of a task is one less."""
        (usual,) = self._options("MaxArraySize")
        with self._having("max-array", str(size), usual.split()[-1]):
            yield

    def _options(self, *names: str) -> list[str]:
        lines = self.ask("scontrol", "show", "config").splitlines()
        return [line for line in lines if line.split(" ")[0] in names]


def _script(*words: str, env: dict[str, str], timeout: float = 120) -> None:
    subprocess.run(["bash", SCRIPT, *words], check=True, timeout=timeout, env=env)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What `condition` returns as soon as it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s in vain")


def _running() -> dict[str, str] | None:
    """The environment of the cluster that SLURM_CONF names, if it is one of cluster.sh: tests change its settings."""
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


def _place() -> tuple[FileLock, dict[str, str]]:
    """A folder and ports that no other test session on this host uses: the lock ends with its process."""
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


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster that SLURM_CONF names, or one that is started here and stopped in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin"
        )  # of the daemons; not every user has them
        env = _running()
        if env is not None:
            yield Cluster(env)
            return
        packages = all(map(shutil.which, ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged", "sbatch")))
        if not packages and (os.getuid() != 0 or shutil.which("apt-get") is None):
            pytest.skip("needs slurm, munge and MariaDB, or root and apt-get to install them")
        lock, env = _place()
        with lock:
            _script("stop", env=env)  # what tests left that were killed
            shutil.rmtree(env["KRILL_SLURM_DIR"], ignore_errors=True)
            try:
                _script("start", env=env, timeout=300)
                patch.setenv("SLURM_CONF", env["SLURM_CONF"])
                yield Cluster(env)
            finally:
                _script("stop", env=env)


class Krill:
    """Commands of krill in a folder, with the cluster's site profile."""

    def __init__(self, folder: Path):
        self.folder = folder
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("KRILL_", "OMP_"))}
        self.environment = clean | {"HF_HUB_OFFLINE": "1"}

    def start(self, command: str, *words: str) -> subprocess.Popen[str]:
        """Begin a command; its messages go to the file `messages`."""
        script = Path(sys.executable).with_name(f"krill-{command}")
        with open(self.folder / "messages", "a") as messages:
            return subprocess.Popen(
                [script, *words], cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE,
                stderr=messages,
            )  # fmt: skip

    def __call__(self, command: str, *words: str, code: int = 0) -> str:
        """What a command prints to standard output."""
        process = self.start(command, *words)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == code, self.messages()
        return output

    def own_model(self, code: str, options: str = "{}") -> None:
        """The option model=own, built by the function build of own.py."""
        (self.folder / "own.py").write_text(code)
        (self.folder / "conf" / "model").mkdir()
        (self.folder / "conf" / "model" / "own.yaml").write_text(
            "# @package _global_\n# My own\nsequence_len: 64\nmodel:\n  name: own\n  family: custom\n"
            f"  build: own.py:build\n  max_position_embeddings: 64\n  options: {options}\n"
        )

    def messages(self) -> str:
        """What the commands said so far."""
        return (self.folder / "messages").read_text()

    def status(self, run: str | Path) -> dict[str, Any]:
        """status.json of a run; empty where there is none yet."""
        try:
            return dict(json.loads((self.folder / run / "status.json").read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def lines(self, run: str | Path) -> int:
        """Logged steps of a run."""
        try:
            return len((self.folder / run / "metrics.jsonl").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """What krill-runs list tells."""
        return list(json.loads(self("runs", "list", *words, "--json")))


@pytest.fixture(scope="session")
def made(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and tokens of the built-in text, made once."""
    folder = tmp_path_factory.mktemp("made")
    Krill(folder)("preprocess")
    return folder / "outputs"


@pytest.fixture
def krill(cluster: Cluster, made: Path, tmp_path: Path) -> Iterator[Krill]:
    """Commands in a folder of their own, which has the tokens."""
    (tmp_path / "conf" / "hardware").mkdir(parents=True)
    site = "# @package _global_\n# The fake GPUs of the test cluster compute nothing\ndevice: cpu\n"
    (tmp_path / "conf" / "hardware" / "_site.yaml").write_text(site)
    (tmp_path / "outputs").mkdir()
    for name in ("data", "tokenizers"):
        shutil.copytree(made / name, tmp_path / "outputs" / name)
    yield Krill(tmp_path)
    cluster.ask("scancel", "--me")
    cluster.wait_idle()
