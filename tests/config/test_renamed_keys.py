"""A key with a former name is answered with its present name: as an override, in from=RUN and in a user's YAML."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from compositions import compose
from omegaconf import OmegaConf

from krill.cli import app
from krill.config.key_aliases import RENAMED_KEYS, find_renamed_key
from krill.config.overrides import iterate_dotted_keys
from krill.config.schema import InspectConfig
from krill.launch.invocation import Invocation

OLD_OVERRIDES = {
    "sweep.slots=2": "sweep.max_parallel",
    "data.shards=4": "data.num_tasks",
    "data.shard=1": "data.task",
    "data.near.threshold=0.8": "data.minhash.threshold",
    "guard.spike=6": "skip_step.spike",
    "guard.nan=stop": "skip_step.nan",
    "judge_bytes=1000": "eval_bytes",
}
"""Override with a former name → the present key. krill-inspect has all of these keys."""

OLD_YAML = """# @package _global_
# Written for an earlier version
sweep: {slots: 2}
data: {shards: 4, shard: 1, near: {threshold: 0.8}}
guard: {spike: 6}
judge_bytes: 1000
"""


@pytest.fixture
def get_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """get_errors("lr=1"): the error messages of a command with all keys, which only validates."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)

    def validate(invocation: Invocation) -> None:
        invocation.validate(InspectConfig)

    def run(*arguments: str) -> set[str]:
        assert app.main("inspect", validate, list(arguments)) == 2
        return {line.partition(": error: ")[2] for line in capsys.readouterr().err.splitlines()}

    return run


def expected_errors() -> set[str]:
    return {
        f"no such key '{old.partition('=')[0]}': it was renamed. Use {new}=…"
        for old, new in OLD_OVERRIDES.items()
    }


def test_every_renamed_key_is_tested_and_its_new_name_exists():
    assert {find_renamed_key(old.partition("=")[0]) for old in OLD_OVERRIDES} == set(OLD_OVERRIDES.values())
    keys = set(iterate_dotted_keys(OmegaConf.to_container(compose("inspect"))))
    assert keys.issuperset(RENAMED_KEYS.values())
    assert keys.isdisjoint(RENAMED_KEYS)
    for old in RENAMED_KEYS:
        assert any(override.startswith((f"{old}=", f"{old}.")) for override in OLD_OVERRIDES), old


@pytest.mark.parametrize("key", ["guards", "data.shards_of", "my.guard", "skip_step", "data"])
def test_other_keys_are_not_renamed(key: str):
    assert find_renamed_key(key) is None


def test_overrides_with_former_names(get_errors: Any):
    assert get_errors(*OLD_OVERRIDES) == expected_errors()


def test_a_run_with_former_names(tmp_path: Path, get_errors: Any):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create([*OLD_OVERRIDES]), tmp_path / "run" / ".hydra" / "overrides.yaml")
    assert get_errors("from=run", "seed=3") == expected_errors()


def test_a_users_yaml_with_former_names(tmp_path: Path, get_errors: Any):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(OLD_YAML)
    errors = {error.partition("mine.yaml:")[2].partition(": ")[2] for error in get_errors("experiment=mine")}
    assert errors == {
        f"no such key '{old}': it was renamed. Use {new}=…" for old, new in RENAMED_KEYS.items()
    }
