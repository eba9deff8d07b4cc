"""A sweep (-m): a folder for each point, one preparation for all, a table, and only missing points run again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from console import SMALL_RUN, Krill, get_clean_environment, read_status_file, read_table, run_words

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("launcher", ["pool", "basic", "submitit_local"])
def test_points_share_one_preparation_and_end_in_a_table(
    krill: Krill, corpus: str, tmp_path: Path, launcher: str
):
    overrides = ("data=files", corpus, *SMALL_RUN, "name=sweep", f"hydra/launcher={launcher}")
    done = krill("train", "lr=1e-3,3e-3", "-m", *overrides)

    sweep = tmp_path / "outputs" / "sweeps" / "sweep"
    assert done.stdout.splitlines()[-1] == str(sweep)
    losses = [float(row["eval_loss"]) for row in read_table(sweep)]
    assert len(losses) == 2
    assert losses == sorted(losses)
    assert len(list((tmp_path / "outputs" / "data").glob("files-*"))) == 1
    assert len(list((tmp_path / "outputs" / "tokenizers").glob("bpe_*"))) == 1
    points = [Path(row["folder"]) for row in read_table(sweep)]
    assert len(set(points)) == 2
    for point in points:
        assert (point / "model" / "model.safetensors").is_file()
        assert read_status_file(point)["state"] == "finished"


def test_a_wider_grid_keeps_finished_points(krill: Krill, corpus: str, tmp_path: Path):
    overrides = ("data=files", corpus, *SMALL_RUN, "output=grid")
    krill("train", "-m", "lr=1e-3", *overrides)
    first = Path(read_table(tmp_path / "grid")[0]["folder"])
    end = read_status_file(first)["end"]

    done = krill("train", "-m", "lr=1e-3,3e-3", *overrides)

    assert "already finished" in done.stderr
    assert read_status_file(first)["end"] == end
    assert len(read_table(tmp_path / "grid")) == 2


def test_a_failing_point_is_named_and_affects_no_other_point(krill: Krill, corpus: str, tmp_path: Path):
    overrides = [word for word in SMALL_RUN if "vocab" not in word]
    sizes = "tokenizer.vocab_size=600,65000"  # the text does not yield as many as the second

    done = krill("train", "-m", sizes, "data=files", corpus, *overrides, "name=sweep", code=3)

    by_state = {row["state"]: row for row in read_table(tmp_path / "outputs" / "sweeps" / "sweep")}
    assert set(by_state) == {"finished", "failed"}
    assert "600" in by_state["finished"]["overrides"]
    assert "tokenizer.vocab_size=65000" in by_state["failed"]["error"]
    assert "vocab_size=65000" in done.stderr


def test_preparations_can_be_swept(krill: Krill, corpus: str, tmp_path: Path):
    done = krill(
        "preprocess", "-m", "data.min_chars=100,2000", "data=files", corpus, "tokenizer.vocab_size=600"
    )

    assert len(list((tmp_path / "outputs" / "data").glob("files-*"))) == 2
    assert Path(done.stdout.splitlines()[-1]).is_dir()


def test_duplicate_points_are_skipped(krill: Krill, corpus: str, tmp_path: Path):
    overrides = ("-m", "hardware=auto,cpu", "tokenizer.vocab_size=300,310", "data=files", corpus, "name=same")
    done = krill("tokenizer", *overrides, "sweep.max_parallel=2", "device=cpu")
    assert "4 points" in done.stderr
    assert "2 duplicate points skipped" in done.stderr
    table = read_table(tmp_path / "outputs" / "sweeps" / "same")
    assert [row["state"] for row in table] == ["finished", "finished"]
    assert all("hardware=auto" in row["overrides"] for row in table)


def test_the_slurm_launcher_composes(krill: Krill):
    done = krill("train", "hydra/launcher=submitit_slurm", "--cfg", "hydra")
    assert "SlurmLauncher" in done.stdout


def test_a_launcher_without_a_sweep_is_rejected(krill: Krill, tmp_path: Path):
    done = krill("train", "hydra/launcher=submitit_local", code=2)
    assert "add -m" in done.stderr
    assert not list(tmp_path.iterdir())


def test_points_of_a_swept_model_stay_in_one_sweep(krill: Krill, corpus: str, tmp_path: Path):
    overrides = ("data=files", corpus, *SMALL_RUN)
    done = krill("train", "-m", *overrides, "model=llama_pico,qwen3_pico")
    sweep = Path(done.stdout.splitlines()[-1])
    assert {row["state"] for row in read_table(sweep)} == {"finished"}
    assert {Path(row["folder"]).parent for row in read_table(sweep)} == {sweep}


FAILING_FILTER = """
import os, signal
from pathlib import Path

def keep(text, point):
    how = Path(f"failing-{point}")
    if how.exists():
        match how.read_text():
            case "raise":
                raise ValueError("bad luck")
            case "exit":
                os._exit(9)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
    return True
"""


def test_only_the_three_of_twenty_points_that_crashed_run_again(krill: Krill, corpus: str, tmp_path: Path):
    (tmp_path / "failing.py").write_text(FAILING_FILTER)
    for point, how in {3: "raise", 9: "exit", 14: "kill"}.items():
        (tmp_path / f"failing-{point}").write_text(how)
    rule = "data.filters=[{name:custom,keep:failing.py:keep,options:{point:NUMBER}}]"
    rules = ",".join(rule.partition("=")[2].replace("NUMBER", str(number)) for number in range(20))
    overrides = (
        "-m", f"data.filters={rules}", "data=files", corpus, "tokenizer.vocab_size=300", "name=twenty",
        "sweep.max_parallel=2", "device=cpu",
    )  # fmt: skip

    done = krill("tokenizer", *overrides, code=3)

    table = read_table(tmp_path / "outputs" / "sweeps" / "twenty")
    failed = {
        row["overrides"].partition("point:")[2].partition("}")[0]: row
        for row in table
        if row["state"] == "failed"
    }
    assert len(table) == 20
    assert sum(row["state"] == "finished" for row in table) == 17
    assert failed.keys() == {"3", "9", "14"}
    assert "bad luck" in failed["3"]["error"]
    assert "ended with exit code 9" in failed["9"]["error"]
    assert "was killed by SIGKILL" in failed["14"]["error"]
    assert "bad luck" in done.stderr
    assert "Traceback" in (Path(failed["3"]["folder"]) / "log.txt").read_text()
    for file in tmp_path.glob("failing-*"):
        file.unlink()

    done = krill("tokenizer", *overrides)

    assert done.stderr.count("already finished") == 17
    assert "point 3 of 3" in done.stderr
    assert {row["state"] for row in read_table(tmp_path / "outputs" / "sweeps" / "twenty")} == {"finished"}


def test_on_failure_stop_starts_no_point_after_a_failure(krill: Krill, corpus: str, tmp_path: Path):
    overrides = ("data=files", corpus, "name=stops", "sweep.on_failure=stop")
    krill("tokenizer", "-m", "tokenizer.vocab_size=65000,300,400", *overrides, code=3)
    states = [row["state"] for row in read_table(tmp_path / "outputs" / "sweeps" / "stops")]
    assert sorted(states) == ["failed", "not started", "not started"]


@pytest.mark.parametrize(
    "overrides", [("hardware=slurm_node",), ("-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", "dry_run=true")]
)
def test_a_machine_without_slurm_is_an_error_and_leaves_nothing(
    krill: Krill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = krill("train", *overrides, code=2)
    assert "no SLURM on this machine" in done.stderr
    assert "hardware=auto" in done.stderr
    assert not list(tmp_path.rglob("status.json"))


def test_detach_needs_slurm(krill: Krill, tmp_path: Path):
    done = krill("train", "detach=true", code=2)
    assert "add hardware=slurm_gpu" in done.stderr
    assert not list(tmp_path.iterdir())


BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "sweep_parent.py"


def test_the_benchmark_of_the_parent_of_a_sweep_runs(tmp_path: Path):
    result = tmp_path / "cost.json"
    options = ("--few", "1", "--many", "3", "--rounds", "1", "--result", str(result), "--dry-run")
    done = run_words(tmp_path, [sys.executable, str(BENCHMARK), *options], get_clean_environment())
    assert done.returncode == 0, done.stderr
    seconds = json.loads(result.read_text(encoding="utf-8"))["seconds_per_point"]
    assert seconds.keys() == {"train", "tokenizer"}
    assert all(kinds.keys() == {"compose", "pool"} for kinds in seconds.values())
