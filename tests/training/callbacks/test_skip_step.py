"""Bad steps are left out on the device, and told of with their rows and documents; a diverged training ends."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from faults import train_and_signal
from host_reads import HostReadRecorder
from process_group import run_on_ranks
from safetensors.torch import load_file
from torch import Tensor, nn
from trainings import assert_same_result

from krill.config.schema import SkipStepConfig
from krill.data.packing import pack
from krill.data.store import Store
from krill.errors import KrillError
from krill.optim.muon import Muon
from krill.optim.skip_mask import wrap_step_skip
from krill.runs import checkpoints
from krill.runs.record import read_jsonl, read_metrics, read_status
from krill.training.callbacks.skip_step import MIN_GOOD_STEPS, SPIKE_WINDOW, BadStepDetector
from krill.training.trainer import KrillTrainer

NAN, INF = math.nan, math.inf
CPU = torch.device("cpu")


# --- the rule ----------------------------------------------------------------------------------------------


def guard_of(spike: float | None = None, nan: str = "skip", max_skips: int = 10) -> BadStepDetector:
    return BadStepDetector(
        SkipStepConfig.model_validate({"nan": nan, "spike": spike, "max_skips": max_skips}), CPU
    )


def judged(guard: BadStepDetector, *losses: float, norm: float = 1.0) -> list[bool]:
    verdicts = []
    for loss in losses:
        guard.add_loss(torch.tensor(loss / 2))
        guard.add_loss(torch.tensor(loss / 2))
        verdicts.append(bool(guard.check_step(torch.tensor(norm))))
    return verdicts


def wave(count: int) -> list[float]:
    """Losses with mean 3 and deviations of 0.1."""
    return [3 + 0.1 * (-1) ** i for i in range(count)]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_is_bad(bad: float) -> None:
    assert judged(guard_of(), 3.0, bad, 3.0) == [False, True, False]
    assert judged(guard_of(), 3.0, norm=bad) == [True]


def test_without_a_rule_no_spike_is_bad() -> None:
    assert not any(judged(guard_of(), *wave(2 * SPIKE_WINDOW), 1e30))


def test_a_spike_is_bad_once_there_is_enough_before_it() -> None:
    guard = guard_of(spike=6)
    assert not any(judged(guard, *wave(MIN_GOOD_STEPS - 1), 99.0))
    assert not any(judged(guard, *wave(SPIKE_WINDOW)))  # 99 has left the window
    assert judged(guard, 3.55, 3.75) == [False, True]
    assert judged(guard, 3.0, norm=1.1) == [True]  # all norms before were 1
    bad, steps = guard.read_bad_steps(2 * MIN_GOOD_STEPS + SPIKE_WINDOW)
    assert steps == MIN_GOOD_STEPS + SPIKE_WINDOW + 3
    assert [step.reason.partition(",")[0] for step in bad] == [
        "the loss is 3.7500",
        "the gradient norm is 1.1000",
    ]


def test_the_window_is_that_of_the_last_good_steps() -> None:
    guard = guard_of(spike=3)
    losses = torch.randn(3 * SPIKE_WINDOW, generator=torch.Generator().manual_seed(0)) * 0.1 + 3
    good: list[float] = []
    for loss in (value + 2 * (i % 50 == 49) for i, value in enumerate(losses.tolist())):
        window = torch.tensor(good[-SPIKE_WINDOW:])
        limit = float(window.mean() + 3 * window.std()) if len(good) >= MIN_GOOD_STEPS else INF
        assert abs(loss - limit) > 1e-4, "too near to tell"
        assert judged(guard, loss) == [loss > limit]
        good += [loss] if loss <= limit else []
    assert len(good) < len(losses)


def test_it_goes_on_where_it_was_saved() -> None:
    losses = [*wave(MIN_GOOD_STEPS), 9.0, *wave(3), NAN, NAN, *wave(5), NAN]
    whole, first, second = (guard_of(spike=6) for _ in range(3))
    judged(whole, *losses[: MIN_GOOD_STEPS + 5])
    whole.read_bad_steps(MIN_GOOD_STEPS + 5)
    judged(whole, *losses[MIN_GOOD_STEPS + 5 :])
    judged(first, *losses[: MIN_GOOD_STEPS + 5])
    first.read_bad_steps(MIN_GOOD_STEPS + 5)
    judged(first, *losses[MIN_GOOD_STEPS + 5 : MIN_GOOD_STEPS + 7])
    second.load_state_dict(first.state_dict())
    judged(second, *losses[MIN_GOOD_STEPS + 7 :])
    assert torch.equal(second.history, whole.history)
    assert str(second.read_bad_steps(len(losses))) == str(whole.read_bad_steps(len(losses)))
    assert second.consecutive_bad_steps == 1


@pytest.mark.parametrize(
    ("rules", "losses", "ends_at"),
    [
        ({"max_skips": 3}, [3.0, NAN, NAN, 3.0, NAN, NAN, 3.0], None),
        ({"max_skips": 3}, [3.0, NAN, NAN, NAN, 3.0], 4),
        ({"nan": "stop"}, [3.0, NAN, 3.0], 2),
        ({"nan": "stop", "spike": 6}, [*wave(MIN_GOOD_STEPS), 9.0, 3.0], None),
    ],
)
def test_when_the_run_is_to_end(rules: dict[str, Any], losses: list[float], ends_at: int | None) -> None:
    for together in (1, 2, len(losses)):  # however often it is read
        assert _end(guard_of(**rules), losses, together) == ends_at


def _end(guard: BadStepDetector, losses: list[float], together: int) -> int | None:
    """The step that ended a run of such losses, read after so many steps each; None: none."""
    for first in range(0, len(losses), together):
        judged(guard, *losses[first : first + together])
        bad, steps = guard.read_bad_steps(min(first + together, len(losses)))
        assert steps == len(losses[first : first + together])
        try:
            guard.raise_if_diverged(bad, "lower lr=1")
        except KrillError as error:
            told = re.search(r"at step (\d+).*: the training has diverged.*; lower lr=1", str(error))
            return int(told[1]) if told else -1
    return None


def test_between_readings_the_host_reads_nothing_of_it() -> None:
    guard, matrix, vector = guard_of(spike=6), nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8))
    optimizer = Muon(
        [{"params": [matrix], "kind": "muon", "lr": 1}, {"params": [vector], "kind": "adamw", "lr": 1}]
    )
    with HostReadRecorder() as reads:
        for step in range(4):
            for p in (matrix, vector):
                p.grad = torch.full_like(p, NAN if step == 2 else 1.0)
            guard.add_loss(torch.full((), 3.0))
            optimizer.found_inf = guard.check_step(nn.utils.clip_grad_norm_([matrix, vector], 1.0))
            optimizer.step()
        count = optimizer.state[vector]["step"]  # lives on the host
        assert {tensor.data_ptr() for tensor in reads.tensors} == {count.data_ptr()}
        bad, _ = guard.read_bad_steps(4)
    assert [step.step for step in bad] == [3]


def _on_a_rank() -> list[Any]:
    guard = guard_of()
    first = dist.get_rank() == 0
    verdicts = judged(guard, 3.0 if first else 5.0) + judged(guard, NAN if first else 3.0)
    (bad,), _ = guard.read_bad_steps(2)
    verdicts += judged(guard, 3.0, norm=1.0 if first else INF)
    return [*verdicts, bad.step, bad.reason]


def test_ranks_agree(tmp_path: Path) -> None:
    assert run_on_ranks(2, _on_a_rank, folder=tmp_path) == [[False, True, True, 2, "the loss is nan"]] * 2


# --- runs --------------------------------------------------------------------------------------------------

BAD = {3, 4}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("muon_keller", "muon_pto")]
OPTIMIZERS = ["adamw", "muon_moonlight", *SLOW]
SIX = ("steps=6", "save_every=1", "keep_checkpoints=9", "batch.gradient_accumulation_steps=2")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """spoil({3}): the loss of the second pass of step 3, and its gradients, are NaN."""
    plain = KrillTrainer.compute_loss

    def work(steps: Collection[int], factor: float = NAN) -> None:
        def compute_loss(self: KrillTrainer, *arguments: Any, **named: Any) -> Tensor:
            loss: Tensor = plain(self, *arguments, **named)
            is_last = self.accelerator.sync_gradients
            return loss * factor if self.state.global_step + 1 in steps and is_last else loss

        monkeypatch.setattr(KrillTrainer, "compute_loss", compute_loss)

    return work


@pytest.fixture
def leave_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[int]], None]:
    """leave_out({3}): the optimizer is not called in step 3; none: it always is."""
    plain = KrillTrainer.create_optimizer

    def work(steps: Collection[int]) -> None:
        def create_optimizer(self: KrillTrainer, model: Any = None) -> torch.optim.Optimizer:
            optimizer = plain(self, model)
            wrap_step_skip(lambda: self.state.global_step + 1 in steps, optimizer)
            return optimizer

        monkeypatch.setattr(KrillTrainer, "create_optimizer", create_optimizer if steps else plain)

    return work


def saved(run: Path, step: int) -> dict[str, Tensor]:
    """Weights and state of the optimizer in a checkpoint."""
    folder = run / "checkpoints" / f"checkpoint-{step}"
    state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    tensors = {f"{number}/{name}": value for number, of in state.items() for name, value in of.items()}
    return load_file(folder / "model.safetensors") | tensors


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bad_step_is_as_none(krill_train: Any, spoil: Any, leave_out: Any, optimizer: str) -> None:
    words = (*SIX, f"optimizer={optimizer}")
    leave_out(BAD)
    assert krill_train(*words) == 0
    (reference,) = krill_train.runs()
    leave_out([])
    spoil(BAD)
    assert krill_train(*words) == 0
    run = krill_train.runs()[-1]
    for step in BAD:
        assert_equal(saved(run, step), saved(run, 2))
    assert not torch.equal(saved(run, 5)["model.norm.weight"], saved(run, 2)["model.norm.weight"])
    for step in range(1, 7):
        assert_equal(saved(run, step), saved(reference, step))
    assert (run / "model/model.safetensors").read_bytes() == (
        reference / "model/model.safetensors"
    ).read_bytes()


def test_an_optimizer_that_masks_nothing_is_not_called(
    krill_train: Any, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(model: Any, _: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)

    monkeypatch.setattr("krill.training.trainer.build_optimizer", build)
    spoil(BAD)
    assert krill_train(*SIX, "optimizer=adamw") == 0
    (run,) = krill_train.runs()
    for step in BAD:
        assert_equal(saved(run, step), saved(run, 2))
    assert not torch.equal(saved(run, 5)["model.norm.weight"], saved(run, 2)["model.norm.weight"])


def test_the_line_is_the_mean_of_the_good_steps(krill_train: Any, spoil: Any) -> None:
    assert krill_train(*SIX, "lr=1e-12") == 0
    spoil(BAD)
    assert krill_train(*SIX, "lr=1e-12", "resume=false") == 0
    assert krill_train(*SIX, "lr=1e-12", "log_every=5", "resume=false") == 0
    plain, each, fifth = map(read_metrics, krill_train.runs())
    losses = {line["step"]: line["loss"] for line in plain if "loss" in line}
    found = {line["step"]: (line["loss"], line.get("skipped")) for line in each if "loss" in line}
    assert [found[step] for step in (3, 4)] == [(None, 1), (None, 1)]
    assert found[5] == (pytest.approx(losses[5]), None)
    line = next(line for line in fifth if line["step"] == 5)
    assert line["skipped"] == 2
    assert line["loss"] == pytest.approx((losses[2] + losses[5]) / 2, abs=1e-5)


def test_the_report_names_step_rows_and_documents(
    krill_train: Any, spoil: Any, prepared_data: Any, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: dict[int, list[list[int]]] = {}
    spoil({3})
    plain = KrillTrainer.compute_loss

    def compute_loss(
        self: KrillTrainer, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any
    ) -> Tensor:
        seen.setdefault(self.state.global_step + 1, []).extend(inputs["input_ids"].tolist())
        return plain(self, model, inputs, *rest, **named)

    monkeypatch.setattr(KrillTrainer, "compute_loss", compute_loss)
    assert krill_train(*SIX, "log_every=5") == 0
    (run,) = krill_train.runs()
    (line,) = read_jsonl(run / "skipped.jsonl")
    assert (line["step"], line["reason"]) == (3, "the loss is nan")

    train = Store.open(prepared_data.store).get_split("train")
    rows = pack(train, 64, "best_fit")
    assert [rows.get_row(row).input_ids.tolist() for row in line["rows"]] == seen[3]
    held = set()
    for row in line["rows"]:
        for segment in range(rows.offsets[row], rows.offsets[row + 1]):
            held.add(next(n for n, end in enumerate(train.ends) if rows.starts[segment] < end))
    assert line["documents"] == sorted(held)
    assert len(held) > len(line["rows"])

    said = capsys.readouterr().err
    assert "step 3 left out: the loss is nan" in said
    assert f"sequence_len=64 packing=best_fit row={line['rows'][0]}" in said


@pytest.mark.parametrize("optimizer", ["muon_moonlight", pytest.param("adamw", marks=pytest.mark.slow)])
def test_stopped_behind_a_bad_step_it_ends_the_same(krill_train: Any, spoil: Any, optimizer: str) -> None:
    words = (f"optimizer={optimizer}", "steps=8", "log_every=5", "save_every=100", "skip_step.spike=6")
    spoil(BAD)
    assert krill_train(*words) == 0
    (whole,) = krill_train.runs()
    for step in (3, 5):
        assert train_and_signal(krill_train, signal.SIGTERM, step, *words) == 75
        run = krill_train.runs()[-1]
        with open(run / "skipped.jsonl", "a") as file:
            file.write('{"step": 7, "reason": "of a process that was killed"}\n{"step": 8, "re')
        assert krill_train(*words) == 0
        assert run == krill_train.runs()[-1]
        assert_same_result(run, whole)
        assert str(read_jsonl(run / "skipped.jsonl")) == str(read_jsonl(whole / "skipped.jsonl"))
    assert [line["step"] for line in read_jsonl(whole / "skipped.jsonl")] == [3, 4]


def test_diverged_for_good_it_ends_and_keeps_the_last_good_weights(
    krill_train: Any, spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(range(3, 100))
    assert krill_train("steps=30", "save_every=2", "log_every=4", "skip_step.max_skips=5") == 1
    (run,) = krill_train.runs()
    error = (read_status(run) or {})["error"]
    assert error.startswith("the loss is nan at step 7, bad step 5 in a row: the training has diverged")
    assert "lower lr=0.003" in capsys.readouterr().err
    assert read_metrics(run)[-1]["step"] == 8
    assert [line["step"] for line in read_jsonl(run / "skipped.jsonl")] == [3, 4, 5, 6, 7, 8]
    weights = load_file(checkpoints.list_checkpoints(run / "checkpoints")[-1] / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_asked_to_stop_it_ends_by_the_first_bad_step(krill_train: Any, spoil: Any) -> None:
    spoil({3})
    assert krill_train(*SIX, "skip_step.nan=stop") == 1
    (run,) = krill_train.runs()
    assert "at step 3: the training has diverged" in (read_status(run) or {})["error"]


def test_a_spike_is_left_out(krill_train: Any, spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krill.training.callbacks.skip_step.MIN_GOOD_STEPS", 4)
    spoil({6}, factor=50.0)
    assert krill_train("steps=7", "save_every=1", "keep_checkpoints=9", "skip_step.spike=20") == 0
    (run,) = krill_train.runs()
    assert_equal(saved(run, 6), saved(run, 5))
    (line,) = read_jsonl(run / "skipped.jsonl")
    assert line["step"] == 6
    assert "above" in line["reason"]
