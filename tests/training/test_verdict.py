"""The verdict on a run says what the run has shown, and a command that works."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prepared_facts import make_facts

from krill.cli import runs as runs_command
from krill.runs.record import read_status
from krill.runs.summary import format_next_command
from krill.training.verdict import judge_run


def fall(step: int) -> float:
    """A loss that falls to the end of 1000 steps."""
    return 8.0 - 3.0 * step / 1000


def settle(step: int) -> float:
    """A loss that has stopped falling at 500 steps."""
    return 8.0 - 3.0 * min(1.0, step / 500)


def turn(step: int) -> float:
    """A loss that is lowest at 500 steps."""
    return settle(step) + max(0, step - 500) / 1000


def test_a_run_whose_loss_falls_needs_more_steps() -> None:
    verdict = judge_run(make_facts(fall, fall))
    assert verdict.outcome == "falling"
    assert verdict.change_per_tenth == pytest.approx(-0.3)
    assert "still falling, by 0.3000 nats (6.00 %) over the last 10 % of the steps" in verdict.text
    assert verdict.next == "krill-train continue=RUN steps=2000"
    assert "more text" not in verdict.text
    assert "more text (data=) would more" in judge_run(make_facts(fall, fall, epochs=3.0)).text


def test_the_loss_is_beside_the_baselines() -> None:
    verdict = judge_run(make_facts(fall, fall, unigram=6.5, ngram_loss=4.8))
    assert (
        "5.000 nats per token on the held-out text, 1.500 below unigram, 0.200 above a 5-gram model"
        in verdict.text
    )
    assert "which predicts it better" in verdict.text
    assert (verdict.below_unigram, verdict.below_ngram) == (1.5, -0.2)
    better = judge_run(make_facts(fall, fall, unigram=4.5, ngram_loss=5.5))
    assert "0.500 above unigram, 0.500 below a 5-gram model (5.500) of 1,000 tokens" in better.text
    assert "predicts it better" not in better.text


def test_a_run_that_learns_its_text_by_heart_needs_more_text() -> None:
    verdict = judge_run(make_facts(fall, turn, epochs=12.0))
    assert verdict.outcome == "overfit"
    assert "rose from 5.000 at step 500 to 5.500, while the training loss fell" in verdict.text
    assert "12.0 epochs, of which those beyond about 4 add little" in verdict.text
    assert verdict.next == "krill-train from=RUN steps=500"


@pytest.mark.parametrize(("train", "epochs"), [(settle, 12.0), (fall, 1.0)])
def test_a_rise_is_no_memorizing_without_falling_loss_or_repeated_text(train: Any, epochs: float) -> None:
    verdict = judge_run(make_facts(train, turn, epochs=epochs))
    assert verdict.outcome == "rising"
    assert verdict.next == "krill-train from=RUN lr=0.001"


def test_a_rate_replaces_the_scale_of_a_file() -> None:
    facts = make_facts(settle, turn, lr_scale=0.5)
    assert judge_run(facts).next == "krill-train from=RUN lr=0.001 lr_scale=1"
    converged = make_facts(settle, settle, lr_scale=0.5, epochs=12.0)
    assert judge_run(converged).next == "krill-train -m from=RUN lr=0.001,0.009 lr_scale=1"


def test_a_run_whose_loss_no_longer_falls_has_converged() -> None:
    undertrained = judge_run(make_facts(settle, settle, final_lr=0.1))
    assert undertrained.outcome == "converged"
    assert "no longer falling" in undertrained.text
    assert "with the learning rate at 0.10 of its peak" in undertrained.text
    assert undertrained.next == "krill-train from=RUN steps=2000"
    repeated = judge_run(make_facts(settle, settle, epochs=3.0))
    assert repeated.next == "krill-train -m from=RUN lr=0.001,0.009"
    assert "of its peak" not in repeated.text
    long = judge_run(make_facts(settle, settle, parameters=10))
    assert long.tokens_per_parameter == 100
    assert long.next == "krill-train from=RUN model.num_hidden_layers=8"
    assert judge_run(make_facts(settle, settle, parameters=10, num_layers=None)).next.endswith(
        "lr=0.001,0.009"
    )


def test_a_run_without_held_out_text_is_not_judged_by_its_training_loss() -> None:
    verdict = judge_run(make_facts(fall, None))
    assert verdict.outcome == "unvalidated"
    assert "5.149 nats per token at the end, does not show what the model has learned" in verdict.text
    assert "falling" not in verdict.text
    assert (verdict.below_unigram, verdict.change_per_tenth, verdict.ngram) == (None, None, None)
    assert verdict.next == "krill-train from=RUN data.validation_fraction=0.1"


def test_a_run_of_few_steps_is_not_judged() -> None:
    verdict = judge_run(make_facts(fall, fall, end=20))
    assert verdict.outcome == "short"
    assert "20 steps are too few" in verdict.text
    assert "falling" not in verdict.text


def test_one_validation_shows_no_trend() -> None:
    verdict = judge_run(make_facts(fall, fall, validate_every=1000))
    assert verdict.outcome == "unknown"
    assert "Too few validations" in verdict.text
    assert verdict.next == "krill-train continue=RUN steps=2000 eval_every=50"


def test_a_diverged_run_needs_a_lower_rate() -> None:
    worse = judge_run(make_facts(settle, lambda step: 8.5, uniform=8.3))
    assert worse.outcome == "diverged"
    assert "not below that of uniform predictions" in worse.text
    jumped = judge_run(make_facts(lambda step: settle(step) + (step > 900), settle))
    assert jumped.outcome == "diverged"
    assert "ended above what it had been before" in jumped.text
    noisy = judge_run(make_facts(lambda step: settle(step) + 1.5 * math.sin(step), settle))
    assert noisy.outcome == "converged"
    failed = judge_run(make_facts(fall, fall, has_failed=True, end=20))
    assert failed.text.startswith("The training diverged at step 20.")
    assert {each.next for each in (worse, jumped, failed)} == {"krill-train from=RUN lr=0.001"}


def test_skipped_steps_are_counted() -> None:
    few = judge_run(make_facts(fall, fall, skipped=3))
    assert "3 of 1000 steps were skipped" in few.text
    assert few.next == "krill-train continue=RUN steps=2000"
    assert judge_run(make_facts(fall, fall, skipped=30)).next == "krill-train from=RUN lr=0.001"


def test_only_the_steps_of_a_continued_run_count() -> None:
    """The rate is warmed up again: the loss rises above that of the earlier run, then falls."""
    verdict = judge_run(
        make_facts(settle, lambda step: 5.3 - (step - 500) / 2500, start=500, loss_at_start=5.0)
    )
    assert verdict.outcome == "falling"
    assert verdict.change_per_tenth == pytest.approx(-0.02)
    assert "It ended 0.100 above the loss at step 500, from which it continued" in verdict.text


# --- trained runs --------------------------------------------------------------------------------------------


def read_verdict(folder: Path) -> dict[str, Any]:
    status = read_status(folder)
    assert status is not None
    verdict: dict[str, Any] = status["verdict"]
    return verdict


def test_each_run_ends_with_its_verdict(
    krill_train: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krill.evaluation.ngram_baseline.MAX_SHARE", 100.0)
    assert krill_train() == 0
    (folder,) = krill_train.runs()
    verdict = read_verdict(folder)
    assert f"verdict     {verdict['text']}" in capsys.readouterr().err
    assert verdict["outcome"] == "short"
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert verdict["tokens"] == last["tokens"]
    assert verdict["epochs"] == pytest.approx(last["epoch"], abs=1e-4)
    assert verdict["ngram"]["order"] == 5
    assert 0 < verdict["ngram"]["counted_tokens"] <= verdict["tokens"]

    monkeypatch.setattr("sys.argv", ["krill-runs", "show", str(folder)])
    assert runs_command.main() == 0
    shown = capsys.readouterr().out.split()
    assert " ".join(["verdict", *verdict["text"].split()]) in " ".join(shown)
    assert "steps=500" in shown
    monkeypatch.setattr("sys.argv", ["krill-runs", "show", str(folder), "--json"])
    assert runs_command.main() == 0
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == verdict


def test_a_failed_run_and_one_without_validation_have_a_verdict(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("optimizer=adamw", "lr=1e30", "skip_step.max_skips=2", "name=diverged") == 1
    verdict = read_verdict(*krill_train.runs("diverged"))
    assert verdict["outcome"] == "diverged"
    assert verdict["next"] == "krill-train from=RUN lr=3.3e+29"
    assert "verdict     The training diverged at step" in capsys.readouterr().err
    assert krill_train("data.validation_fraction=0", "name=blind") == 0
    assert read_verdict(*krill_train.runs("blind"))["ngram"] is None


def test_the_commands_of_verdicts_can_be_run(krill_train: Any, reference_run: Any) -> None:
    folder = reference_run()
    facts = [
        make_facts(fall, fall, end=40),
        make_facts(fall, fall),
        make_facts(fall, None),
        make_facts(fall, turn, epochs=9.0),
        make_facts(settle, settle, parameters=10),
        make_facts(settle, turn),
        make_facts(fall, fall, validate_every=1000),
    ]
    commands = [format_next_command({"next": judge_run(each).next}, folder) for each in facts]
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "krill-train"
        assert replace(krill_train, overrides=[])(*arguments, "dry_run=true") == 0, command
