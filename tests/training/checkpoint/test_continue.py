"""A finished run is trained for longer: weights, optimizer and position continue, and the schedule starts again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import train_and_signal
from trainings import assert_same_result

from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status

RUN = ("steps=6", "eval_every=3", "save_every=100")


def read_verdict(run: Path) -> dict[str, Any]:
    """Returns the verdict without what depends on the time of the run."""
    verdict = (read_status(run) or {})["verdict"]
    return {key: value for key, value in verdict.items() if key not in ("text", "ngram", "below_ngram")}


def read_rates(run: Path) -> list[float]:
    return [line["lr"] for line in read_metrics(run) if "lr" in line]


@pytest.fixture(scope="session")
def constant_run(reference_run: Callable[..., Path]) -> Path:
    return reference_run("scheduler=constant", *RUN)


@pytest.fixture(scope="session")
def cosine_run(reference_run: Callable[..., Path]) -> Path:
    return reference_run("scheduler=cosine", "scheduler.warmup=0.2", *RUN)


def test_a_run_at_the_peak_continues_as_if_it_had_always_been_longer(
    krill_train: Any, constant_run: Path, reference_run: Callable[..., Path]
) -> None:
    straight = reference_run("scheduler=constant", "scheduler.warmup=0.1", *RUN, "steps=10")
    assert krill_train(f"continue={constant_run}", "scheduler.warmup=0.1", *RUN, "steps=10") == 0
    (continued,) = krill_train.runs()
    assert read_rates(continued) == read_rates(straight)
    assert_same_result(continued, straight)


def test_a_decayed_run_is_warmed_up_again(
    krill_train: Any, cosine_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(f"continue={cosine_run}", "steps=16") == 0
    printed = capsys.readouterr().err
    assert "schedule    cosine again from step 6, warmed up from 0.0003 to 0.003 in 2 steps" in printed
    (continued,) = krill_train.runs()
    assert f"krill-train continue=runs/llama_pico/{continued.name} steps=32" in printed
    rates = read_rates(continued)
    assert rates[:6] == read_rates(cosine_run)
    assert rates[6:8] == pytest.approx([0.00165, 0.003]), "half of the way up, then the peak"
    assert rates[7:] == sorted(rates[7:], reverse=True)
    assert rates[-1] < rates[7] / 5


def test_the_rows_of_a_continued_run_follow_those_of_the_run(
    krill_train: Any, cosine_run: Path, reference_run: Callable[..., Path]
) -> None:
    """With the same rates as one long run, which only the next rows, moments and weights can give."""
    straight = reference_run("scheduler=constant", "scheduler.warmup=0.0", *RUN, "steps=8", "lr=1e-3")
    first = reference_run("scheduler=constant", "scheduler.warmup=0.0", *RUN, "lr=1e-3")
    assert (
        krill_train(f"continue={first}", "branch_schedule=decay", "scheduler.warmup=0.5", *RUN, "steps=8")
        == 0
    )
    (continued,) = krill_train.runs()
    assert_same_result(continued, straight)


def test_the_choices_of_the_schedule(krill_train: Any, cosine_run: Path) -> None:
    for number, (kind, rates) in enumerate({"constant": [3e-4, 3e-4], "decay": [3e-3, 3e-4]}.items()):
        assert krill_train(f"continue={cosine_run}", "steps=8", f"branch_schedule={kind}") == 0
        continued = krill_train.runs()[number]
        assert read_rates(continued)[6] == pytest.approx(rates[0])
        assert read_rates(continued)[7] <= rates[0] * 1.001
        branch = (read_status(continued) or {})["branch"]
        assert branch["restart"] == {"kind": kind, "step": 6, "factor": pytest.approx(0.1)}


def test_a_lower_rate_may_be_chosen_and_nothing_else(
    krill_train: Any, cosine_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(f"continue={cosine_run}", "steps=8", "lr=1e-3") == 0
    assert max(read_rates(krill_train.runs()[0])[6:]) <= 1e-3
    assert krill_train(f"continue={cosine_run}", "steps=8", "optimizer.ns_steps=3") == 2
    error = capsys.readouterr().err
    assert "optimizer differ from that run's" in error
    assert "leave them out with continue=" in error


def test_an_interrupted_continuation_resumes_and_can_be_continued(krill_train: Any, cosine_run: Path) -> None:
    overrides = (f"continue={cosine_run}", "steps=10", "save_every=2")
    assert krill_train(*overrides, "output=undisturbed") == 0
    assert train_and_signal(krill_train, signal.SIGTERM, 8, *overrides) == 75
    assert (read_status(*krill_train.runs()) or {})["verdict"] is None
    assert krill_train(*overrides) == 0
    (resumed,) = krill_train.runs()
    assert_same_result(resumed, Path("undisturbed"))
    assert read_verdict(resumed) == read_verdict(Path("undisturbed"))
    assert "4 steps are too few" in (read_status(resumed) or {})["verdict"]["text"], "those of this run count"
    assert krill_train(f"continue={resumed}", "steps=12", "output=third") == 0
    assert len(read_rates(Path("third"))) == 12


def test_what_cannot_be_continued_is_refused(
    krill_train: Any, cosine_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for overrides, message in {
        (
            f"continue={cosine_run}",
            "steps=null",
        ): "it is at step 6; set steps= to the number of steps of the whole run",
        (f"continue={cosine_run}", "steps=6"): "of the whole run, more than 6, such as steps=12",
        (f"continue={cosine_run}", "steps=8", f"from={cosine_run}"): "leave from= out",
        ("continue=nowhere", "steps=8"): "continue=nowhere: ",
    }.items():
        assert krill_train(*overrides) == 2
        assert message in capsys.readouterr().err
    assert krill_train.runs() == []


def test_a_dry_run_checks_the_run_that_is_named(
    krill_train: Any, cosine_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = (f"continue={cosine_run}", "steps=8", "save_every=2")
    assert krill_train(*longer, "dry_run=true") == 0
    printed = capsys.readouterr().out
    assert f"branch      from step 6 of {cosine_run}" in printed
    assert "schedule    cosine again from step 6" in printed
    assert krill_train(f"resume={cosine_run}", "dry_run=true") == 2
    assert f"continue={cosine_run} to train it for longer" in capsys.readouterr().err
    assert krill_train("resume=nowhere", "dry_run=true") == 2
    assert krill_train.runs() == []

    assert train_and_signal(krill_train, signal.SIGTERM, 8, *longer) == 75
    (run,) = krill_train.runs()
    capsys.readouterr()
    assert krill_train(*longer, "dry_run=true") == 0
    assert f"state       would resume in runs/llama_pico/{run.name}" in capsys.readouterr().out
    assert krill_train(*longer) == 0
    assert krill_train(*longer, f"resume={run}", "dry_run=true") == 2, "continue= names the run already"
    assert krill_train(*longer, f"output={run}", "dry_run=true") == 0
    assert "already finished: nothing to do" in capsys.readouterr().out


def test_a_run_that_was_stopped_early_is_trained_further(krill_train: Any) -> None:
    assert krill_train(*RUN, "scheduler=cosine", "stop.target_loss=20", "eval_every=3", "output=stopped") == 0
    assert (read_status(Path("stopped")) or {})["metrics"]["stopped_by"]
    assert krill_train("continue=stopped", "steps=6", "stop.target_loss=1e-9", "output=further") == 0
    assert [line["step"] for line in read_metrics(Path("further")) if "lr" in line][-1] == 6


def test_a_name_means_the_finished_run_also_after_an_interruption(krill_train: Any) -> None:
    assert krill_train(*RUN, "name=mine") == 0
    (first,) = krill_train.runs("mine")
    longer = ("continue=mine", "steps=10", "save_every=2", "name=mine")
    assert train_and_signal(krill_train, signal.SIGTERM, 8, *longer) == 75
    assert krill_train(*longer) == 0
    assert len(krill_train.runs("mine")) == 2
    (second,) = [run for run in krill_train.runs("mine") if run != first]
    assert krill_train("continue=mine", "steps=12", "name=mine") == 0
    third = next(run for run in krill_train.runs("mine") if run not in (first, second))
    assert (read_status(third) or {})["branch"]["run"].endswith(second.name), "the newest finished run"
    assert krill_train(f"from={second}", "steps=10", "output=again", "dry_run=true") == 0


SIZED = ("model=llama_nano", "rule=size", "hardware.attention=sdpa", "save_every=100")


def test_a_continued_run_keeps_the_rate_of_the_rule(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(*SIZED, "steps=4", "output=first") == 0
    assert "lr          1.3e-02 (rule: 1.6 M hidden parameters, 4 steps; lr=… sets it)" in (
        printed := capsys.readouterr().err
    )
    assert "batch       128 tokens per step (rule: near 2; batch.tokens=… sets it)" in printed
    assert krill_train(*SIZED, "steps=4", "output=first") == 0
    assert "already finished" in capsys.readouterr().err, "the same command is the same run"
    assert krill_train("dry_run=true", *SIZED, "steps=300") == 0
    planned = " ".join(capsys.readouterr().out.split())
    assert "lr 7.5e-03 (rule: 1.6 M hidden parameters, 300 steps; lr=… sets it)" in planned
    assert krill_train("continue=first", *SIZED, "steps=300", "stop.target_loss=99", "eval_every=1") == 0
    printed = capsys.readouterr().err
    assert "lr          1.3e-02 (as in first; lr=… sets it)" in printed
    (continued,) = krill_train.runs("llama_nano")
    assert max(read_rates(continued)[:4]) == 1.3e-2
    assert ((read_status(continued) or {})["lr"], (read_status(continued) or {})["rows_per_step"]) == (
        1.3e-2,
        2,
    )
    assert krill_train("continue=first", *SIZED, "steps=300", "lr_scale=0.5") == 2
    assert "keeps its learning rate, 0.013; set lr_scale=1" in capsys.readouterr().err
    assert krill_train("dry_run=true", "from=first", *SIZED, "steps=300") == 0
    assert "lr 7.5e-03 (rule:" in " ".join(capsys.readouterr().out.split()), "a new run has its own"
