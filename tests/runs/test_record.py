"""The record of a run is correct however the run ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from krill.config.schema import Section
from krill.errors import KrillError, SignalInterrupt, UsageError
from krill.runs.claim import claim
from krill.runs.record import (
    LogFile,
    Record,
    collect_versions,
    compute_wall_seconds,
    read_git_state,
    read_last_metrics,
    read_metrics,
    read_status,
    relative_path,
    write_jsonl,
)

SIGNATURE = "c" * 64
log = logging.getLogger("krill")


class Small(Section):
    name: str = "작은"
    lr: float = 0.5


@pytest.fixture(autouse=True)
def info_level() -> Iterator[None]:
    """Sets the log level of the commands."""
    before = log.level
    log.setLevel(logging.INFO)
    yield
    log.setLevel(before)


def run_and_read_status(folder: Path, error: BaseException | None = None) -> dict[str, Any]:
    """Returns status.json of a run that `error` ended."""

    def run() -> None:
        with Record(folder).record_lifecycle(Small(), SIGNATURE, ["lr=0.5"]):
            status = read_status(folder)
            assert status is not None
            assert (status["state"], status["exit"], status["end"]) == ("running", None, None)
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)) as raised:
            run()
        assert raised.value is error
    status = read_status(folder)
    assert status is not None
    return status


@pytest.mark.parametrize(
    ("error", "state", "code", "message"),
    [
        (None, "finished", 0, None),
        (SignalInterrupt("stopped by SIGTERM", 75), "stopped", 75, None),
        (KeyboardInterrupt(), "stopped", 130, None),
        (KrillError("no\nsuch luck"), "failed", 1, "no\nsuch luck"),
        (UsageError("wrong"), "failed", 2, "wrong"),
        (ValueError("bad"), "failed", 1, "ValueError: bad"),
        (SystemExit(3), "failed", 1, "SystemExit: 3"),
    ],
    ids=["finished", "stopped", "interrupted", "task", "usage", "bug", "exit"],
)
def test_the_state_describes_how_the_run_ended(
    tmp_path: Path, error: BaseException | None, state: str, code: int, message: str | None
) -> None:
    status = run_and_read_status(tmp_path, error)
    assert (status["state"], status["exit"], status["error"]) == (state, code, message)
    assert (status["name"], status["signature"], status["overrides"]) == ("작은", SIGNATURE, ["lr=0.5"])
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == {
        "name": "작은",
        "lr": 0.5,
    }


@pytest.mark.parametrize("error", [ValueError("bad"), KrillError("no")])
def test_a_traceback_is_written_to_the_log_only(
    tmp_path: Path, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = logging.StreamHandler()
    log.addHandler(screen)
    try:
        run_and_read_status(tmp_path, error)
    finally:
        log.removeHandler(screen)
    text = (tmp_path / "log.txt").read_text()
    assert "Traceback" in text
    assert "in run" in text
    assert capsys.readouterr().err == ""
    assert log.level == logging.INFO


def test_messages_of_every_start_are_written_to_the_log(tmp_path: Path) -> None:
    for text in ("one", "하나"):
        with Record(tmp_path).record_lifecycle(Small(), SIGNATURE, []):
            log.info("%s for all", text)
            log.debug("%s for the log", text)
    log.info("after")
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(maxsplit=3)[3] for line in lines] == [
        "one for all", "one for the log", "하나 for all", "하나 for the log",
    ]  # fmt: skip


def test_a_second_start_is_counted_and_clears_the_error(tmp_path: Path) -> None:
    first = run_and_read_status(tmp_path, ValueError("bad"))
    Record(tmp_path).update(start="2020-01-01T00:00:00+00:00", data={"signature": "d"})
    second = run_and_read_status(tmp_path)
    assert (first["starts"], second["starts"]) == (1, 2)
    assert (second["state"], second["error"]) == ("finished", None)
    assert second["start"] == "2020-01-01T00:00:00+00:00"
    assert second["data"] == {"signature": "d"}


def test_two_records_of_a_run_keep_the_entries_of_each_other(tmp_path: Path) -> None:
    outer, inner = Record(tmp_path), Record(tmp_path)
    with outer.record_lifecycle(Small(), SIGNATURE, []):
        inner.update(metrics={"eval_loss": 2.0})
    assert (read_status(tmp_path) or {})["metrics"] == {"eval_loss": 2.0}
    assert (read_status(tmp_path) or {})["state"] == "finished"


def test_a_run_killed_before_it_wrote_its_configuration_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("krill.runs.record.yaml.safe_dump", interrupt)
        with pytest.raises(KeyboardInterrupt), Record(tmp_path).record_lifecycle(Small(), SIGNATURE, []):
            pass
    with claim(SIGNATURE, tmp_path, tmp_path) as claimed:
        assert claimed.state == "resumed"


# --- metrics.jsonl -----------------------------------------------------------------------------------------


def test_metrics_are_appended_as_lines(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert read_metrics(tmp_path) == []
    for step in (1, 2):
        record.append_metrics({"step": step, "loss": 1.5})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.5}]


@pytest.mark.parametrize("rest", ['{"step": 3, "lo', "{", '{"step": 3}'])
def test_a_truncated_last_line_is_ignored(tmp_path: Path, rest: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n' + rest)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_lines_after_the_checkpoint_and_a_truncated_line_are_removed(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1}\n{"step": 2}\n{"step": 2, "e": 1}\n{"step": 3}\n{"st'
    )
    record = Record(tmp_path)
    record.truncate_metrics(2, record.folder)
    record.append_metrics({"step": 3, "again": True})
    assert read_metrics(tmp_path) == [
        {"step": 1},
        {"step": 2},
        {"step": 2, "e": 1},
        {"step": 3, "again": True},
    ]


# --- status ------------------------------------------------------------------------------------------------


def test_wall_seconds() -> None:
    start = "2030-01-01T00:00:00+00:00"
    assert compute_wall_seconds({"start": start, "end": "2030-01-01T00:01:30+00:00"}) == 90
    assert compute_wall_seconds({}) is None
    until_now = compute_wall_seconds({"start": "2020-01-01T00:00:00+00:00", "end": None})
    assert until_now is not None
    assert until_now > 1e8


def test_versions_and_commit() -> None:
    assert {"python", "platform", "krill", "torch", "transformers"} <= collect_versions().keys()
    state = read_git_state()
    if state is not None:  # a checkout
        assert len(state["commit"]) == 40
        assert isinstance(state["dirty"], bool)


def test_paths_are_shown_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative_path(tmp_path / "runs" / "a") == Path("runs/a")
    assert relative_path(tmp_path.parent / "b") == tmp_path.parent / "b"


def test_the_status_is_json(tmp_path: Path) -> None:
    run_and_read_status(tmp_path)
    json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert read_status(tmp_path / "none") is None


def test_last_metrics_are_read_from_the_end_of_a_long_file(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 9.0 - step / 1e4, "tokens_per_second": 5.0} for step in range(20_000)]
    write_jsonl(tmp_path / "metrics.jsonl", [*lines, {"step": 20_000, "eval_loss": 3.0}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('7\n{"step": 20001, "lo')
    metrics = read_last_metrics(tmp_path, ("step", "loss", "eval_loss", "none"))
    assert metrics == {"step": 20_000, "loss": lines[-1]["loss"], "eval_loss": 3.0}
    assert read_last_metrics(tmp_path / "not there", ("step",)) == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_loses_log_messages_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    handler = LogFile("/dev/full")
    for _ in range(2):
        handler.handle(logging.makeLogRecord({"msg": "lost"}))
    handler.close()
    assert capsys.readouterr().err == ""
