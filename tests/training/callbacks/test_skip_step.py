"""Bad steps are skipped on the device and reported with their rows and documents; a diverged training ends."""

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
from krill.runs.json_lines import read_jsonl, read_metrics
from krill.runs.record import read_status
from krill.training.callbacks.skip_step import MIN_GOOD_STEPS, SPIKE_WINDOW, BadStepDetector
from krill.training.trainer import KrillTrainer

NAN, INF = math.nan, math.inf
CPU = torch.device("cpu")


# --- the rule ----------------------------------------------------------------------------------------------


def make_detector(spike: float | None = None, nan: str = "skip", max_skips: int = 10) -> BadStepDetector:
    return BadStepDetector(
        SkipStepConfig.model_validate({"nan": nan, "spike": spike, "max_skips": max_skips}), CPU
    )


def check_losses(detector: BadStepDetector, *losses: float, norm: float = 1.0) -> list[bool]:
    """Runs one step of two forward passes per loss; returns whether each step is bad."""
    verdicts = []
    for loss in losses:
        detector.add_loss(torch.tensor(loss / 2))
        detector.add_loss(torch.tensor(loss / 2))
        verdicts.append(bool(detector.check_step(torch.tensor(norm))))
    return verdicts


def make_losses(count: int) -> list[float]:
    """Returns losses with mean 3 and a standard deviation of 0.1."""
    return [3 + 0.1 * (-1) ** i for i in range(count)]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_step_that_is_not_finite_is_bad(bad: float) -> None:
    assert check_losses(make_detector(), 3.0, bad, 3.0) == [False, True, False]
    assert check_losses(make_detector(), 3.0, norm=bad) == [True]


def test_spikes_are_good_without_a_spike_rule() -> None:
    assert not any(check_losses(make_detector(), *make_losses(2 * SPIKE_WINDOW), 1e30))


def test_spike_is_bad_once_there_are_enough_good_steps() -> None:
    detector = make_detector(spike=6)
    assert not any(check_losses(detector, *make_losses(MIN_GOOD_STEPS - 1), 99.0))
    assert not any(check_losses(detector, *make_losses(SPIKE_WINDOW)))  # 99 has left the window
    assert check_losses(detector, 3.55, 3.75) == [False, True]
    assert check_losses(detector, 3.0, norm=1.1) == [True]  # all norms before were 1
    bad, steps = detector.read_bad_steps(2 * MIN_GOOD_STEPS + SPIKE_WINDOW)
    assert steps == MIN_GOOD_STEPS + SPIKE_WINDOW + 3
    assert [step.reason.partition(",")[0] for step in bad] == [
        "the loss is 3.7500",
        "the gradient norm is 1.1000",
    ]


def test_spike_limit_uses_the_last_good_steps() -> None:
    detector = make_detector(spike=3)
    losses = torch.randn(3 * SPIKE_WINDOW, generator=torch.Generator().manual_seed(0)) * 0.1 + 3
    good: list[float] = []
    for loss in (value + 2 * (i % 50 == 49) for i, value in enumerate(losses.tolist())):
        window = torch.tensor(good[-SPIKE_WINDOW:])
        limit = float(window.mean() + 3 * window.std()) if len(good) >= MIN_GOOD_STEPS else INF
        assert abs(loss - limit) > 1e-4, "too close to the limit for a reliable test"
        assert check_losses(detector, loss) == [loss > limit]
        good += [loss] if loss <= limit else []
    assert len(good) < len(losses)


def test_state_dict_restores_the_detector() -> None:
    losses = [*make_losses(MIN_GOOD_STEPS), 9.0, *make_losses(3), NAN, NAN, *make_losses(5), NAN]
    undisturbed, first, second = (make_detector(spike=6) for _ in range(3))
    check_losses(undisturbed, *losses[: MIN_GOOD_STEPS + 5])
    undisturbed.read_bad_steps(MIN_GOOD_STEPS + 5)
    check_losses(undisturbed, *losses[MIN_GOOD_STEPS + 5 :])
    check_losses(first, *losses[: MIN_GOOD_STEPS + 5])
    first.read_bad_steps(MIN_GOOD_STEPS + 5)
    check_losses(first, *losses[MIN_GOOD_STEPS + 5 : MIN_GOOD_STEPS + 7])
    second.load_state_dict(first.state_dict())
    check_losses(second, *losses[MIN_GOOD_STEPS + 7 :])
    assert torch.equal(second.history, undisturbed.history)
    assert str(second.read_bad_steps(len(losses))) == str(undisturbed.read_bad_steps(len(losses)))
    assert second.consecutive_bad_steps == 1


@pytest.mark.parametrize(
    ("rules", "losses", "ends_at"),
    [
        ({"max_skips": 3}, [3.0, NAN, NAN, 3.0, NAN, NAN, 3.0], None),
        ({"max_skips": 3}, [3.0, NAN, NAN, NAN, 3.0], 4),
        ({"nan": "stop"}, [3.0, NAN, 3.0], 2),
        ({"nan": "stop", "spike": 6}, [*make_losses(MIN_GOOD_STEPS), 9.0, 3.0], None),
    ],
)
def test_run_ends_at_the_configured_bad_step(
    rules: dict[str, Any], losses: list[float], ends_at: int | None
) -> None:
    for read_every in (1, 2, len(losses)):
        assert _find_last_step(make_detector(**rules), losses, read_every) == ends_at


def _find_last_step(detector: BadStepDetector, losses: list[float], read_every: int) -> int | None:
    """Returns the step at which a run with these losses ends, or None if it does not."""
    for first in range(0, len(losses), read_every):
        check_losses(detector, *losses[first : first + read_every])
        bad, steps = detector.read_bad_steps(min(first + read_every, len(losses)))
        assert steps == len(losses[first : first + read_every])
        try:
            detector.raise_if_diverged(bad, "lower lr=1")
        except KrillError as error:
            match = re.search(r"at step (\d+).*: the training has diverged.*; lower lr=1", str(error))
            return int(match[1]) if match else -1
    return None


def test_host_does_not_read_the_detector_between_reads() -> None:
    detector, matrix, vector = (
        make_detector(spike=6),
        nn.Parameter(torch.ones(8, 8)),
        nn.Parameter(torch.ones(8)),
    )
    optimizer = Muon(
        [{"params": [matrix], "kind": "muon", "lr": 1}, {"params": [vector], "kind": "adamw", "lr": 1}]
    )
    with HostReadRecorder() as reads:
        for step in range(4):
            for p in (matrix, vector):
                p.grad = torch.full_like(p, NAN if step == 2 else 1.0)
            detector.add_loss(torch.full((), 3.0))
            optimizer.found_inf = detector.check_step(nn.utils.clip_grad_norm_([matrix, vector], 1.0))
            optimizer.step()
        count = optimizer.state[vector]["step"]  # on the host
        assert {tensor.data_ptr() for tensor in reads.tensors} == {count.data_ptr()}
        bad, _ = detector.read_bad_steps(4)
    assert [step.step for step in bad] == [3]


def _check_on_rank() -> list[Any]:
    detector = make_detector()
    first = dist.get_rank() == 0
    verdicts = check_losses(detector, 3.0 if first else 5.0) + check_losses(detector, NAN if first else 3.0)
    (bad,), _ = detector.read_bad_steps(2)
    verdicts += check_losses(detector, 3.0, norm=1.0 if first else INF)
    return [*verdicts, bad.step, bad.reason]


def test_ranks_agree_on_bad_steps(tmp_path: Path) -> None:
    assert run_on_ranks(2, _check_on_rank, folder=tmp_path) == [[False, True, True, 2, "the loss is nan"]] * 2


# --- runs --------------------------------------------------------------------------------------------------

BAD = {3, 4}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("muon_keller", "muon_pto")]
OPTIMIZERS = ["adamw", "muon_moonlight", *SLOW]
SIX_STEPS = ("steps=6", "save_every=1", "keep_checkpoints=9", "batch.gradient_accumulation_steps=2")


@pytest.fixture
def inject_bad_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """inject_bad_steps({3}): makes the loss of the second forward pass of step 3, and its gradients, NaN."""
    original = KrillTrainer.compute_loss

    def inject(steps: Collection[int], factor: float = NAN) -> None:
        def compute_loss(self: KrillTrainer, *arguments: Any, **named: Any) -> Tensor:
            loss: Tensor = original(self, *arguments, **named)
            is_last = self.accelerator.sync_gradients
            return loss * factor if self.state.global_step + 1 in steps and is_last else loss

        monkeypatch.setattr(KrillTrainer, "compute_loss", compute_loss)

    return inject


@pytest.fixture
def skip_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[int]], None]:
    """skip_steps({3}): does not call the optimizer in step 3; skip_steps([]) undoes it."""
    original = KrillTrainer.create_optimizer

    def skip(steps: Collection[int]) -> None:
        def create_optimizer(self: KrillTrainer, model: Any = None) -> torch.optim.Optimizer:
            optimizer = original(self, model)
            wrap_step_skip(lambda: self.state.global_step + 1 in steps, optimizer)
            return optimizer

        monkeypatch.setattr(KrillTrainer, "create_optimizer", create_optimizer if steps else original)

    return skip


def load_checkpoint(run: Path, step: int) -> dict[str, Tensor]:
    """Loads the weights and the optimizer state of a checkpoint."""
    folder = run / "checkpoints" / f"checkpoint-{step}"
    state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    tensors = {f"{number}/{name}": value for number, of in state.items() for name, value in of.items()}
    return load_file(folder / "model.safetensors") | tensors


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bad_step_changes_nothing(
    krill_train: Any, inject_bad_steps: Any, skip_steps: Any, optimizer: str
) -> None:
    overrides = (*SIX_STEPS, f"optimizer={optimizer}")
    skip_steps(BAD)
    assert krill_train(*overrides) == 0
    (reference,) = krill_train.runs()
    skip_steps([])
    inject_bad_steps(BAD)
    assert krill_train(*overrides) == 0
    run = krill_train.runs()[-1]
    for step in BAD:
        assert_equal(load_checkpoint(run, step), load_checkpoint(run, 2))
    assert not torch.equal(
        load_checkpoint(run, 5)["model.norm.weight"], load_checkpoint(run, 2)["model.norm.weight"]
    )
    for step in range(1, 7):
        assert_equal(load_checkpoint(run, step), load_checkpoint(reference, step))
    assert (run / "model/model.safetensors").read_bytes() == (
        reference / "model/model.safetensors"
    ).read_bytes()


def test_optimizer_without_masking_is_not_called_in_a_bad_step(
    krill_train: Any, inject_bad_steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(model: Any, _: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)

    monkeypatch.setattr("krill.training.trainer.build_optimizer", build)
    inject_bad_steps(BAD)
    assert krill_train(*SIX_STEPS, "optimizer=adamw") == 0
    (run,) = krill_train.runs()
    for step in BAD:
        assert_equal(load_checkpoint(run, step), load_checkpoint(run, 2))
    assert not torch.equal(
        load_checkpoint(run, 5)["model.norm.weight"], load_checkpoint(run, 2)["model.norm.weight"]
    )


def test_logged_loss_is_the_mean_of_the_good_steps(
    krill_train: Any, inject_bad_steps: Any, reference_run: Callable[..., Path]
) -> None:
    undisturbed = read_metrics(reference_run(*SIX_STEPS, "lr=1e-12"))
    inject_bad_steps(BAD)
    assert krill_train(*SIX_STEPS, "lr=1e-12") == 0
    assert krill_train(*SIX_STEPS, "lr=1e-12", "log_every=5", "resume=false") == 0
    every_step, every_fifth = map(read_metrics, krill_train.runs())
    losses = {line["step"]: line["loss"] for line in undisturbed if "loss" in line}
    logged = {line["step"]: (line["loss"], line.get("skipped")) for line in every_step if "loss" in line}
    assert [logged[step] for step in (3, 4)] == [(None, 1), (None, 1)]
    assert logged[5] == (pytest.approx(losses[5]), None)
    line = next(line for line in every_fifth if line["step"] == 5)
    assert line["skipped"] == 2
    assert line["loss"] == pytest.approx((losses[2] + losses[5]) / 2, abs=1e-5)


def test_report_lists_step_rows_and_documents(
    krill_train: Any, inject_bad_steps: Any, prepared_data: Any, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ids_at_step: dict[int, list[list[int]]] = {}
    inject_bad_steps({3})
    original = KrillTrainer.compute_loss

    def compute_loss(
        self: KrillTrainer, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any
    ) -> Tensor:
        ids_at_step.setdefault(self.state.global_step + 1, []).extend(inputs["input_ids"].tolist())
        return original(self, model, inputs, *rest, **named)

    monkeypatch.setattr(KrillTrainer, "compute_loss", compute_loss)
    assert krill_train(*SIX_STEPS, "log_every=5") == 0
    (run,) = krill_train.runs()
    (line,) = read_jsonl(run / "skipped.jsonl")
    assert (line["step"], line["reason"]) == (3, "the loss is nan")

    train = Store.open(prepared_data.store).get_split("train")
    rows = pack(train, 64, "best_fit")
    assert [rows.get_row(row).input_ids.tolist() for row in line["rows"]] == ids_at_step[3]
    documents = set()
    for row in line["rows"]:
        for segment in range(rows.offsets[row], rows.offsets[row + 1]):
            documents.add(next(n for n, end in enumerate(train.ends) if rows.starts[segment] < end))
    assert line["documents"] == sorted(documents)
    assert len(documents) > len(line["rows"])

    log = capsys.readouterr().err
    assert "step 3 skipped: the loss is nan" in log
    assert f"sequence_len=64 packing=best_fit row={line['rows'][0]}" in log


@pytest.mark.parametrize("optimizer", ["muon_moonlight", pytest.param("adamw", marks=pytest.mark.slow)])
def test_run_interrupted_after_a_bad_step_ends_the_same(
    krill_train: Any, inject_bad_steps: Any, optimizer: str
) -> None:
    overrides = (f"optimizer={optimizer}", "steps=8", "log_every=5", "save_every=100", "skip_step.spike=6")
    inject_bad_steps(BAD)
    assert krill_train(*overrides) == 0
    (undisturbed,) = krill_train.runs()
    for step in (3, 5):
        assert train_and_signal(krill_train, signal.SIGTERM, step, *overrides) == 75
        run = krill_train.runs()[-1]
        with open(run / "skipped.jsonl", "a") as file:
            file.write('{"step": 7, "reason": "of a process that was killed"}\n{"step": 8, "re')
        assert krill_train(*overrides) == 0
        assert run == krill_train.runs()[-1]
        assert_same_result(run, undisturbed)
        assert str(read_jsonl(run / "skipped.jsonl")) == str(read_jsonl(undisturbed / "skipped.jsonl"))
    assert [line["step"] for line in read_jsonl(undisturbed / "skipped.jsonl")] == [3, 4]


def test_diverged_run_ends_and_keeps_the_last_good_weights(
    krill_train: Any, inject_bad_steps: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    inject_bad_steps(range(3, 100))
    assert krill_train("steps=30", "save_every=2", "log_every=4", "skip_step.max_skips=5") == 1
    (run,) = krill_train.runs()
    error = (read_status(run) or {})["error"]
    assert error.startswith("the loss is nan at step 7, bad step 5 in a row: the training has diverged")
    assert "set lr= below 0.003" in capsys.readouterr().err
    assert read_metrics(run)[-1]["step"] == 8
    assert [line["step"] for line in read_jsonl(run / "skipped.jsonl")] == [3, 4, 5, 6, 7, 8]
    weights = load_file(checkpoints.list_checkpoints(run / "checkpoints")[-1] / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_nan_stop_ends_the_run_at_the_first_bad_step(krill_train: Any, inject_bad_steps: Any) -> None:
    inject_bad_steps({3})
    assert krill_train(*SIX_STEPS, "skip_step.nan=stop") == 1
    (run,) = krill_train.runs()
    assert "at step 3: the training has diverged" in (read_status(run) or {})["error"]


def test_spike_is_skipped(krill_train: Any, inject_bad_steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krill.training.callbacks.skip_step.MIN_GOOD_STEPS", 4)
    inject_bad_steps({6}, factor=50.0)
    assert krill_train("steps=7", "save_every=1", "keep_checkpoints=9", "skip_step.spike=20") == 0
    (run,) = krill_train.runs()
    assert_equal(load_checkpoint(run, 6), load_checkpoint(run, 5))
    (line,) = read_jsonl(run / "skipped.jsonl")
    assert line["step"] == 6
    assert "above" in line["reason"]
