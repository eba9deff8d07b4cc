"""-m: a folder a point, one preparation for all, a table best first, and only what is missing when run again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SMALL, Command, rows, status

pytestmark = pytest.mark.slow


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


def test_points_that_make_the_same_thing_are_made_once(krill: Command, corpus: str, tmp_path: Path):
    words = ("-m", "hardware=auto,cpu", "tokenizer.vocab_size=300,310", "data=files", corpus, "name=same")
    done = krill("tokenizer", *words, "sweep.max_parallel=2", "device=cpu")
    assert "4 points" in done.stderr
    assert "2 of them would make what another one makes" in done.stderr
    found = rows(tmp_path / "outputs" / "sweeps" / "same")
    assert [row["state"] for row in found] == ["finished", "finished"]
    assert all("hardware=auto" in row["overrides"] for row in found)


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


TROUBLE = """
import os, signal
from pathlib import Path

def keep(text, point):
    trouble = Path(f"trouble-{point}")
    if trouble.exists():
        match trouble.read_text():
            case "raise":
                raise ValueError("bad luck")
            case "exit":
                os._exit(9)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
    return True
"""


def test_of_twenty_points_three_crash_and_only_they_are_done_again(
    krill: Command, corpus: str, tmp_path: Path
):
    (tmp_path / "trouble.py").write_text(TROUBLE)
    for point, how in {3: "raise", 9: "exit", 14: "kill"}.items():
        (tmp_path / f"trouble-{point}").write_text(how)
    rule = "data.filters=[{name:custom,keep:trouble.py:keep,options:{point:NUMBER}}]"
    rules = ",".join(rule.partition("=")[2].replace("NUMBER", str(number)) for number in range(20))
    words = (
        "-m", f"data.filters={rules}", "data=files", corpus, "tokenizer.vocab_size=300", "name=twenty",
        "sweep.max_parallel=2", "device=cpu",
    )  # fmt: skip

    done = krill("tokenizer", *words, code=3)

    found = rows(tmp_path / "outputs" / "sweeps" / "twenty")
    failed = {
        row["overrides"].partition("point:")[2].partition("}")[0]: row
        for row in found
        if row["state"] == "failed"
    }
    assert len(found) == 20
    assert sum(row["state"] == "finished" for row in found) == 17
    assert failed.keys() == {"3", "9", "14"}
    assert "bad luck" in failed["3"]["error"]
    assert "ended with exit code 9" in failed["9"]["error"]
    assert "was killed by SIGKILL" in failed["14"]["error"]
    assert "bad luck" in done.stderr
    assert "Traceback" in (Path(failed["3"]["folder"]) / "log.txt").read_text()
    for file in tmp_path.glob("trouble-*"):
        file.unlink()

    done = krill("tokenizer", *words)

    assert done.stderr.count("finished already") == 17
    assert "point 3 of 3" in done.stderr
    assert {row["state"] for row in rows(tmp_path / "outputs" / "sweeps" / "twenty")} == {"finished"}


def test_asked_to_it_stops_at_the_first_failure(krill: Command, corpus: str, tmp_path: Path):
    words = ("data=files", corpus, "name=stops", "sweep.on_failure=stop")
    krill("tokenizer", "-m", "tokenizer.vocab_size=65000,300,400", *words, code=3)
    states = [row["state"] for row in rows(tmp_path / "outputs" / "sweeps" / "stops")]
    assert sorted(states) == ["failed", "not started", "not started"]


@pytest.mark.parametrize(
    "words", [("hardware=slurm_node",), ("-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", "dry_run=true")]
)
def test_without_slurm_it_is_said_and_nothing_is_left(
    krill: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = krill("train", *words, code=2)
    assert "no SLURM on this machine" in done.stderr
    assert "hardware=auto" in done.stderr
    assert not list(tmp_path.rglob("status.json"))


def test_detach_is_for_clusters(krill: Command, tmp_path: Path):
    done = krill("train", "detach=true", code=2)
    assert "add hardware=slurm_gpu" in done.stderr
    assert not list(tmp_path.iterdir())


COST = Path(__file__).resolve().parents[2] / "benchmarks" / "sweep_parent.py"


def test_what_a_point_costs_the_parent_can_be_measured(tmp_path: Path):
    result = tmp_path / "cost.json"
    words = ("--few", "1", "--many", "6", "--rounds", "1", "--result", str(result))
    subprocess.run([sys.executable, str(COST), *words], check=True, cwd=tmp_path)
    found = json.loads(result.read_text(encoding="utf-8"))["seconds_per_point"]
    assert found.keys() == {"train", "tokenizer"}
    assert all(kinds.keys() == {"compose", "pool"} for kinds in found.values())
