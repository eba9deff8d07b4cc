"""krill-runs: what is below outputs/, in every form, and its end."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from krill.cli import runs
from krill.runs.table import RunRow

SCRIPT = Path(sys.executable).with_name("krill-runs")
HOLDER = """
import signal, sys, time
from pathlib import Path
from filelock import FileLock
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ignored where a test before left it so
lock = FileLock(Path(sys.argv[1]) / ".lock")
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


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
    folder.mkdir(parents=True, exist_ok=True)
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


@contextmanager
def running(folder: Path, **status: Any) -> Iterator[subprocess.Popen[str]]:
    """A run with a process that lives and holds its lock; it knows nothing of signals."""
    folder.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            make(folder, "running", pid=process.pid, **status)
            yield process
        finally:
            process.kill()


def slurm(folder: Path, patch: pytest.MonkeyPatch, queue: str) -> Path:
    """SLURM with this in its queue; what scancel is asked is noted."""
    for name, lines in (
        ("squeue", f"cat {folder}/queue"),
        ("sacct", ""),
        ("scancel", f"echo $* >> {folder}/ended"),
    ):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "queue").write_text(queue)
    patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder / "ended"


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
    assert len(listed(capsys, "--state", "failed, killed")) == 2


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
        (["show"], "krill-runs --help"), (["list", "--jsn"], "krill-runs --help"), (["--"], "krill-runs --help"),
        (["list", "--json", "--csv"], "not allowed with argument --json"),
        (["list", "--state", "runing"], "no state 'runing'. Did you mean running?"),
        (["watch", "--every", "-1"], "'-1' should be a number from 0.01 on"),
        (["tail", "-n", "few", "aaaa1"], "'few' should be a number from 0 on"),
        (["tail", "outputs/sweeps/s"], "is no single run; name one of: krill-runs list outputs/sweeps/s"),
        (["tail", "cccc3333"], "krill-runs show outputs/sweeps/s/cccc3333 tells how the run stands"),
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
        run = make(outputs / f"runs/many/{number:04d}", "finished")
        (run / "metrics.jsonl").write_text('{"step": 1, "loss": 9.5, "tokens_per_second": 100.0}\n' * 1000)
    began = time.process_time()
    assert len(listed(capsys, "--name", "many")) == 1000
    assert time.process_time() - began < 2


def test_the_columns_are_those_that_the_documents_name(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    section = page[page.index("| column of table.csv") :]
    names = [name for line in section.splitlines() if line.startswith("| `") for name in
             re.findall(r"`(\w+)`", line.split("|")[1])]  # fmt: skip
    assert sorted(names) == sorted(RunRow.__dataclass_fields__)
    point = next(row for row in listed(capsys) if row["folder"].endswith("cccc3333"))
    assert (point["state"], point["overrides"], point["command"]) == ("not started", ["lr=3"], "train")
    assert point["sweep"] == str(outputs / "sweeps/s")


def test_what_is_uncertain_is_said(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(outputs / "runs/c/1-dddd1111", "running", host="elsewhere")
    assert "1-dddd1111: on elsewhere, says its status; its lock is not seen from here" in told(capsys)


def test_other_folders_of_runs(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRILL_OUTPUTS", str(outputs.parent / "none"))
    assert [len(listed(capsys, str(outputs / place))) for place in ("", "runs", "runs/a", "sweeps/s")] == [
        6,
        3,
        2,
        3,
    ]
    assert "runs/a: 2 points: 1 finished, 1 failed" in told(capsys, "show", "outputs/runs/a")


def test_what_was_submitted_without_a_folder_of_its_own(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As krill-preprocess hardware=slurm_cpu detach=true, which says: next krill-runs watch outputs/jobs/…"""
    job = outputs / "jobs/2030-text"
    job.mkdir(parents=True)
    hydra = {"job": {"config_name": "preprocess"}, "overrides": {"task": ["data=files"]}}
    (job / "0.json").write_text(json.dumps({"folder": None, "config": {"name": "text"}, "hydra": hydra}))
    (job / "jobs.json").write_text('{"0": "17"}')
    (job / "17_0_log.err").write_text("it reads\n")
    ended = slurm(outputs.parent, monkeypatch, "17|PENDING")
    assert "queued 17" in told(capsys)
    (row,) = listed(capsys, "outputs/jobs/2030-text")
    assert (row["state"], row["why"], row["job"], row["command"]) == ("queued", "pending", "17", "preprocess")
    assert "krill-runs watch outputs/jobs/2030-text" in told(capsys, "show", "2030-text")
    assert told(capsys, "tail", "2030-text") == "it reads\n"
    told(capsys, "cancel", "2030-text")
    assert ended.read_text() == "17\n"
    (outputs.parent / "queue").write_text("17|COMPLETED")
    assert "2030-text: finished" in told(capsys, "watch", "2030-text")


def test_a_log_that_is_not_there_yet_is_waited_for(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = outputs / "runs/c/1-eeee1111"
    with running(folder) as process:
        (folder / "log.txt").unlink()
        told(capsys, "tail", "eeee1", code=2)

        def write() -> None:
            time.sleep(0.7)
            (folder / "log.txt").write_text("first\n")
            process.kill()

        writer = threading.Thread(target=write)
        writer.start()
        assert told(capsys, "tail", "-f", "eeee1") == "first\n"
        writer.join()


@pytest.mark.parametrize("terminal", [False, True])
def test_an_interrupt_ends_only_the_watching(outputs: Path, terminal: bool) -> None:
    with running(outputs / "runs/c/1-eeee1111") as process:
        master, slave = pty.openpty()
        out = slave if terminal else subprocess.PIPE
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
        with subprocess.Popen(
            [SCRIPT, "watch", "--every", "0.1"], stdout=out, stderr=subprocess.PIPE, env=environment
        ) as watching:
            os.close(slave)
            text = b""
            while b"eeee1111" not in text:
                piece = os.read(master if terminal else watching.stdout.fileno(), 4096)  # type: ignore[union-attr]
                assert piece, watching.stderr.read()  # type: ignore[union-attr]
                text += piece
            assert (b"overrides" in text) == terminal, "a table, or a line"
            watching.send_signal(signal.SIGINT)
            assert watching.wait(timeout=20) == 130
        os.close(master)
        assert process.poll() is None


def test_a_run_that_is_cancelled_is_asked_to_end(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(outputs / "runs/c/1-eeee1111") as process:
        sys.argv = ["krill-runs", "cancel", "eeee1", "aaaa1"]
        assert runs.main() == 0
        said = capsys.readouterr()
        assert said.out == ""
        assert f"outputs/runs/c/1-eeee1111: process {process.pid} asked to save and end" in said.err
        assert "1-aaaa1111 is finished: there is nothing to end" in said.err
        assert process.wait(timeout=20) == -signal.SIGTERM
    assert [row["state"] for row in listed(capsys, "outputs/runs/c")] == ["killed"]


def test_what_cannot_be_cancelled_from_here_is_refused(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(outputs / "runs/c/1-dddd1111", "running", host="elsewhere")
    make(outputs / "runs/c/2-dddd2222", "running", slurm_job_id="7")
    sys.argv = ["krill-runs", "cancel", "dddd1"]
    assert runs.main() == 1
    assert "runs on elsewhere: give the command there" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(outputs))
    sys.argv = ["krill-runs", "cancel", "dddd2"]
    assert runs.main() == 1
    assert "where SLURM is, type scancel 7" in capsys.readouterr().err


def test_a_sweep_that_has_ended_signals_nobody(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its number may belong to another process by now, one with krill in its path, too."""
    with running(outputs / "runs/c/krill-1111") as process:
        sweep = outputs / "sweeps/s/sweep.json"
        told_by = json.loads(sweep.read_text()) | {"pid": process.pid, "host": socket.gethostname()}
        for start in ("2020-01-01T00:00:00+00:00", None, "x"):
            sweep.write_text(json.dumps(told_by | {"start": start}))
            sys.argv = ["krill-runs", "cancel", "outputs/sweeps/s"]
            assert runs.main() == 0
            assert "outputs/sweeps/s: nothing of it runs or waits" in capsys.readouterr().err
        assert process.poll() is None
        sweep.write_text(json.dumps(told_by | {"start": "2100-01-01T00:00:00+00:00"}))
        assert runs.main() == 0
        assert "which runs outputs/sweeps/s: asked to save and end" in capsys.readouterr().err
        assert process.wait(timeout=20) == -signal.SIGTERM


def test_the_jobs_of_a_sweep_are_cancelled(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = slurm(outputs.parent, monkeypatch, "7_0|RUNNING\n7_1|PENDING\n")
    make(outputs / "sweeps/s/cccc1111", "running", slurm_job_id="7_0")
    make(outputs / "sweeps/s/cccc2222", "running", slurm_job_id="7_1")
    assert {row["state"] for row in listed(capsys, "outputs/sweeps/s")} == {
        "running",
        "queued",
        "not started",
    }
    told(capsys, "cancel", "outputs/sweeps/s")
    assert ended.read_text().split() == ["7_0", "7_1"]


@pytest.mark.slow
def test_a_sweep_that_is_cancelled_saves_and_begins_no_further_point(tmp_path: Path) -> None:
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
        (point,) = tmp_path.glob("outputs/sweeps/s/*/metrics.jsonl")
        follow = [here / "krill-runs", "tail", "-f", "-n", "1", point.parent.name]
        following = subprocess.Popen(follow, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE)
        assert following.stdout is not None
        following.stdout.readline()
        assert following.poll() is None
        asked = [here / "krill-runs", "cancel", "outputs/sweeps/s"]
        done = subprocess.run(asked, cwd=tmp_path, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert "which runs outputs/sweeps/s: asked to save and end" in done.stderr
        assert parent.wait(timeout=60) == 75
        following.communicate(timeout=60)
        assert following.returncode == 0, "it ended with the run"
    asked = [here / "krill-runs", "list", "outputs/sweeps/s", "--json"]
    found = subprocess.run(asked, cwd=tmp_path, env=environment, text=True, capture_output=True, check=True)
    assert sorted(row["state"] for row in json.loads(found.stdout)) == [
        "not started",
        "not started",
        "stopped",
    ]
