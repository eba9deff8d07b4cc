"""The record of a run is correct however the run ends."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from krill.checksum import write_checksummed_text
from krill.config.paths import relative_path
from krill.config.schema import Section
from krill.errors import KrillError, SignalInterrupt, UsageError
from krill.runs.claim import claim
from krill.runs.json_lines import read_jsonl, read_last_metrics, read_metrics, read_validations, write_jsonl
from krill.runs.record import (
    LogFile,
    Record,
    collect_versions,
    compute_run_seconds,
    find_status_damage,
    read_config,
    read_git_state,
    read_overrides,
    read_status,
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


@pytest.mark.parametrize(
    "separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]
)
def test_separators_in_a_text_do_not_end_a_line(tmp_path: Path, separator: str) -> None:
    lines = [{"step": step, f"eval_loss/a{separator}b": separator} for step in (1, 2)]
    record = Record(tmp_path)
    for line in lines:
        record.append_metrics(line)
    assert read_metrics(tmp_path) == lines
    record.truncate_metrics(1, tmp_path)
    assert read_metrics(tmp_path) == lines[:1]


@pytest.mark.parametrize(
    "line",
    [b'{"step": 2, "loss" 1}', b'{"step": 2, "loss": "\xff"}', b"[2]", b'{"stap": 2}', b'{"step": "2"}', b"7", b""],
)  # fmt: skip
def test_a_damaged_line_is_an_error_with_its_number(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(KrillError, match=r"metrics\.jsonl is damaged: line 2: .* remove this line"):
        read_jsonl(tmp_path / "metrics.jsonl")
    assert read_last_metrics(tmp_path, ("step",)) == ({"step": 3}, None)


def test_a_validation_whose_key_is_damaged_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "eval_loss": 1.0, "eval_bits_per_bxte": 1.0}\n')
    with pytest.raises(KrillError, match="the validation of step 2 has no eval_bits_per_byte"):
        read_validations(tmp_path)


@pytest.mark.parametrize("content", [b"lr: [1", b"lr: \xff", b"just text", b"- 1", b"a: b: c", b"\x00"])
def test_a_damaged_configuration_is_an_error(tmp_path: Path, content: bytes) -> None:
    assert read_config(tmp_path) == {}
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(
        KrillError, match=r"config\.yaml is damaged \(.*\); restore it, or remove it"
    ) as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "read"), [("config.yaml", read_config), (".hydra/overrides.yaml", read_overrides)]
)
def test_a_changed_configuration_is_an_error(tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
    assert not read(tmp_path)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    text = "lr: 0.5\n" if read is read_config else "- lr=0.5\n"
    write_checksummed_text(file, text)
    expected = read(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"0.5", b"0.7"))
    with pytest.raises(
        UsageError, match=rf"{name} is damaged \(it has changed .*\); restore it, or remove it"
    ):
        read(tmp_path)
    file.write_text(text)
    assert read(tmp_path) == expected, "of an earlier version"
    for content in ("", "5", "a: [", "- 1\n- {}" if read is read_overrides else "[]"):
        file.write_text(content)
        with pytest.raises(UsageError, match=rf"{name} is damaged"):
            read(tmp_path)


# --- damaged lines -----------------------------------------------------------------------------------------


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """metrics.jsonl of three lines."""
    record = Record(tmp_path)
    for step in (1, 2, 3):
        record.append_metrics({"step": step, "loss": 5.25, "text": "개\u2028"})
    return tmp_path / "metrics.jsonl"


def test_a_changed_bit_of_any_line_is_an_error_with_its_number(metrics: Path) -> None:
    content = metrics.read_bytes()
    for bit in range(0, 8 * len(content), 13):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        metrics.write_bytes(changed)
        line = content.count(b"\n", 0, bit // 8) + 1
        with pytest.raises(
            UsageError,
            match=rf"metrics\.jsonl is damaged: (line {line}:|its end is missing).* remove .*\.checksums",
        ):
            read_jsonl(metrics)


def test_lost_lines_are_an_error_but_not_what_a_kill_leaves(metrics: Path) -> None:
    content, checksums = metrics.read_bytes(), metrics.with_name(".metrics.jsonl.checksums")
    lines = read_jsonl(metrics)
    for length in (0, 5, len(content) // 2, len(content) - 1):
        metrics.write_bytes(content[:length])
        with pytest.raises(UsageError, match=r"its end is missing, after line [012]"):
            read_jsonl(metrics)
        assert "its end is missing" in str(read_last_metrics(metrics.parent, ("step",))[1])
    for rest in (b'{"step": 4}\n', b'{"step": 4'):  # killed before it wrote the checksum, or in the line
        metrics.write_bytes(content + rest)
        assert read_jsonl(metrics)[:3] == lines
    Record(metrics.parent).truncate_metrics(2, metrics.parent)
    assert read_jsonl(metrics) == lines[:2]
    Record(metrics.parent).append_metrics(lines[2])
    assert metrics.read_bytes() == content
    metrics.unlink()
    with pytest.raises(UsageError, match=r"metrics\.jsonl is missing\. .* remove .*\.checksums to"):
        read_jsonl(metrics)
    checksums.unlink()
    assert read_jsonl(metrics) == []


def test_damaged_checksums_change_nothing_or_are_reported(metrics: Path) -> None:
    lines, checksums = read_jsonl(metrics), metrics.with_name(".metrics.jsonl.checksums")
    content = checksums.read_bytes()
    for bit in range(0, 8 * len(content), 13):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        checksums.write_bytes(changed)
        with suppress(UsageError):
            assert read_jsonl(metrics) == lines


def test_a_changed_value_of_the_last_metrics_is_reported_and_not_used(metrics: Path) -> None:
    assert read_last_metrics(metrics.parent, ("step", "loss")) == ({"step": 3, "loss": 5.25}, None)
    content = metrics.read_bytes()
    metrics.write_bytes(content[:-30] + content[-30:].replace(b"5.25", b"7.25"))
    values, damage = read_last_metrics(metrics.parent, ("step", "loss"))
    assert values == {"step": 2, "loss": 5.25}
    assert "metrics.jsonl is damaged" in str(damage)


# --- status ------------------------------------------------------------------------------------------------


START = "2030-01-01T00:00:00+00:00"


def test_seconds_of_a_run(tmp_path: Path) -> None:
    assert compute_run_seconds(tmp_path, {}) is None
    ended = {"start": "2020-01-01T00:00:00+00:00", "last_start": START, "end": START, "seconds": 7.5}
    assert compute_run_seconds(tmp_path, ended) == 7.5
    older_version = {"start": START, "end": "2030-01-01T00:01:30+00:00"}
    assert compute_run_seconds(tmp_path, older_version) == 90
    running = {"last_start": "2020-01-01T00:00:00+00:00", "end": None, "seconds": 5.0}
    assert (compute_run_seconds(tmp_path, running, is_running=True) or 0.0) > 1e8
    killed = {"last_start": START, "end": None, "seconds": 5.0}
    assert compute_run_seconds(tmp_path, killed) == 5.0
    (tmp_path / "metrics.jsonl").touch()
    os.utime(tmp_path / "metrics.jsonl", (0, 1893456000 + 30))
    assert compute_run_seconds(tmp_path, killed) == 35.0


def test_a_pause_between_two_starts_is_not_part_of_the_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0, 107.0, 5000.0, 5002.5]  # begin and end of two starts
    monkeypatch.setattr("krill.runs.record.time.monotonic", lambda: clock.pop(0))
    assert run_and_read_status(tmp_path, SignalInterrupt("stopped", 75))["seconds"] == 7.0
    assert run_and_read_status(tmp_path)["seconds"] == 9.5


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


def test_every_flipped_bit_of_the_status_is_noticed(tmp_path: Path) -> None:
    status = run_and_read_status(tmp_path)
    file = tmp_path / "status.json"
    content = file.read_bytes()
    assert find_status_damage(tmp_path) is None
    for position in range(0, len(content), 11):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        assert "is damaged" in str(find_status_damage(tmp_path))
    for earlier in ({}, {"checksum": zlib.crc32(json.dumps(status).encode())}):
        file.write_text(json.dumps(status | earlier))
        assert read_status(tmp_path) == status
    file.write_text(json.dumps(status | {"checksum": 5}))
    assert "is damaged" in str(find_status_damage(tmp_path))
    file.write_bytes(content[: len(content) // 2])
    assert "is damaged" in str(find_status_damage(tmp_path))
    file.unlink()
    assert find_status_damage(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert find_status_damage(tmp_path) == "is missing"


def test_last_metrics_are_read_from_the_end_of_a_long_file(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 9.0 - step / 1e4, "tokens_per_second": 5.0} for step in range(20_000)]
    write_jsonl(tmp_path / "metrics.jsonl", [*lines, {"step": 20_000, "eval_loss": 3.0}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('7\n{"step": 20001, "lo')
    metrics, damage = read_last_metrics(tmp_path, ("step", "loss", "eval_loss", "none"))
    assert damage is not None
    assert "is damaged: the line that ends at byte" in damage  # 7 has no step
    assert metrics == {"step": 20_000, "loss": lines[-1]["loss"], "eval_loss": 3.0}
    assert read_last_metrics(tmp_path / "not there", ("step",)) == ({}, None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_loses_log_messages_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    handler = LogFile("/dev/full")
    for _ in range(2):
        handler.handle(logging.makeLogRecord({"msg": "lost"}))
    handler.close()
    assert capsys.readouterr().err == ""
