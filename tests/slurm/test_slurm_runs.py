"""krill-runs and what was submitted: a command that makes no run, and one that somebody cancels."""

from __future__ import annotations

import json

from conftest import Cluster, Krill, wait_for


def test_a_preparation_is_watched_by_the_folder_of_its_submission(cluster: Cluster, krill: Krill) -> None:
    krill(
        "tokenizer",
        "tokenizer.vocab_size=300",
        "hardware=slurm_cpu",
        "detach=true",
        "hardware.slurm.options={hold: true}",
    )
    (job,) = (krill.folder / "outputs" / "jobs").iterdir()
    place = f"outputs/jobs/{job.name}"
    assert f"next        krill-runs watch {place}" in krill.messages()
    (row,) = krill.rows()
    assert (row["state"], row["why"], row["command"]) == ("queued", "pending", "tokenizer")
    assert "tokenizer.vocab_size=300" in row["overrides"]
    cluster.ask("scontrol", "release", json.loads((job / "jobs.json").read_text())["0"])
    assert krill("runs", "watch", place, "--every", "0.3").splitlines()[-1].endswith(": finished")
    assert "300 entries" in krill("runs", "tail", place)
    assert "nothing to end" not in krill.messages()
    krill("runs", "cancel", place)
    assert "is finished: there is nothing to end" in krill.messages()


def test_one_that_waits_is_cancelled(cluster: Cluster, krill: Krill) -> None:
    krill("preprocess", "hardware=slurm_cpu", "detach=true", "hardware.slurm.options={hold: true}")
    (job,) = (krill.folder / "outputs" / "jobs").iterdir()
    krill("runs", "cancel", job.name)
    assert " cancelled" in krill.messages()
    wait_for(lambda: [row["state"] for row in krill.rows()] == ["cancelled"], 30)
    assert "krill-preprocess" in krill("runs", "show", job.name)
