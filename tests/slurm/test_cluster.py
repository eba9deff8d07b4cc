"""The test cluster behaves as the other tests assume."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_for


def test_a_task_sees_the_gpus_that_it_requested(cluster: Cluster, tmp_path: Path) -> None:
    jobs = {}
    for count, visible in ((0, "none"), (1, "0"), (2, "0,1")):
        options = [f"--gres=gpu:{count}"] if count else []
        job = cluster.submit("echo ${CUDA_VISIBLE_DEVICES:-none}", f"--output={tmp_path}/{count}", *options)
        jobs[job] = (tmp_path / str(count), visible)
    for job, (file, visible) in jobs.items():
        assert cluster.wait_state(job, {"COMPLETED"}) == {job: "COMPLETED"}
        assert file.read_text() == f"{visible}\n"
    with pytest.raises(AssertionError, match="Requested node configuration is not available"):
        cluster.submit("true", "--gres=gpu:3")


def test_both_nodes_have_names_and_free_resources(cluster: Cluster) -> None:
    arguments = ("srun", "-N2", "--ntasks-per-node=2", "--cpus-per-task=8", "--mem=64000")
    nodes = cluster.run(*arguments, "bash", "-c", "echo $SLURMD_NODENAME; getent hosts $SLURMD_NODENAME >&2")
    assert sorted(nodes.split()) == ["n1", "n1", "n2", "n2"]


def test_an_array_has_a_state_for_each_task(cluster: Cluster) -> None:
    job = cluster.submit("exit $((SLURM_ARRAY_TASK_ID == 1))", "--array=0-2")
    states = cluster.wait_state(job, {"COMPLETED", "FAILED"})
    assert states == {f"{job}_0": "COMPLETED", f"{job}_1": "FAILED", f"{job}_2": "COMPLETED"}
    assert cluster.sacct(job) == states


def test_limits_are_enforced_at_submission(cluster: Cluster) -> None:
    for option in ("--partition=nonsense", "--qos=nonsense", "--account=nonsense", "--mem=65G"):
        with pytest.raises(AssertionError, match="error"):
            cluster.submit("true", option)
    with pytest.raises(AssertionError, match="time limit"):
        cluster.submit("true", "--partition=short", "--time=2")
    cluster.cancel(cluster.submit("true", "--qos=high", "--account=lab", "--hold"))
    with cluster.max_array(5):
        with pytest.raises(AssertionError, match="Invalid job array specification"):
            cluster.submit("true", "--array=0-5")
        cluster.cancel(cluster.submit("true", "--array=0-4", "--hold"))
    job = cluster.submit("true", "--array=0-5", "--hold")
    assert cluster.squeue()[f"{job}_5"] == "PENDING"
    cluster.cancel(job)
    cluster.wait_idle()


PREEMPTIBLE_SCRIPT = """
trap 'echo USR2' USR2
trap 'echo TERM' TERM
echo start ${SLURM_RESTART_COUNT:-0}
if [ -z "$SLURM_RESTART_COUNT" ]; then for _ in $(seq 300); do sleep 0.2; done; fi
"""


@pytest.mark.parametrize("is_sent", [True, False])
def test_a_preempted_job_is_requeued(cluster: Cluster, tmp_path: Path, is_sent: bool) -> None:
    log = tmp_path / "log"
    with cluster.user_signal(is_sent):
        job = cluster.submit(
            PREEMPTIBLE_SCRIPT, f"--output={log}", "--open-mode=append", "--signal=B:USR2@60", "--nodes=2"
        )
        wait_for(lambda: log.exists() and "start" in log.read_text())
        cluster.wait_state(cluster.preempt(), {"COMPLETED"})
        if is_sent:
            cluster.wait_state(job, {"COMPLETED"})
            assert log.read_text().splitlines()[-1] == "start 1"
        else:
            cluster.wait_requeued(job)
    signals = [line for line in log.read_text().splitlines() if line in ("USR2", "TERM")]
    assert sorted(signals) == (["TERM", "USR2"] if is_sent else ["TERM"]), "both at once, in any order"


def test_a_job_can_be_signalled_and_requeued(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = cluster.submit(PREEMPTIBLE_SCRIPT, f"--output={log}", "--open-mode=append")
    wait_for(lambda: log.exists() and "start 0" in log.read_text())
    cluster.cancel(job, "B:USR2")
    wait_for(lambda: "USR2" in log.read_text())
    assert cluster.squeue()[job] == "RUNNING"
    cluster.requeue(job)
    cluster.wait_requeued(job)


def test_cluster_sh_ends_only_its_own_daemons(cluster: Cluster, tmp_path: Path) -> None:
    """Another folder with the same ports is an error at once, and this cluster keeps running."""
    script = Path(__file__).with_name("cluster.sh")
    env = cluster.env | {"KRILL_SLURM_DIR": str(tmp_path)}
    port = int(cluster.run("scontrol", "show", "config").split("SlurmctldPort")[1].split()[1]) - 17
    env["KRILL_SLURM_PORT"] = str(port)
    done = subprocess.run(
        ["bash", script, "run", "true"], env=env, text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert "is taken, by another cluster?" in done.stderr
    assert set(cluster.run("sinfo", "-hN", "-o", "%T").split()) == {"idle"}
    assert "n2" in cluster.run("getent", "hosts", "n2")
