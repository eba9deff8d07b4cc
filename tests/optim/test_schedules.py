"""Schedules: start, peak and end, monotonicity in between, and resume."""

from __future__ import annotations

import io
import math
import pickle

import pytest
import torch

from krill.config.schema import ConstantSchedulerConfig, CosineSchedulerConfig, WSDSchedulerConfig
from krill.optim.schedules import build_scheduler, compute_lr_factor

CONSTANT = ConstantSchedulerConfig(name="constant", warmup=0.1)
COSINE = CosineSchedulerConfig(name="cosine", warmup=0.1, min_ratio=0.1)
LINEAR = WSDSchedulerConfig(name="wsd", warmup=0.1, decay=0.2, decay_shape="linear", min_ratio=0.0)
SQRT = WSDSchedulerConfig(name="wsd", warmup=0.1, decay=0.2, decay_shape="sqrt", min_ratio=0.05)
ALL = [CONSTANT, COSINE, LINEAR, SQRT]


def _compute_curve(
    config: ConstantSchedulerConfig | CosineSchedulerConfig | WSDSchedulerConfig, total: int
) -> list[float]:
    return [compute_lr_factor(config, step, total) for step in range(total)]


@pytest.mark.parametrize("config", ALL)
def test_warmup_rises_linearly_from_above_zero_to_the_peak(config):
    assert _compute_curve(config, 100)[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 100, 1001])
def test_the_rate_is_never_zero_and_never_rises_after_the_warmup(config, total):
    curve = _compute_curve(config, total)
    assert min(curve) > 0
    assert max(curve) == 1
    after_warmup = curve[curve.index(1.0) :]
    assert after_warmup == sorted(after_warmup, reverse=True)


@pytest.mark.parametrize(("config", "end"), [(CONSTANT, 1.0), (COSINE, 0.1), (LINEAR, 0.0), (SQRT, 0.05)])
def test_the_schedule_ends_near_min_ratio_and_stays_there(config, end):
    assert compute_lr_factor(config, 999, 1000) == pytest.approx(end, abs=6e-3)
    assert compute_lr_factor(config, 1000, 1000) == pytest.approx(end)
    assert compute_lr_factor(config, 5000, 1000) == pytest.approx(end)


def test_cosine_is_halfway_in_the_middle():
    assert compute_lr_factor(COSINE, 549, 1000) == pytest.approx(0.55, abs=2e-3)
    assert compute_lr_factor(COSINE, 324, 1000) == pytest.approx(
        0.1 + 0.45 * (1 + math.cos(math.pi / 4)), abs=2e-3
    )


def test_wsd_is_constant_until_the_decay():
    assert _compute_curve(LINEAR, 100)[9:80] == [1.0] * 71
    assert _compute_curve(LINEAR, 100)[80:] == pytest.approx([1 - k / 21 for k in range(1, 21)])
    assert _compute_curve(SQRT, 100)[80:] == pytest.approx(
        [0.05 + 0.95 * (1 - math.sqrt(k / 21)) for k in range(1, 21)]
    )


def test_without_warmup_the_first_step_has_the_peak_rate():
    assert compute_lr_factor(COSINE.model_copy(update={"warmup": 0.0}), 0, 50) == 1.0


def test_overlapping_warmup_and_decay_leave_no_stable_phase():
    config = LINEAR.model_copy(update={"warmup": 0.5, "decay": 1.0})
    curve = _compute_curve(config, 10)
    assert curve[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert curve[5:] == pytest.approx([1 - k / 6 for k in range(1, 6)])


def test_a_schedule_without_steps_is_an_error():
    with pytest.raises(ValueError, match="total_steps=0"):
        compute_lr_factor(COSINE, 0, 0)


def _make_optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in (1e-3, 5e-3)]
    return torch.optim.AdamW(groups)


@pytest.mark.parametrize("config", ALL)
def test_every_group_is_scaled_from_its_own_peak(config):
    optimizer = _make_optimizer()
    scheduler = build_scheduler(config, optimizer, 20)
    for step in range(20):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx(
            [1e-3 * compute_lr_factor(config, step, 20), 5e-3 * compute_lr_factor(config, step, 20)]
        )
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("config", ALL)
def test_a_scheduler_resumes_from_its_state_and_can_be_pickled(config):
    optimizer = _make_optimizer()
    scheduler = build_scheduler(config, optimizer, 20)
    for _ in range(9):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), scheduler.state_dict()), file)
    file.seek(0)
    optimizer_state, scheduler_state = torch.load(file, weights_only=True)

    resumed_optimizer = _make_optimizer()
    resumed = build_scheduler(config, resumed_optimizer, 20)
    resumed_optimizer.load_state_dict(optimizer_state)
    resumed.load_state_dict(scheduler_state)
    pickled = pickle.loads(pickle.dumps(scheduler))
    for _ in range(11):
        assert resumed.get_last_lr() == scheduler.get_last_lr() == pickled.get_last_lr()
        for each in (scheduler, resumed, pickled):
            each.optimizer.step()
            each.step()
    assert resumed_optimizer.param_groups[1]["lr"] == optimizer.param_groups[1]["lr"]
