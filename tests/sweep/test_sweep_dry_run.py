"""The dry run of a sweep checks all points, and prints as many as a reader can take in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from krill.sweep.dry_run import print_points


def make_points(count: int) -> list[Any]:
    return [
        SimpleNamespace(
            invocation=SimpleNamespace(overrides=["lr=1", f"seed={index}", f"hub.token=secret{index}"]),
            folder=Path("/sweep") / str(index),
        )
        for index in range(count)
    ]


def run_point(invocation: Any) -> None:
    seed = int(invocation.overrides[1].partition("=")[2])
    print(f"name        run{seed}")
    if seed in (5, 7):
        print("warning     not enough memory; use less")


def test_few_points_are_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    print_points(make_points(10), run_point)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("name")] == [f"name        run{n}" for n in range(10)]
    assert lines[0] == "point       1 of 10: seed=0 hub.token=***"


def test_of_many_points_the_first_and_the_last_are_printed_and_all_warnings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_points(make_points(1200), run_point)
    out = capsys.readouterr().out
    assert "secret" not in out
    lines = out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("name")] == [
        "run0", "run1", "run2", "run1198", "run1199",
    ]  # fmt: skip
    assert lines[6:8] == [
        "            1,195 more points in /sweep",
        "warning     2 of them, the first seed=5 hub.token=***: not enough memory; use less",
    ]


def test_an_error_of_a_point_that_is_not_printed_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    def fail_late(invocation: Any) -> None:
        if invocation.overrides[1] == "seed=8":
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        print_points(make_points(20), fail_late)
