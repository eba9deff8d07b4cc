"""What was measured on a machine is kept in the user's cache: bounded, whole, and apart for each machine."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from krill.plan import machine
from krill.plan.machine import (
    MAX_MEASUREMENTS,
    MAX_PER_CONFIGURATION,
    Machine,
    get_calibration_folder,
    identify_machine,
    select_newest,
)
from krill.plan.step_time import Measurement

MACHINE = Machine("Some CPU, 2 cores", "2.0")


def make_measurement(configuration: str = "a", step: float = 1.0, kind: str = "run") -> Measurement:
    work = {"parameters": 10, "layers": 1, "tokens": 8, "passes": 1, "per_token": 60.0, "update_flops": 0.0,
            "update_bytes": 100}  # fmt: skip
    return Measurement.model_validate({
        "kind": kind, "time": "2026-01-01T00:00:00+00:00", "configuration": configuration, "group": "cpu",
        "work": work, "seconds": None, "step": step, "fastest": 0.9, "slowest": 1.2, "startup": None, "peaks": [],
    })  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KRILL_CALIBRATION", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_what_is_kept_is_read_by_the_next_plan_on_this_machine_alone(folder: Path) -> None:
    assert MACHINE.measurements == ()
    file = MACHINE.keep(make_measurement())
    assert file is not None
    assert file.parent == folder
    assert Machine(MACHINE.name, MACHINE.torch).measurements == (make_measurement(),)
    assert Machine("Other CPU, 2 cores", MACHINE.torch).measurements == ()
    assert Machine(MACHINE.name, "2.1").measurements == ()


def raise_no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_folder_is_that_of_the_variable_or_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KRILL_CALIBRATION")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert get_calibration_folder() == Path("/cache/krill/calibration")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert get_calibration_folder() == Path.home() / ".cache" / "krill" / "calibration"
    monkeypatch.setattr(Path, "home", raise_no_home)
    assert get_calibration_folder() is None
    monkeypatch.setenv("KRILL_CALIBRATION", "off")
    assert get_calibration_folder() is None
    assert MACHINE.keep(make_measurement()) is None
    assert MACHINE.measurements == ()


def test_the_newest_are_kept_of_each_configuration_and_of_all() -> None:
    many = [make_measurement(step=1.0 + index) for index in range(MAX_PER_CONFIGURATION + 2)]
    timed = make_measurement(kind="steps")
    assert select_newest([timed, *many]) == [timed, *many[2:]]
    different = [make_measurement(str(index)) for index in range(MAX_MEASUREMENTS + 1)]
    assert select_newest(different) == different[1:]


@pytest.mark.parametrize("damage", ["cut", "other", "values", "folder"])
def test_a_damaged_file_is_reported_and_replaced(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file = MACHINE.keep(make_measurement())
    assert file is not None
    text = file.read_text()
    if damage == "folder":
        file.unlink()
        file.mkdir()
        assert Machine(MACHINE.name, MACHINE.torch).measurements == ()
        assert "cannot be read ([Errno" in caplog.text
        return
    if damage == "values":
        invalid = make_measurement().model_copy(update={"step": -1.0})
        assert MACHINE.keep(invalid) is not None
    else:
        file.write_text(text[:-20] if damage == "cut" else json.dumps({"measurements": []}))
    with caplog.at_level(logging.WARNING, logger="krill"):
        assert Machine(MACHINE.name, MACHINE.torch).measurements == ()
    assert f"{file} " in caplog.text
    assert "it is ignored, remove it" in caplog.text
    assert MACHINE.keep(make_measurement("b")) == file
    assert Machine(MACHINE.name, MACHINE.torch).measurements == (make_measurement("b"),)


def test_a_folder_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KRILL_CALIBRATION", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, logger="krill"):
        assert MACHINE.keep(make_measurement()) is None
    assert "calibration not kept" in caplog.text


WRITER = """
import sys
from krill.plan.machine import Machine
from test_machine import MACHINE, make_measurement
for index in range(8):
    assert MACHINE.keep(make_measurement(f"{sys.argv[1]} {index}"))
"""


def test_concurrent_writers_lose_nothing(folder: Path) -> None:
    command = [sys.executable, "-c", WRITER]
    here = Path(__file__).parent
    writers = [subprocess.Popen([*command, str(number)], cwd=here) for number in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    kept = {one.configuration for one in Machine(MACHINE.name, MACHINE.torch).measurements}
    assert kept == {f"{number} {index}" for number in range(3) for index in range(8)}
    assert {path.suffix for path in folder.iterdir()} == {".json", ".lock"}


def test_a_machine_is_its_cpu_or_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "count_cpu_cores", lambda: 3)
    assert identify_machine().name.endswith(", 3 cores")
    assert identify_machine("NVIDIA H100", 8).name == "NVIDIA H100, 8 of them"
    assert identify_machine() == identify_machine()
