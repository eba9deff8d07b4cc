"""The plans of runs beside what they took: which runs count, and the ratios over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krill.cli import runs
from krill.runs.find import Run, run_at
from krill.runs.plan_record import collect_plan_records, read_plan_record
from krill.runs.record import write_status


def make_run(folder: Path, seconds: float, memory_gb: float, **status: Any) -> Run:
    """Creates a run with a plan of 100 seconds and 1 GB, of which 0.2 GB are the context."""
    folder.mkdir(parents=True)
    memory = {
        "total": 10**9,
        "peak": "forward",
        "moments": {"forward": {"weights": 8 * 10**8, "context": 2 * 10**8}},
    }
    plan = {"device": "cpu", "seconds": {"total": 100.0}, "memory": memory}
    content = {
        "state": "finished", "signature": "5" * 8, "name": "a", "command": "train", "starts": 1, "plan": plan,
        "seconds": seconds, "start": "2030-01-01T00:00:00+00:00", "last_start": "2030-01-01T00:00:00+00:00",
        "end": "2030-01-01T00:10:00+00:00", "metrics": {"step": 4},
    }  # fmt: skip
    write_status(folder, content | status)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 4, "memory_gb": memory_gb}) + "\n")
    run = run_at(folder)
    assert isinstance(run, Run)
    return run


@pytest.fixture
def planned_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KRILL_OUTPUTS", raising=False)
    root = tmp_path / "outputs/runs/a"
    return [
        make_run(root / "1", 80.0, 0.8),
        make_run(root / "2", 100.0, 1.0),
        make_run(root / "3", 200.0, 1.25),
        make_run(root / "resumed", 300.0, 1.0, starts=2),
        make_run(root / "early", 10.0, 1.0, metrics={"step": 2, "stopped_by": "stop.patience"}),
        make_run(root / "failed", 10.0, 1.0, state="failed"),
        make_run(root / "old", 10.0, 1.0, plan=None),
        make_run(root / "text", 10.0, 1.0, command="preprocess"),
    ]


def test_only_comparable_runs_count(planned_runs: list[Run]) -> None:
    records = collect_plan_records(planned_runs)
    assert sorted(run.folder.name for run in records.runs) == ["1", "2", "3"]
    assert records.left_out == {"resumed": 1, "stopped early": 1, "not finished": 1, "without a plan": 1}
    assert records.summarize() == {
        "time": {"min": 0.5, "median": 1.0, "max": 1.25},
        "memory": {"min": 0.8, "median": 1.0, "max": 1.25},
    }


def test_the_preparation_of_the_tokens_does_not_count(tmp_path: Path) -> None:
    record = read_plan_record(make_run(tmp_path / "a", 90.0, 1.0, preparation_seconds=40.0).folder)
    assert record is not None
    assert record.seconds == 50.0


def test_the_start_of_the_command_counts(tmp_path: Path) -> None:
    record = read_plan_record(make_run(tmp_path / "a", 90.0, 1.0, command_seconds=95.0).folder)
    assert record is not None
    assert record.seconds == 95.0


@pytest.mark.parametrize(
    "plan", [{"seconds": {"total": 1.0}}, {"device": "h100", "seconds": 3, "memory": {}}]
)
def test_a_plan_of_another_form_does_not_count(tmp_path: Path, plan: dict[str, Any]) -> None:
    run = make_run(tmp_path / "a", 90.0, 1.0, plan=plan)
    assert read_plan_record(run.folder) is None


def test_the_evaluation_at_the_end_counts(tmp_path: Path) -> None:
    record = read_plan_record(make_run(tmp_path / "a", 90.0, 1.0, peak_memory=2 * 10**9).folder)
    assert record is not None
    assert record.memory_ratio == 0.5


def test_the_context_of_a_gpu_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 90.0, 0.8)
    assert run.status is not None
    write_status(run.folder, run.status | {"plan": run.status["plan"] | {"device": "h100"}})
    record = read_plan_record(run.folder)
    assert record is not None
    assert (record.planned_memory, record.memory_ratio) == (8 * 10**8, 1.0)


def test_krill_runs_plans_prints_the_ratios(
    planned_runs: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs._run_subcommand(["plans"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "outputs/runs/a/3 cpu 1:40 min 3:20 min 0.50 1 GB 1.25 GB 0.80" in out
    assert "time planned ÷ took: 0.5 to 1.25, 1 in the median of 3 runs" in out
    assert "left out 4 trainings: " in out
    assert "1 resumed" in out
    assert runs._run_subcommand(["plans", "--json", "outputs/runs/a/1"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["ratio"]["memory"] == {"min": 1.25, "median": 1.25, "max": 1.25}
    assert values["runs"][0]["time_ratio"] == 1.25
    assert values["left_out"] == {}


def test_show_has_the_plan_of_a_run(planned_runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(planned_runs[0].folder)
    assert runs._run_subcommand(["show", folder]) == 0
    out = capsys.readouterr().out
    assert "planned             1:40 min and 1 GB of memory; took 1:20 min and 0.8 GB" in out
    assert "moments" not in out
    assert runs._run_subcommand(["show", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["planned"]["time_ratio"] == 1.25
