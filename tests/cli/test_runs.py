"""krill-runs: what is below outputs/, in every form, and its end."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from krill.cli import runs


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs and a sweep of which one point has not begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("KRILL_OUTPUTS", raising=False)
    root = tmp_path / "outputs"
    make(
        root / "runs/a/1-aaaa1111", "finished", start="2030-01-01T00:00:00+00:00", metrics={"eval_loss": 2.0}
    )
    make(root / "runs/a/2-aaaa2222", "failed", start="2030-01-02T00:00:00+00:00", error="no luck")
    make(root / "runs/b/1-bbbb1111", "running", start="2030-01-03T00:00:00+00:00", pid=2**22 + 1, steps=10)
    sweep = root / "sweeps/s"
    make(sweep / "cccc1111", "finished", overrides=["lr=1"], metrics={"eval_loss": 3.0})
    make(sweep / "cccc2222", "finished", overrides=["lr=2"], metrics={"eval_loss": 1.5})
    points = [
        {"folder": name, "overrides": [f"lr={name[-1]}"]} for name in ("cccc1111", "cccc2222", "cccc3333")
    ]
    (sweep / "sweep.json").write_text(
        json.dumps({"command": "train", "typed": ["lr=1,2,3"], "points": points})
    )
    (root / "runs/b/foreign").mkdir()
    (root / "runs/b/foreign/status.json").write_text("no JSON")
    return root


def make(folder: Path, state: str, **status: Any) -> Path:
    folder.mkdir(parents=True)
    whole = {
        "state": state,
        "signature": folder.name[-8:],
        "name": folder.parent.name,
        "overrides": [],
        **status,
    }
    whole = {"host": socket.gethostname(), "pid": os.getpid(), **whole}
    (folder / "status.json").write_text(json.dumps(whole))
    lr = next((word.partition("=")[2] for word in whole["overrides"]), 0)
    (folder / "config.yaml").write_text(yaml.safe_dump({"lr": float(lr), "batch": {"tokens": 1}}))
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 9.5}\n{"step": 4, "loss"')
    (folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(30)))
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    sys.argv = ["krill-runs", *words]
    assert runs.main() == code
    return capsys.readouterr().out


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    return list(json.loads(told(capsys, "list", *words, "--json")))


def test_everything_the_newest_first_and_sweeps_as_a_line(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys)
    places = [text.index(name) for name in ("1-bbbb1111", "2-aaaa2222", "1-aaaa1111", "outputs/sweeps/s: ")]
    assert places == sorted(places)
    assert "3 points: 2 finished, 1 not started; best 1.5000, cccc2222" in text
    assert "killed" in text, "its process is gone"
    assert "no luck" in text


def test_as_data(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys)
    assert len(rows) == 6
    running = next(row for row in rows if row["folder"].endswith("1-bbbb1111"))
    assert (running["state"], running["step"], running["steps"], running["loss"]) == ("killed", 3, 10, 9.5)
    table = list(csv.DictReader(io.StringIO(told(capsys, "list", "--csv"))))
    assert [row["folder"] for row in table] == [row["folder"] for row in rows]
    assert list(table[0]) == list(rows[0])


def test_of_a_state_or_a_name(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["error"] for row in listed(capsys, "--state", "failed")] == ["no luck"]
    assert {row["name"] for row in listed(capsys, "--name", "a")} == {"a"}
    told(capsys, "list", "--state", "dead", code=2)


@pytest.mark.parametrize("word", ["outputs/runs/a/1-aaaa1111", "outputs/runs/a/1*", "1-aaaa1111", "aaaa1"])
def test_a_run_has_many_names(outputs: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    text = told(capsys, "show", word)
    assert str(outputs / "runs/a/1-aaaa1111") in text
    assert "krill-infer outputs/runs/a/1-aaaa1111" in text


def test_which_one_is_meant_must_be_clear(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.argv = ["krill-runs", "show", "aaaa"]
    assert runs.main() == 2
    error = capsys.readouterr().err
    assert "outputs/runs/a/1-aaaa1111" in error
    assert "write more of it" in error
    for words, said in (
        (["show", "zzz"], "no run or sweep of this name"), (["lsit"], "Did you mean list?"),
        (["show"], "krill-runs --help"), (["list", "--jsn"], "krill-runs --help"),
    ):  # fmt: skip
        sys.argv = ["krill-runs", *words]
        assert runs.main() == 2
        assert said in capsys.readouterr().err


def test_what_went_wrong_is_shown_with_the_end_of_its_log(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "show", "aaaa2222")
    assert "no luck" in text
    assert "  line 29" in text
    sweep = told(capsys, "show", "outputs/sweeps/s")
    assert "krill-train -m lr=1,2,3" in sweep
    assert sweep.index("cccc2222") < sweep.index("cccc1111") < sweep.index("cccc3333"), "best first"
    assert json.loads(told(capsys, "show", "outputs/sweeps/s", "--json"))[0]["points"][0]["eval_loss"] == 1.5


def test_runs_side_by_side(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(told(capsys, "compare", "cccc1111", "cccc2222", "--json"))
    assert [row["eval_loss"] for row in found["runs"]] == [1.5, 3.0]
    assert {key: list(each.values()) for key, each in found["differences"].items()} == {"lr": [2.0, 1.0]}
    text = told(capsys, "compare", "outputs/sweeps/s")
    assert "batch.tokens" in text, "the point that has not begun has none"


def test_the_end_of_a_log(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "tail", "-n", "2", "aaaa1").splitlines() == ["line 28", "line 29"]
    assert told(capsys, "tail", "-f", "-n", "1", "aaaa1").splitlines() == ["line 29"], "it has ended"
    (outputs / "runs/a/1-aaaa1111/log-rank1.txt").write_text("other\n")
    assert told(capsys, "tail", "--rank", "1", "aaaa1") == "other\n"
    told(capsys, "tail", "--rank", "2", "aaaa1", code=2)


def test_watch_ends_when_nothing_runs(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cccc2222: finished" in told(capsys, "watch", "outputs/sweeps/s", "--every", "0.01")
    assert told(capsys, "watch") == ""


def test_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path))
    assert told(capsys) == ""


def test_a_thousand_runs_are_listed_at_once(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1000):
        make(outputs / f"runs/many/{number:04d}", "finished")
    began = time.process_time()
    assert len(listed(capsys, "--name", "many")) == 1000
    assert time.process_time() - began < 60, "no reading of whole histories"


@pytest.mark.slow
def test_cancelled_a_sweep_saves_and_begins_no_further_point(tmp_path: Path) -> None:
    here = Path(sys.executable).parent
    words = [
        "-m",
        "seed=0,1,2",
        "model=llama_pico",
        "sequence_len=64",
        "steps=100000",
        "name=s",
        "device=cpu",
    ]
    environment = os.environ | {"KRILL_OUTPUTS": str(tmp_path / "outputs"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([here / "krill-train", *words], cwd=tmp_path, env=environment) as parent:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("outputs/sweeps/s/*/metrics.jsonl")):
            assert time.monotonic() < until
            time.sleep(0.1)
        asked = [here / "krill-runs", "cancel", "outputs/sweeps/s"]
        done = subprocess.run(asked, cwd=tmp_path, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert "which runs outputs/sweeps/s: asked to save and end" in done.stderr
        assert parent.wait(timeout=60) == 75
    asked = [here / "krill-runs", "list", "outputs/sweeps/s", "--json"]
    found = subprocess.run(asked, cwd=tmp_path, env=environment, text=True, capture_output=True, check=True)
    assert sorted(row["state"] for row in json.loads(found.stdout)) == [
        "not started",
        "not started",
        "stopped",
    ]
