"""Points are composed faster than by Hydra, to the same configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from krill.cli.compose import set_search_path
from krill.config.paths import CONF_DIR
from krill.sweep.composer import Composer

POINTS = [
    ["lr=1e-3"],
    ["lr=1e-3", "seed=3", "name='가'"],
    ["optimizer=adamw", "lr=2e-3"],
    ["lr=2e-3", "optimizer=adamw"],
    ["model=qwen3_pico", "hardware=slurm_gpu", "hardware.slurm.time=90m"],
    ["scheduler=wsd", "scheduler.decay=0.3"],
    ["filters=web", "data.minhash.threshold=0.8"],
    ["experiment=llama_pico_1k", "steps=3", "epochs=null"],
    ["++hardware.slurm.options.mail-type=END", "hardware=slurm_cpu"],
    ["data=files", "data.paths=[{path: a.jsonl, weight: 2}]"],
    ["hydra.job.name=x", "lr=1e-3"],
    ["~seed"],
]


@pytest.mark.parametrize("overrides", POINTS, ids=" ".join)
def test_a_point_is_what_hydra_composes(overrides: list[str], tmp_path: Path) -> None:
    set_search_path([])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", ["batch.micro_batch_size=2"], RunMode.MULTIRUN)
        composer = Composer(loader, config, tmp_path)
        composer._compose_config(["lr=7e-3"])  # what one point sets is not seen in the next
        expected = loader.load_sweep_config(config, overrides)
        composed = composer._compose_config(overrides)
    GlobalHydra.instance().clear()
    assert OmegaConf.to_yaml(composed) == OmegaConf.to_yaml(expected)
    assert composed.lr == expected.lr
