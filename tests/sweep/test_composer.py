"""Points are composed faster than by Hydra, to the same configuration."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from krill.cli.compose import set_search_path
from krill.config.paths import CONF_DIR
from krill.launch.invocation import Composition
from krill.sweep.composer import Composer, _PointComposition, format_point_errors

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
        composer.compose_config(["lr=7e-3"])  # what one point sets is not seen in the next
        expected = loader.load_sweep_config(config, overrides)
        composed, hydra = composer.compose_config(overrides), composer.compose_hydra(overrides)
        point = _PointComposition(composer, overrides)
    GlobalHydra.instance().clear()
    assert OmegaConf.to_yaml(hydra) == OmegaConf.to_yaml(expected.hydra)
    assert hydra.sweep.dir == expected.hydra.sweep.dir, "it follows keys of the configuration"
    derived = Composition(composed, hydra)
    assert point.overrides == derived.overrides
    assert (point.command, point.choices, point.launcher) == (
        derived.command,
        derived.choices,
        derived.launcher,
    )
    assert composed.lr == expected.lr
    with open_dict(expected):
        del expected["hydra"]
    assert OmegaConf.to_yaml(composed) == OmegaConf.to_yaml(expected)


def test_a_point_takes_little_memory_and_shares_equal_sections(tmp_path: Path) -> None:
    """5,000 points are composed before the first starts; each kept 0.3 MB."""
    set_search_path([])
    GlobalHydra.instance().clear()
    seeds = [[f"seed={seed}", "name=x"] for seed in range(30)]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        composer = Composer(loader, loader.load_configuration("train", [], RunMode.MULTIRUN), tmp_path)
        composer.compose_points(seeds[:5])
        tracemalloc.start()
        points, errors = composer.compose_points(seeds[5:])
        size = tracemalloc.get_traced_memory()[0] / len(points)
        tracemalloc.stop()
        configs = [point.config for point in points if point]
        written = points[3].invocation.composition.config if points[3] else None
    GlobalHydra.instance().clear()
    assert not errors
    assert size < 20_000
    assert [config.seed for config in configs] == list(range(5, 30))
    assert configs[0].hardware is configs[-1].hardware
    assert written.seed == 8, "it is composed again for the job file"


def test_errors_name_their_points_without_secrets() -> None:
    points = [f"seed={seed} hub.token=abc" for seed in range(500)]
    text = format_point_errors({"lr=-1: too small": points})
    assert "abc" not in text
    assert text.startswith("lr=-1: too small  (in: seed=0 hub.token=***; seed=1 hub.token=***; ")
    assert text.endswith("; and 490 more points)")
    assert format_point_errors({"lr=-1: too small": points}, 500) == "lr=-1: too small"
