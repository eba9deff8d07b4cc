"""Fixtures of a real SLURM cluster, started once for all tests, and of krill's commands on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SMALL_VALIDATION, Cluster, Krill, find_running_cluster, reserve_cluster, run_script


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder. Each xdist worker starts its own cluster: pytest 9.2 ignores xdist's groups."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of SLURM_CONF, or one that is started for the session and stopped at its end."""
    with pytest.MonkeyPatch.context() as patch:
        # The daemons are in these folders, which are not in every user's PATH.
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
        env = find_running_cluster()
        if env is not None:
            yield Cluster(env)
            return
        is_installed = all(
            map(shutil.which, ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged", "sbatch"))
        )
        if not is_installed and (os.getuid() != 0 or shutil.which("apt-get") is None):
            pytest.skip("needs slurm, munge and MariaDB, or root and apt-get to install them")
        lock, env = reserve_cluster()
        with lock:
            run_script("stop", env=env)  # of a session that was killed
            shutil.rmtree(env["KRILL_SLURM_DIR"], ignore_errors=True)
            try:
                run_script("start", env=env, timeout=300)
                patch.setenv("SLURM_CONF", env["SLURM_CONF"])
                yield Cluster(env)
            finally:
                run_script("stop", env=env)


@pytest.fixture(scope="session")
def prepared_outputs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder with the tokenizer and the tokens of the built-in text."""
    folder = tmp_path_factory.mktemp("prepared")
    Krill(folder)("preprocess", SMALL_VALIDATION)
    return folder / "outputs"


@pytest.fixture
def krill(
    cluster: Cluster, prepared_outputs: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Krill]:
    """Commands in an empty folder with the tokens and a site profile; all jobs are cancelled after the test.

    Jobs are forked from the server of the tests, except in a test with the mark real_jobs.
    """
    (tmp_path / "outputs").mkdir()
    for name in ("data", "tokenizers"):
        shutil.copytree(prepared_outputs / name, tmp_path / "outputs" / name)
    krill = Krill(tmp_path)
    krill.write_site_profile(forks_jobs=request.node.get_closest_marker("real_jobs") is None)
    yield krill
    cluster.run("scancel", "--me")
    cluster.wait_idle()
