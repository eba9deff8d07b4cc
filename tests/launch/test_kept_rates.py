"""A run that continues another one keeps what the rule chose for that one, unless it is set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from compositions import compose, load_config

from krill.config.schema import MuonConfig, TrainConfig
from krill.errors import UsageError
from krill.launch.kept_rates import find_continued_run, keep_rates

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
    return keep_rates(load_config(*overrides), compose("train", *overrides))


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
    with pytest.raises(
        UsageError, match=r"keeps its learning rate; set lr=… for another one \(it was 0\.0035\)"
    ):
        continue_run(f"branch={run}", "steps=30000", "lr_scale=0.5")


def test_only_a_run_that_resumes_with_changes_keeps_them(tmp_path: Path) -> None:
    run, earlier = write_run(tmp_path / "run", "steps=3000"), load_config("steps=3000")
    resumed = continue_run(f"resume={run}", "resume_changed=true", "steps=30000")
    assert (resumed.lr, resumed.optimizer) == (earlier.lr, earlier.optimizer)
    for overrides in ([f"resume={run}", "steps=30000"], ["steps=30000"]):
        assert find_continued_run(load_config(*overrides)) is None
        assert continue_run(*overrides) == load_config(*overrides)
