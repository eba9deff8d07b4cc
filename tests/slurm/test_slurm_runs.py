"""krill-runs follows and cancels submitted commands, also those that do not make a run."""

from __future__ import annotations

import json

from slurm_cluster import Cluster, Krill, wait_for


def test_a_submitted_preparation_is_watched_by_its_job_folder(cluster: Cluster, krill: Krill) -> None:
    krill(
        "tokenizer",
        "tokenizer.vocab_size=300",
        "hardware=slurm_cpu",
        "detach=true",
        "hardware.slurm.options={hold: true}",
    )
    (job,) = (krill.folder / "outputs" / "jobs").iterdir()
    path = f"outputs/jobs/{job.name}"
    assert f"next        krill-runs watch {path}" in krill.messages()
    (row,) = krill.list_runs()
    assert (row["state"], row["why"], row["command"]) == ("queued", "pending", "tokenizer")
    assert "tokenizer.vocab_size=300" in row["overrides"]
    cluster.run("scontrol", "release", json.loads((job / "jobs.json").read_text())["0"])
    assert krill("runs", "watch", path, "--every", "0.3").splitlines()[-1].endswith(": finished")
    assert "300 entries" in krill("runs", "tail", path)
    assert "nothing to cancel" not in krill.messages()
    krill("runs", "cancel", path)
    assert "nothing to cancel, it is finished" in krill.messages()


def test_a_queued_command_is_cancelled(cluster: Cluster, krill: Krill) -> None:
    krill("preprocess", "hardware=slurm_cpu", "detach=true", "hardware.slurm.options={hold: true}")
    (job,) = (krill.folder / "outputs" / "jobs").iterdir()
    krill("runs", "cancel", job.name)
    assert " cancelled" in krill.messages()
    wait_for(lambda: [row["state"] for row in krill.list_runs()] == ["cancelled"], 30)
    assert "krill-preprocess" in krill("runs", "show", job.name)
