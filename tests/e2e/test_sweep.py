"""-m: a folder a point, one preparation for all, a table best first, and only what is missing when run again."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from commands import SMALL, Command, status

pytestmark = pytest.mark.slow


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "table.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("launcher", ["pool", "basic", "submitit_local"])
def test_points_share_one_preparation_and_end_in_a_table(
    krill: Command, corpus: str, tmp_path: Path, launcher: str
):
    words = ("data=files", corpus, *SMALL, "name=sweep", f"hydra/launcher={launcher}")
    done = krill("train", "lr=1e-3,3e-3", "-m", *words)

    sweep = tmp_path / "outputs" / "sweeps" / "sweep"
    assert done.stdout.splitlines()[-1] == str(sweep)
    losses = [float(row["eval_loss"]) for row in rows(sweep)]
    assert len(losses) == 2
    assert losses == sorted(losses)
    assert len(list((tmp_path / "outputs" / "data").glob("files-*"))) == 1
    assert len(list((tmp_path / "outputs" / "tokenizers").glob("bpe_4k-*"))) == 1
    points = [Path(row["folder"]) for row in rows(sweep)]
    assert len(set(points)) == 2
    for point in points:
        assert (point / "model" / "model.safetensors").is_file()
        assert status(point)["state"] == "finished"


def test_a_wider_grid_keeps_what_is_done(krill: Command, corpus: str, tmp_path: Path):
    words = ("data=files", corpus, *SMALL, "output=grid")
    krill("train", "-m", "lr=1e-3", *words)
    first = Path(rows(tmp_path / "grid")[0]["folder"])
    ended = status(first)["end"]

    done = krill("train", "-m", "lr=1e-3,3e-3", *words)

    assert "finished already" in done.stderr
    assert status(first)["end"] == ended
    assert len(rows(tmp_path / "grid")) == 2


def test_a_failing_point_is_named_and_costs_no_other(krill: Command, corpus: str, tmp_path: Path):
    words = [word for word in SMALL if "vocab" not in word]
    sizes = "tokenizer.vocab_size=600,65000"  # the second: more than the text yields

    done = krill("train", "-m", sizes, "data=files", corpus, *words, "name=sweep", code=3)

    by_state = {row["state"]: row for row in rows(tmp_path / "outputs" / "sweeps" / "sweep")}
    assert set(by_state) == {"finished", "failed"}
    assert "600" in by_state["finished"]["overrides"]
    assert "tokenizer.vocab_size=65000" in by_state["failed"]["error"]
    assert "vocab_size=65000" in done.stderr


def test_preparations_can_be_swept(krill: Command, corpus: str, tmp_path: Path):
    done = krill(
        "preprocess", "-m", "data.min_chars=100,2000", "data=files", corpus, "tokenizer.vocab_size=600"
    )

    assert len(list((tmp_path / "outputs" / "data").glob("files-*"))) == 2
    assert Path(done.stdout.splitlines()[-1]).is_dir()


def test_slurm_composes(krill: Command):
    done = krill("train", "hydra/launcher=submitit_slurm", "--cfg", "hydra")
    assert "SlurmLauncher" in done.stdout


def test_a_launcher_without_a_sweep_is_refused(krill: Command, tmp_path: Path):
    done = krill("train", "hydra/launcher=submitit_local", code=2)
    assert "add -m" in done.stderr
    assert not list(tmp_path.iterdir())


def test_points_of_a_swept_model_stay_in_one_sweep(krill: Command, corpus: str, tmp_path: Path):
    words = ("data=files", corpus, *SMALL)
    done = krill("train", "-m", *words, "model=llama_pico,qwen3_pico")
    sweep = Path(done.stdout.splitlines()[-1])
    assert {row["state"] for row in rows(sweep)} == {"finished"}
    assert {Path(row["folder"]).parent for row in rows(sweep)} == {sweep}
