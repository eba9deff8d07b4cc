"""A point that fails before its run has begun leaves a folder that the same command can use again."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faults import limit_file_size

from krill.checksum import write_checksummed_json
from krill.cli import job as jobs
from krill.cli.config_diff import diff_from_last_start
from krill.errors import UsageError
from krill.launch.job_files import read_job_file
from krill.runs.claim import claim
from krill.runs.record import read_status


def test_a_damaged_job_file_is_an_error(tmp_path: Path) -> None:
    write_checksummed_json(tmp_path / "0.json", {"config": {"lr": 0.5}})
    (tmp_path / "0.json").write_text((tmp_path / "0.json").read_text().replace("0.5", "0.7"))
    with pytest.raises(
        UsageError, match=r"0\.json is damaged .* run the command that submitted this job again"
    ):
        read_job_file(tmp_path, 0, is_on_slurm=True)


def test_failure_is_recorded_before_it_is_logged(tmp_path: Path) -> None:
    point: Any = SimpleNamespace(folder=tmp_path / "point", identity="a", overrides=[], is_on_slurm=False)
    with limit_file_size(10), pytest.raises(OSError, match="File too large"):
        jobs._record_failure(point, ValueError("no"))
    assert list(point.folder.iterdir()) == []
    jobs._record_failure(point, ValueError("no"))
    assert (read_status(point.folder) or {})["error"] == "no"
    with claim("a", tmp_path, point.folder) as claimed:
        assert claimed.state == "resumed"
    config: Any = None
    assert diff_from_last_start(config, point.folder) == [], "config.yaml was not written yet"


@pytest.mark.parametrize(
    ("time", "received", "remark"),
    [("auto", signal.SIGUSR2, True), ("auto", signal.SIGTERM, False), (60, signal.SIGUSR2, False)],
)
def test_a_job_that_outlasts_its_planned_limit_says_so(
    time: Any, received: signal.Signals, remark: bool
) -> None:
    hardware = SimpleNamespace(slurm=SimpleNamespace(time=time))
    job: Any = SimpleNamespace(config=SimpleNamespace(hardware=hardware))
    assert ("hardware.slurm.time=auto" in jobs._describe_planned_limit(job, received)) is remark
