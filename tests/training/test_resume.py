"""Tests that an interrupted run resumes by the same command and ends as an uninterrupted one."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from faults import train_and_kill, train_and_signal
from filelock import FileLock
from trainings import assert_same_result

from krill.config.paths import quote_path
from krill.runs import checkpoints
from krill.runs.json_lines import read_jsonl, read_metrics
from krill.runs.record import read_status
from krill.runs.table import read_rows


@pytest.fixture
def uninterrupted_run(krill_train: Any) -> Any:
    """uninterrupted_run("lr=1"): trains and returns the folder; the same command then starts another run."""

    def run(*overrides: str) -> Path:
        assert krill_train(*overrides) == 0
        return krill_train.runs()[-1]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "when", "extra_overrides"),
    [
        (7, "between", ("optimizer=adamw", "steps=8", "save_every=4", "eval_every=5")),
        (5, "saving", ("optimizer=muon_moonlight", "steps=8", "log_every=3", "save_every=4", "eval_every=4")),
        (21, "between", ("optimizer=muon_keller", "epochs=2", "steps=null", "save_every=5", "log_every=7")),
    ],
    ids=["adamw", "muon while saving", "in the second epoch"],
)
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(
    step: int, when: str, extra_overrides: tuple[str, ...], krill_train: Any, uninterrupted_run: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    uninterrupted = uninterrupted_run(*extra_overrides)
    if "epochs=2" in extra_overrides:
        assert step * 2 > count_rows_per_epoch(uninterrupted), "not yet in the second epoch"

    train_and_kill(krill_train, step, when, *extra_overrides)
    assert sorted(krill_train.states()) == ["finished", "running"]
    (folder,) = set(krill_train.runs()) - {uninterrupted}
    assert (folder / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists() == (when == "saving")
    last_step = checkpoints.parse_step(checkpoints.list_checkpoints(folder / "checkpoints")[-1])
    assert 0 < last_step < step

    capsys.readouterr()
    assert krill_train(*extra_overrides) == 0
    output = capsys.readouterr()
    assert f"resuming in runs/llama_pico/{folder.name}" in output.err
    assert f"resuming from step {last_step}" in output.err
    assert output.out.strip() == f"runs/llama_pico/{folder.name}"
    assert krill_train.states() == ["finished", "finished"]
    assert_same_result(folder, uninterrupted)
    assert (read_status(folder) or {})["starts"] == 2
    assert not (folder / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()


def count_rows_per_epoch(folder: Path) -> int:
    """Returns the number of rows per epoch, from the first line of metrics."""
    line = read_metrics(folder)[0]
    return round(line["step"] * 2 / line["epoch"])


def test_sigterm_saves_exits_with_75_and_the_same_command_resumes(
    krill_train: Any, uninterrupted_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("steps=7", "log_every=5", "save_every=50")
    uninterrupted = uninterrupted_run(*overrides)
    assert train_and_signal(krill_train, signal.SIGTERM, 3, *overrides) == 75
    assert capsys.readouterr().err.endswith(
        "krill-train: interrupted by SIGTERM at step 3 of 7; checkpoint saved. Run the same command to resume.\n"
    )
    (folder,) = set(krill_train.runs()) - {uninterrupted}
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["exit"]) == ("stopped", 75)
    assert [
        checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(folder / "checkpoints")
    ] == [3]
    assert not (folder / "model").exists()
    assert [row.step for row in read_rows([folder, uninterrupted])] == [3, 7]  # logged: step 1

    assert krill_train(*overrides) == 0
    assert_same_result(folder, uninterrupted)


def test_sigint_saves_and_exits_with_130(krill_train: Any) -> None:
    assert train_and_signal(krill_train, signal.SIGINT, 2, "save_every=50") == 130
    (folder,) = krill_train.runs()
    assert (read_status(folder) or {})["state"] == "stopped"
    assert (read_status(folder) or {})["exit"] == 130
    assert len(checkpoints.list_checkpoints(folder / "checkpoints")) == 1


def test_a_run_killed_after_the_last_step_only_writes_its_results(
    krill_train: Any, uninterrupted_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = uninterrupted_run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("krill.training.run.save_final_model", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert krill_train() == 75  # not training: stops at once, everything is saved already
    (folder,) = set(krill_train.runs()) - {uninterrupted}
    assert krill_train.states().count("stopped") == 1
    assert krill_train() == 0
    assert_same_result(folder, uninterrupted)


def test_a_resumed_run_may_change_its_intervals(krill_train: Any) -> None:
    train_and_signal(krill_train, signal.SIGTERM, 2, "save_every=50", "steps=6")
    assert krill_train("save_every=3", "eval_every=5", "log_every=2", "keep_checkpoints=9", "steps=6") == 0
    (folder,) = krill_train.runs()
    assert [
        checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(folder / "checkpoints")
    ] == [2, 3, 6]
    assert [line["step"] for line in read_metrics(folder) if "eval_loss" in line] == [5, 6]
    assert [line["step"] for line in read_metrics(folder) if "loss" in line] == [1, 2, 4, 6]


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "config.yaml"])
def test_a_damaged_file_of_a_run_is_an_error(
    krill_train: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    overrides = ("steps=6", "save_every=50")
    assert train_and_signal(krill_train, signal.SIGTERM, 2, *overrides) == 75
    (folder,) = krill_train.runs()
    (folder / name).write_bytes(b'{"step": 1, "loss": [\n')
    capsys.readouterr()
    assert krill_train(*overrides) in (1, 2)
    errors = capsys.readouterr().err
    assert re.search(rf"krill-train: error: .*{re.escape(name)} is damaged", errors)
    assert "Traceback" not in errors
    assert krill_train.runs() == [folder]
    (folder / name).write_text("")
    if name == "status.json":
        overrides = (*overrides, f"resume={folder}", "resume_changed=true")
    else:
        (folder / name).unlink()
        (folder / f".{name}.checksums").unlink(missing_ok=True)  # as the error says
    assert krill_train(*overrides) == 0
    assert "resuming from step 2" in capsys.readouterr().err
    assert krill_train.states() == ["finished"]


def test_line_separators_in_names_and_samples_do_not_end_a_line(krill_train: Any, texts: Path) -> None:
    files = [krill_train.outputs / f"a{separator}b.jsonl" for separator in ("\u2028", "\x85")]
    lines = texts.read_text().splitlines(keepends=True)
    for index, file in enumerate(files):
        file.write_text("".join(lines[index::2]))
    overrides = [
        f"data.paths=[{files[0]},{files[1]}]",
        "sample_every=1",
        "sample_prompt='the\u2028fox'",
        "eval_every=1",
    ]
    assert train_and_signal(krill_train, signal.SIGTERM, 2, *overrides) == 75
    assert krill_train(*overrides) == 0
    (folder,) = krill_train.runs()
    assert [line["step"] for line in read_jsonl(folder / "samples.jsonl")] == [1, 2, 3, 4]


# --- which run resumes -------------------------------------------------------------------------------------


def test_a_finished_run_stays_and_the_command_starts_another(krill_train: Any) -> None:
    assert krill_train() == krill_train() == 0
    assert krill_train.states() == ["finished", "finished"]


def test_another_configuration_starts_another_run(krill_train: Any) -> None:
    train_and_signal(krill_train, signal.SIGTERM, 2)
    assert krill_train("seed=1") == 0
    assert sorted(krill_train.states()) == ["finished", "stopped"]


def test_a_running_run_is_not_resumed(krill_train: Any) -> None:
    train_and_signal(krill_train, signal.SIGTERM, 2)
    (folder,) = krill_train.runs()
    before = (folder / "status.json").read_bytes()
    with FileLock(folder / ".lock"):
        assert krill_train() == 0
    assert (folder / "status.json").read_bytes() == before
    assert len(krill_train.runs()) == 2


def test_resume_false_starts_from_scratch(krill_train: Any) -> None:
    train_and_signal(krill_train, signal.SIGTERM, 2)
    assert krill_train("resume=false") == 0
    assert sorted(krill_train.states()) == ["finished", "stopped"]


def test_resume_local_resumes_or_fails(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train("resume=local") == 2
    assert "no unfinished run of this configuration" in capsys.readouterr().err
    assert krill_train.runs() == []
    train_and_signal(krill_train, signal.SIGTERM, 2)
    assert krill_train("resume=true") == 0
    assert krill_train.states() == ["finished"]


def test_resume_takes_the_folder_of_a_run(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        train_and_signal(krill_train, signal.SIGTERM, 2, "resume=false")
    older, newer = krill_train.runs()
    assert krill_train(f"resume={older}") == 0
    assert [(read_status(run) or {})["state"] for run in (older, newer)] == ["finished", "stopped"]
    assert krill_train(f"resume={newer}", "seed=3") == 2
    assert f"from={quote_path(newer)} to start a new run" in capsys.readouterr().err
    assert krill_train(f"resume={newer}/none") == 2


def test_output_sets_the_folder_and_a_finished_run_there_is_skipped(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("output=mine") == 0
    assert krill_train.runs() == []
    status = (krill_train.outputs / "mine" / "status.json").read_bytes()
    capsys.readouterr()
    assert krill_train("output=mine") == 0
    output = capsys.readouterr()
    assert output.out == "mine\n"
    assert "already finished, skipping: mine" in output.err
    assert (krill_train.outputs / "mine" / "status.json").read_bytes() == status


def test_output_with_another_run_or_other_files_is_refused(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("output=mine") == 0
    before = sorted((krill_train.outputs / "mine").rglob("*"))
    assert krill_train("output=mine", "seed=1") == 2
    assert "holds a run of another configuration" in capsys.readouterr().err
    assert sorted((krill_train.outputs / "mine").rglob("*")) == before

    other = krill_train.outputs / "other"
    other.mkdir()
    (other / "status.json").write_text(json.dumps({"state": "not krill"}))
    assert krill_train("output=other") == 2
    assert "is not empty and does not hold a run of krill" in capsys.readouterr().err


def test_output_resumes_an_interrupted_run(krill_train: Any) -> None:
    assert train_and_signal(krill_train, signal.SIGTERM, 2, "output=mine") == 75
    assert krill_train("output=mine", "resume=false") == 2
    assert krill_train("output=mine") == 0
    assert (read_status(krill_train.outputs / "mine") or {})["starts"] == 2
