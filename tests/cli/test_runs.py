"""krill-runs lists, shows, compares, follows and cancels the runs in an outputs folder."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from console import get_clean_environment, get_server, run_words
from task_results import make_choices_result, make_text_result

from krill.cli import runs
from krill.evaluation.results import write_results
from krill.runs import cancel as cancelling
from krill.runs.table import RunRow

SCRIPT = Path(sys.executable).with_name("krill-runs")
LOCK_HOLDER = """
import signal, sys, time
from pathlib import Path
from filelock import FileLock
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a previous test may have left it ignored
lock = FileLock(Path(sys.argv[1]) / ".lock")
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates three runs, and a sweep with a point that has not started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("KRILL_OUTPUTS", raising=False)
    root = tmp_path / "outputs"
    make_run(
        root / "runs/a/1-aaaa1111", "finished", start="2030-01-01T00:00:00+00:00", metrics={"eval_loss": 2.0}
    )
    make_run(root / "runs/a/2-aaaa2222", "failed", start="2030-01-02T00:00:00+00:00", error="no luck")
    make_run(
        root / "runs/b/1-bbbb1111", "running", start="2030-01-03T00:00:00+00:00", pid=2**22 + 1, steps=10
    )
    sweep = root / "sweeps/s"
    make_run(sweep / "cccc1111", "finished", overrides=["lr=1"], metrics={"eval_loss": 3.0})
    make_run(sweep / "cccc2222", "finished", overrides=["lr=2"], metrics={"eval_loss": 1.5})
    points = [
        {"folder": name, "overrides": [f"lr={name[-1]}"]} for name in ("cccc1111", "cccc2222", "cccc3333")
    ]
    (sweep / "sweep.json").write_text(
        json.dumps({"command": "train", "typed": ["lr=1,2,3"], "points": points})
    )
    (root / "runs/b/foreign").mkdir()
    (root / "runs/b/foreign/status.json").write_text("no JSON")
    return root


def make_run(folder: Path, state: str, **status: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "state": state,
        "signature": folder.name[-8:],
        "name": folder.parent.name,
        "overrides": [],
        **status,
    }
    content = {"host": socket.gethostname(), "pid": os.getpid(), **content}
    (folder / "status.json").write_text(json.dumps(content))
    lr = next((item.partition("=")[2] for item in content["overrides"]), 0)
    (folder / "config.yaml").write_text(yaml.safe_dump({"lr": float(lr), "batch": {"tokens": 1}}))
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 9.5}\n{"step": 4, "loss"')
    (folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(30)))
    return folder


@contextmanager
def running_process(folder: Path, **status: Any) -> Iterator[subprocess.Popen[str]]:
    """Creates a run whose process is alive and holds its lock, without signal handlers."""
    folder.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_HOLDER, folder], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            make_run(folder, "running", pid=process.pid, **status)
            yield process
        finally:
            process.kill()


def fake_slurm(folder: Path, patch: pytest.MonkeyPatch, queue: str) -> Path:
    """Installs fake SLURM commands with this queue; returns the file that lists the cancelled jobs."""
    for name, script in (
        ("squeue", f"cat {folder}/queue"),
        ("sacct", ""),
        ("scancel", f"echo $* >> {folder}/cancelled"),
    ):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "queue").write_text(queue)
    patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder / "cancelled"


def run_krill_runs(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Runs krill-runs in this process and returns its standard output."""
    sys.argv = ["krill-runs", *arguments]
    assert runs.main() == code
    return capsys.readouterr().out


def list_rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    return list(json.loads(run_krill_runs(capsys, "list", *arguments, "--json")))


def test_runs_are_listed_newest_first_and_sweeps_as_one_line(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run_krill_runs(capsys)
    positions = [
        text.index(name) for name in ("1-bbbb1111", "2-aaaa2222", "1-aaaa1111", "outputs/sweeps/s: ")
    ]
    assert positions == sorted(positions)
    assert "3 points: 2 finished, 1 not started; best 1.5000, cccc2222" in text
    assert "killed" in text, "its process is gone"
    assert "no luck" in text


def test_json_and_csv_have_the_same_rows(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list_rows(capsys)
    assert len(rows) == 6
    running = next(row for row in rows if row["folder"].endswith("1-bbbb1111"))
    assert (running["state"], running["step"], running["steps"], running["loss"]) == ("killed", 3, 10, 9.5)
    table = list(csv.DictReader(io.StringIO(run_krill_runs(capsys, "list", "--csv"))))
    assert [row["folder"] for row in table] == [row["folder"] for row in rows]
    assert list(table[0]) == list(rows[0])


def test_the_list_is_filtered_by_state_and_name(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["error"] for row in list_rows(capsys, "--state", "failed")] == ["no luck"]
    assert {row["name"] for row in list_rows(capsys, "--name", "a")} == {"a"}
    assert len(list_rows(capsys, "--state", "failed, killed")) == 2


@pytest.mark.parametrize("text", ["outputs/runs/a/1-aaaa1111", "outputs/runs/a/1*", "1-aaaa1111", "aaaa1"])
def test_a_run_is_found_by_folder_name_signature_or_glob(
    outputs: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    shown = run_krill_runs(capsys, "show", text)
    assert str(outputs / "runs/a/1-aaaa1111") in shown
    assert "krill-infer outputs/runs/a/1-aaaa1111" in shown


def test_ambiguous_names_and_invalid_arguments_are_usage_errors(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.argv = ["krill-runs", "show", "aaaa"]
    assert runs.main() == 2
    error = capsys.readouterr().err
    assert "outputs/runs/a/1-aaaa1111" in error
    assert "use a longer prefix" in error
    for arguments, message in (
        (["show", "zzz"], "zzz: not the name of a run or sweep, nor a folder"), (["lsit"], "Did you mean list?"),
        (["aaaa1111"], "for the run use krill-runs show aaaa1111"), (["last"], "use krill-runs show last"),
        (["outputs/runs/a"], "for the run use krill-runs show outputs/runs/a"),
        (["outputs/my runs"], "use krill-runs show 'outputs/my runs'"),
        (["show"], "krill-runs --help"), (["list", "--jsn"], "krill-runs --help"), (["--"], "krill-runs --help"),
        (["list", "--json", "--csv"], "not allowed with argument --json"),
        (["list", "--state", "runing"], "no state 'runing'. Did you mean running?"),
        (["watch", "--every", "-1"], "'-1' should be a number of at least 0.01"),
        (["watch", "--every", "inf"], "'inf' should be a number of at least 0.01, at most 1,000,000,000"),
        (["tail", "-n", "few", "aaaa1"], "'few' should be a number of at least 0"),
        (["tail", "outputs/sweeps/s"], "is not a single run; use outputs/sweeps/s/best, or one of"),
        (["tail", "cccc3333"], "see the state of the run with krill-runs show outputs/sweeps/s/cccc3333"),
    ):  # fmt: skip
        sys.argv = ["krill-runs", *arguments]
        assert runs.main() == 2
        assert message in capsys.readouterr().err


def test_show_prints_the_error_and_the_end_of_the_log(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run_krill_runs(capsys, "show", "aaaa2222")
    assert "no luck" in text
    assert "  line 29" in text
    sweep = run_krill_runs(capsys, "show", "outputs/sweeps/s")
    assert "krill-train -m lr=1,2,3" in sweep
    assert sweep.index("cccc2222") < sweep.index("cccc1111") < sweep.index("cccc3333"), "best first"
    assert (
        json.loads(run_krill_runs(capsys, "show", "outputs/sweeps/s", "--json"))[0]["points"][0]["eval_loss"]
        == 1.5
    )


def test_show_prints_the_values_of_the_rule_as_text(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = [{"key": "lr", "text": "5.9e-03", "source": "rule: 1.6 M hidden parameters, 500 steps"}]
    make_run(outputs / "runs/ruled/2026-11-27_10-00-00-eeee5555", "finished", rule=rule)
    shown = run_krill_runs(capsys, "show", "ruled")
    assert "lr 5.9e-03 (rule: 1.6 M hidden parameters, 500 steps)" in shown
    assert "{" not in shown


def test_compare_prints_differing_keys_and_results(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = json.loads(run_krill_runs(capsys, "compare", "cccc1111", "cccc2222", "--json"))
    assert [row["eval_loss"] for row in comparison["runs"]] == [1.5, 3.0]
    assert {key: list(values.values()) for key, values in comparison["differences"].items()} == {
        "lr": [2.0, 1.0]
    }
    text = run_krill_runs(capsys, "compare", "outputs/sweeps/s")
    assert "batch.tokens" in text, "the point that has not started has no value"


def test_tail_prints_the_end_of_a_log(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_krill_runs(capsys, "tail", "-n", "2", "aaaa1").splitlines() == ["line 28", "line 29"]
    assert run_krill_runs(capsys, "tail", "-f", "-n", "1", "aaaa1").splitlines() == ["line 29"], (
        "it has ended"
    )
    (outputs / "runs/a/1-aaaa1111/log-rank1.txt").write_text("other\n")
    assert run_krill_runs(capsys, "tail", "--rank", "1", "aaaa1") == "other\n"
    run_krill_runs(capsys, "tail", "--rank", "2", "aaaa1", code=2)


def test_watch_ends_when_nothing_runs(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cccc2222: finished" in run_krill_runs(capsys, "watch", "outputs/sweeps/s", "--every", "0.01")
    assert run_krill_runs(capsys, "watch") == ""


def test_an_empty_outputs_folder_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path))
    assert run_krill_runs(capsys) == ""


def test_a_thousand_runs_are_listed_in_two_seconds(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = '{"step": 1, "loss": 9.5, "tokens_per_second": 100.0}\n' * 1000
    for number in range(1000):
        run = make_run(outputs / f"runs/many/{number:04d}", "finished")
        (run / "metrics.jsonl").write_text(metrics)
    start = time.process_time()
    assert len(list_rows(capsys, "--name", "many")) == 1000
    assert time.process_time() - start < 2


def test_the_columns_match_the_documentation(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    section = page[page.index("| column of table.csv") :]
    names = [name for line in section.splitlines() if line.startswith("| `") for name in
             re.findall(r"`(\w+)`", line.split("|")[1])]  # fmt: skip
    assert sorted(names) == sorted(RunRow.__dataclass_fields__)
    point = next(row for row in list_rows(capsys) if row["folder"].endswith("cccc3333"))
    assert (point["state"], point["overrides"], point["command"]) == ("not started", ["lr=3"], "train")
    assert point["sweep"] == str(outputs / "sweeps/s")


def test_an_uncertain_state_is_reported(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(outputs / "runs/c/1-dddd1111", "running", host="elsewhere")
    assert (
        "1-dddd1111: on elsewhere according to status.json; its lock is not visible on this machine"
        in run_krill_runs(capsys)
    )


def test_runs_in_other_folders_are_listed(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRILL_OUTPUTS", str(outputs.parent / "none"))
    assert [
        len(list_rows(capsys, str(outputs / folder))) for folder in ("", "runs", "runs/a", "sweeps/s")
    ] == [
        6,
        3,
        2,
        3,
    ]
    assert "runs/a: 2 points: 1 finished, 1 failed" in run_krill_runs(capsys, "show", "outputs/runs/a")


def test_a_submission_without_a_run_folder_is_listed_and_cancelled(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as krill-preprocess hardware=slurm_cpu detach=true, which suggests krill-runs watch outputs/jobs/…"""
    job = outputs / "jobs/2030-text"
    job.mkdir(parents=True)
    hydra = {"job": {"config_name": "preprocess"}, "overrides": {"task": ["data=files"]}}
    (job / "0.json").write_text(json.dumps({"folder": None, "config": {"name": "text"}, "hydra": hydra}))
    (job / "jobs.json").write_text('{"0": "17"}')
    (job / "17_0_log.err").write_text("it reads\n")
    cancelled = fake_slurm(outputs.parent, monkeypatch, "17|PENDING")
    assert "queued 17" in run_krill_runs(capsys)
    (row,) = list_rows(capsys, "outputs/jobs/2030-text")
    assert (row["state"], row["why"], row["job"], row["command"]) == ("queued", "pending", "17", "preprocess")
    assert "krill-runs watch outputs/jobs/2030-text" in run_krill_runs(capsys, "show", "2030-text")
    assert run_krill_runs(capsys, "tail", "2030-text") == "it reads\n"
    run_krill_runs(capsys, "cancel", "2030-text")
    assert cancelled.read_text() == "17\n"
    (outputs.parent / "queue").write_text("17|COMPLETED")
    assert "2030-text: finished" in run_krill_runs(capsys, "watch", "2030-text")


def test_tail_waits_for_a_log_that_does_not_exist_yet(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = outputs / "runs/c/1-eeee1111"
    with running_process(folder) as process:
        (folder / "log.txt").unlink()
        run_krill_runs(capsys, "tail", "eeee1", code=2)

        def write() -> None:
            time.sleep(0.7)
            (folder / "log.txt").write_text("first\n")
            process.kill()

        writer = threading.Thread(target=write)
        writer.start()
        assert run_krill_runs(capsys, "tail", "-f", "eeee1") == "first\n"
        writer.join()


@pytest.mark.parametrize("terminal", [False, True])
def test_an_interrupt_ends_only_krill_runs_watch(outputs: Path, terminal: bool) -> None:
    with running_process(outputs / "runs/c/1-eeee1111") as process:
        master, slave = pty.openpty()
        out = slave if terminal else subprocess.PIPE
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
        with subprocess.Popen(
            [SCRIPT, "watch", "--every", "0.1"], stdout=out, stderr=subprocess.PIPE, env=environment
        ) as watching:
            os.close(slave)
            text = b""
            while b"eeee1111" not in text:
                data = os.read(master if terminal else watching.stdout.fileno(), 4096)  # type: ignore[union-attr]
                assert data, watching.stderr.read()  # type: ignore[union-attr]
                text += data
            assert (b"overrides" in text) == terminal, "a table on a terminal, else a line"
            watching.send_signal(signal.SIGINT)
            assert watching.wait(timeout=20) == 130
        os.close(master)
        assert process.poll() is None


def test_cancel_sends_sigterm_to_a_run(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_process(outputs / "runs/c/1-eeee1111") as process:
        process.send_signal(signal.SIGSTOP)  # as Ctrl-Z does: it handles no signal before it continues
        sys.argv = ["krill-runs", "cancel", "eeee1", "aaaa1"]
        assert runs.main() == 0
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"outputs/runs/c/1-eeee1111: sent SIGTERM to process {process.pid}" in captured.err
        assert "1-aaaa1111: nothing to cancel, it is finished" in captured.err
        assert process.wait(timeout=20) == -signal.SIGTERM
    assert [row["state"] for row in list_rows(capsys, "outputs/runs/c")] == ["killed"]


def test_a_sweep_that_ends_before_the_signal_is_not_an_error(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = outputs / "sweeps/s/sweep.json"
    record = {"pid": 2**22 + 1, "host": socket.gethostname(), "start": "2030-01-01T00:00:00+00:00"}
    sweep.write_text(json.dumps(json.loads(sweep.read_text()) | record))
    monkeypatch.setattr(cancelling, "_is_sweep_process_alive", lambda record: True)
    sys.argv = ["krill-runs", "cancel", "outputs/sweeps/s"]
    assert runs.main() == 0
    assert f"outputs/sweeps/s: process {2**22 + 1} has ended" in capsys.readouterr().err


def test_runs_that_cannot_be_cancelled_from_this_machine_are_reported(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(outputs / "runs/c/1-dddd1111", "running", host="elsewhere")
    make_run(outputs / "runs/c/2-dddd2222", "running", slurm_job_id="7")
    sys.argv = ["krill-runs", "cancel", "dddd1"]
    assert runs.main() == 1
    assert "the run is on elsewhere; run this command there" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(outputs))
    sys.argv = ["krill-runs", "cancel", "dddd2"]
    assert runs.main() == 1
    assert "run it on a machine of the cluster: scancel 7" in capsys.readouterr().err


def test_cancel_does_not_signal_a_process_with_a_reused_pid(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The PID of an ended sweep may belong to another process, even one with krill in its path."""
    with running_process(outputs / "runs/c/krill-1111") as process:
        sweep = outputs / "sweeps/s/sweep.json"
        record = json.loads(sweep.read_text()) | {"pid": process.pid, "host": socket.gethostname()}
        for start in ("2020-01-01T00:00:00+00:00", None, "x"):
            sweep.write_text(json.dumps(record | {"start": start}))
            sys.argv = ["krill-runs", "cancel", "outputs/sweeps/s"]
            assert runs.main() == 0
            assert "outputs/sweeps/s: nothing is running or queued" in capsys.readouterr().err
        assert process.poll() is None
        sweep.write_text(json.dumps(record | {"start": "2100-01-01T00:00:00+00:00"}))
        assert runs.main() == 0
        assert f"outputs/sweeps/s: sent SIGTERM to process {process.pid}" in capsys.readouterr().err
        assert process.wait(timeout=20) == -signal.SIGTERM


def test_cancel_cancels_the_jobs_of_a_sweep(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cancelled = fake_slurm(outputs.parent, monkeypatch, "7_0|RUNNING\n7_1|PENDING\n")
    make_run(outputs / "sweeps/s/cccc1111", "running", slurm_job_id="7_0")
    make_run(outputs / "sweeps/s/cccc2222", "running", slurm_job_id="7_1")
    assert {row["state"] for row in list_rows(capsys, "outputs/sweeps/s")} == {
        "running",
        "queued",
        "not started",
    }
    run_krill_runs(capsys, "cancel", "outputs/sweeps/s")
    assert cancelled.read_text().split() == ["7_0", "7_1"]


def wait_until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_cancelled_sweep_saves_its_run_and_starts_no_further_point(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {number} of a small text " * 20}) for number in range(100)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    environment = get_clean_environment() | {"KRILL_OUTPUTS": str(tmp_path / "outputs")}
    sweep = [
        str(SCRIPT.with_name("krill-train")), "-m", "seed=0,1,2", "model=llama_pico", "sequence_len=64",
        "data=files", "data.paths=[text.jsonl]", "data.min_chars=0", "data.validation_fraction=0.2",
        "tokenizer.vocab_size=320", "steps=100000", "name=s", "device=cpu", "sweep.max_parallel=1",
    ]  # fmt: skip
    parent = get_server().spawn(sweep, env=environment, cwd=tmp_path)
    try:
        wait_until(lambda: list(tmp_path.glob("outputs/sweeps/s/*/metrics.jsonl")))
        (point,) = tmp_path.glob("outputs/sweeps/s/*/metrics.jsonl")
        with open(tmp_path / "tail.txt", "wb") as output:
            follow = [str(SCRIPT), "tail", "-f", "-n", "1", point.parent.name]
            tail = get_server().spawn(follow, env=environment, cwd=tmp_path, stdout=output)
        wait_until(lambda: (tmp_path / "tail.txt").read_text())
        assert tail.poll() is None
        done = run_words(tmp_path, [str(SCRIPT), "cancel", "outputs/sweeps/s"], environment)
        assert done.returncode == 0, done.stderr
        assert f"outputs/sweeps/s: sent SIGTERM to process {parent.pid}" in done.stderr
        assert parent.wait(60) == 75
        assert tail.wait(60) == 0, "tail ends with the run"
    finally:
        parent.kill()
    listing = run_words(tmp_path, [str(SCRIPT), "list", "outputs/sweeps/s", "--json"], environment)
    states = sorted(row["state"] for row in json.loads(listing.stdout))
    assert states == ["not started", "not started", "stopped"]


@pytest.fixture
def evaluated(outputs: Path) -> Path:
    """Creates two runs of one sweep with results, one of which has older ones and some of a checkpoint."""
    sweep = outputs / "sweeps/s"
    old = make_choices_result([0.0] * 40).model_copy(
        update={"signature": "a" * 64, "weights_folder": "model"}
    )
    checkpoint = old.model_copy(update={"signature": "b" * 64, "weights_folder": "checkpoints/checkpoint-2"})
    for name, values in (("cccc1111", [1.0, 0.0] * 20), ("cccc2222", [1.0] * 40)):
        if name == "cccc1111":
            write_results(sweep / name, [old])
            os.utime(next((sweep / name / "evaluations").iterdir()), (0, 0))
        update = {"signature": name * 8, "weights": name, "weights_folder": "model"}
        results = [make_choices_result(values), make_text_result([1.0, 2.0])]
        write_results(sweep / name, [one.model_copy(update=update) for one in results])
        write_results(sweep / name, [checkpoint])
        (sweep / name / "evaluations" / "damaged.json").write_text("{")
    return outputs


def test_the_newest_scores_of_final_models_are_listed(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table_text = run_krill_runs(capsys, "list", "s")
    assert "scores" in table_text.splitlines()[0]
    assert "english_pairs 50.0 %, text 1.500" in table_text
    assert "scores" not in run_krill_runs(capsys, "list", "a").splitlines()[0]
    shown = run_krill_runs(capsys, "show", "cccc1111")
    assert re.search(r"^english_pairs +accuracy 50.0 %, 0.0 % to 100.0 %, 40 items$", shown, re.MULTILINE)
    (value,) = json.loads(run_krill_runs(capsys, "show", "cccc1111", "--json"))
    assert [(score["task"], score["value"], score["items"]) for score in value["scores"]] == [
        ("english_pairs", 0.5, 40), ("text", 1.5, 2),
    ]  # fmt: skip
    rows = csv.DictReader(io.StringIO(run_krill_runs(capsys, "list", "s", "--csv")))
    assert [row["scores"] for row in rows] == [
        "english_pairs=0.5 text=1.5", "english_pairs=1 text=1.5", "",
    ]  # fmt: skip


def test_scores_are_compared_item_by_item(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run_krill_runs(capsys, "compare", "cccc1111", "cccc2222")
    assert "50.0 % *" in text
    assert "McNemar's test" in text
    value = json.loads(run_krill_runs(capsys, "compare", "cccc1111", "cccc2222", "--json"))
    rows = value["scores"]["sets"][0]["rows"]
    assert [row["scores"]["english_pairs"]["value"] for row in rows] == [1.0, 0.5]
    assert rows[1]["scores"]["english_pairs"]["against_best"]["is_significant"]
