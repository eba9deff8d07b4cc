"""A real SLURM cluster, started once for all tests, and commands that see it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("cluster.sh")
SMALL = (
    "model=llama_pico", "sequence_len=64", "batch.micro_batch_size=2", "hardware.threads=1", "steps=4",
    "eval_every=4",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All in one worker: they share the cluster, and some of them change it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group("slurm"))


class Cluster:
    """The cluster as an administrator sees it."""

    def ask(self, *words: str) -> str:
        """What a command prints."""
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout

    def states(self, *jobs: str) -> list[str]:
        """States of jobs by the accounting, which may be some seconds late."""
        for _ in range(60):
            lines = [self.ask("sacct", "-nPX", "-j", job, "-o", "State").split() for job in jobs]
            found = [line[0] if line else "" for line in lines]
            if all(found) and not {"RUNNING", "PENDING"} & set(found):
                return found
            time.sleep(0.5)
        return found

    def take_nodes(self) -> None:
        """Preempt what runs in gpu and spot, for a moment."""
        self.ask(
            "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"
        )

    def idle(self) -> None:
        """Wait until no job is left."""
        wait_for(lambda: not self.ask("squeue", "-h").strip(), 60)

    @contextmanager
    def having(self, option: str, value: str, usual: str) -> Iterator[None]:
        """The cluster with another setting."""
        subprocess.run(["bash", SCRIPT, "set", option, value], check=True, timeout=60)
        try:
            yield
        finally:
            subprocess.run(["bash", SCRIPT, "set", option, usual], check=True, timeout=60)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What `condition` returns as soon as it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s in vain")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The running cluster."""
    packages = all(map(shutil.which, ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged")))
    if not packages and (os.getuid() != 0 or shutil.which("apt-get") is None):
        pytest.skip("needs slurm, munge and MariaDB, or root and apt-get to install them")
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / "krill-slurm"
    subprocess.run(["bash", SCRIPT, "stop"], check=True, timeout=120)
    shutil.rmtree(folder, ignore_errors=True)  # of tests that were killed
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRILL_SLURM_DIR", str(folder))
        subprocess.run(["bash", SCRIPT, "start"], check=True, timeout=300)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield Cluster()
        subprocess.run(["bash", SCRIPT, "stop"], check=True, timeout=120)


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
    cluster.idle()
