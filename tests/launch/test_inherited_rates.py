"""A run that continues another one keeps what the rule chose for that one, unless it is set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from compositions import compose, load_config
from omegaconf import OmegaConf

from krill.config.rule_keys import explain_rule, format_rule_lines
from krill.config.schema import MuonConfig, TrainConfig
from krill.errors import UsageError
from krill.launch.inherited_rates import find_continued_run, inherit_rates

EARLIER = ("steps=3000", "lr_scale=0.5", "optimizer=muon_keller")


def write_run(folder: Path, *overrides: str, rows_per_step: int = 24) -> Path:
    """Writes what is read of an earlier run."""
    folder.mkdir()
    config = load_config(*overrides).model_dump(mode="json", by_alias=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    status = {"signature": "5" * 8, "state": "finished", "rows_per_step": rows_per_step, "steps": 3000}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def continue_run(*overrides: str) -> TrainConfig:
    return inherit_rates(load_config(*overrides), compose("train", *overrides))[0]


@pytest.mark.parametrize("checkpoint", ["", "checkpoints/checkpoint-7"])
def test_a_longer_run_keeps_rates_and_batch(tmp_path: Path, checkpoint: str) -> None:
    run, earlier = write_run(tmp_path / "run", *EARLIER), load_config(*EARLIER)
    (run / "checkpoints" / "checkpoint-7").mkdir(parents=True)
    longer = (*EARLIER, f"branch={run / checkpoint}", "steps=30000")
    assert load_config(*longer).lr != earlier.lr
    config = continue_run(*longer)
    assert find_continued_run(config) == run
    assert (config.steps, config.lr, config.lr_scale) == (30_000, earlier.lr, 0.5)
    assert config.optimizer == earlier.optimizer
    assert isinstance(config.optimizer, MuonConfig)
    assert config.optimizer.muon_lr > config.lr, "other rates follow"
    assert config.batch.tokens == 24 * config.sequence_len


def test_what_is_set_is_not_kept(tmp_path: Path) -> None:
    shorter = ("steps=3000", "optimizer.weight_decay=0.03")
    run, earlier = write_run(tmp_path / "run", *shorter), load_config(*shorter)
    longer = (f"branch={run}", "steps=30000")
    config = continue_run(*longer, "lr=1e-3", "batch.tokens=512")
    assert (config.lr, config.batch.tokens) == (1e-3, 512)
    assert config.optimizer.weight_decay == 0.03
    config = continue_run(*longer, "optimizer.weight_decay=0.3", "batch.gradient_accumulation_steps=2")
    assert (config.lr, config.optimizer.weight_decay) == (earlier.lr, 0.3)
    assert config.batch.gradient_accumulation_steps == 2
    fixed = continue_run(*longer, "rule=off")
    assert (fixed.lr, fixed.batch.tokens) == (3e-3, "auto")


def test_another_lr_scale_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "steps=3000")
    longer, earlier = (f"branch={run}", "steps=30000"), load_config("steps=3000").lr
    with pytest.raises(UsageError) as raised:
        continue_run(*longer, "lr_scale=0.5")
    assert str(raised.value) == (
        f"lr_scale=0.5: a run that continues {run} keeps its learning rate, {earlier:g}; set lr_scale=1, or lr=… for "
        "another one"
    )
    assert continue_run(*longer, "lr_scale=1").lr == earlier
    assert continue_run(*longer, "lr=0.01").lr == 0.01


@pytest.mark.parametrize(
    ("key", "value"), [("lr", None), ("lr", "abc"), ("lr", -1.0), ("optimizer.weight_decay", "x")]
)
def test_a_value_that_is_not_valid_is_reported(tmp_path: Path, key: str, value: object) -> None:
    run = write_run(tmp_path / "run", "steps=3000")
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, key, value)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    with pytest.raises(UsageError, match=rf"keeps .*{key}={value}.*restore that run, or set lr=… "):
        continue_run(f"branch={run}", "steps=30000")
    with pytest.raises(UsageError, match=r"set lr_scale=1|restore that run"):
        continue_run(f"branch={run}", "steps=30000", "lr_scale=2")


@pytest.mark.parametrize("rows", [0, "x", [1], 1.5, None])
def test_rows_per_step_that_are_not_valid_are_not_kept(tmp_path: Path, rows: Any) -> None:
    run = write_run(tmp_path / "run", "steps=3000", rows_per_step=rows)
    if rows == 0:
        with pytest.raises(UsageError, match=r"batch\.tokens=0"):
            continue_run(f"branch={run}", "steps=30000")
    else:
        assert continue_run(f"branch={run}", "steps=30000").batch.tokens == "auto"


def test_ranks_that_do_not_divide_the_rows_are_reported(tmp_path: Path) -> None:
    longer = (f"branch={write_run(tmp_path / 'run', 'steps=3000', rows_per_step=4)}", "steps=30000")
    with pytest.raises(UsageError) as raised:
        continue_run(*longer, "hardware.processes=3")
    assert str(raised.value) == (
        f"a run that continues {tmp_path / 'run'} keeps its 4 rows per step, which do not divide over 3 ranks; "
        "start 2 (hardware.processes=2)"
    )
    assert continue_run(*longer, "hardware.processes=2").batch.tokens == 4 * 256


def test_the_scale_of_the_earlier_run_need_not_be_repeated(tmp_path: Path) -> None:
    run, earlier = write_run(tmp_path / "run", *EARLIER), load_config(*EARLIER)
    for scale in ([], ["lr_scale=0.5"]):
        assert continue_run(f"branch={run}", "steps=30000", "optimizer=muon_keller", *scale).lr == earlier.lr


def test_inherited_values_name_their_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "steps=3000", rows_per_step=24)
    overrides = (f"branch={run}", "steps=30000", "optimizer.weight_decay=0.05")
    composed = compose("train", *overrides)
    config, inherited = inherit_rates(load_config(*overrides), composed)
    assert inherited is not None
    assert inherited.keys == {"lr", "batch.tokens"}
    unresolved: Any = OmegaConf.to_container(composed, resolve=False)
    assert format_rule_lines(explain_rule(unresolved, config, inherited)) == [
        f"lr          4.2e-03 (as in {run}; lr=… sets it)",
        "warmup      0.01 of the steps (rule: at most 2,000 steps; scheduler.warmup=… sets it)",
        f"batch       6,144 tokens per step (as in {run}; batch.tokens=… sets it)",
    ]


def test_nothing_is_inherited_without_a_configuration(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "steps=3000")
    (run / "config.yaml").unlink()
    overrides = (f"branch={run}", "steps=30000")
    assert inherit_rates(load_config(*overrides), compose("train", *overrides)) == (
        load_config(*overrides),
        None,
    )


def test_only_a_run_that_resumes_with_changes_keeps_them(tmp_path: Path) -> None:
    run, earlier = write_run(tmp_path / "run", "steps=3000"), load_config("steps=3000")
    resumed = continue_run(f"resume={run}", "resume_changed=true", "steps=30000")
    assert (resumed.lr, resumed.optimizer) == (earlier.lr, earlier.optimizer)
    for overrides in ([f"resume={run}", "steps=30000"], ["steps=30000"]):
        assert find_continued_run(load_config(*overrides)) is None
        assert continue_run(*overrides) == load_config(*overrides)
