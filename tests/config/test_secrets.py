"""Secrets are masked in what krill writes; keys that only sound like one are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from krill.config.secrets import mask_config, mask_secrets, mask_text
from krill.runs.record import Record


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+hydra.job.env_set.HF_TOKEN=abc", "+hydra.job.env_set.HF_TOKEN=***"),
        ("data.options.api_key=abc", "data.options.api_key=***"),
        ("lr=1e-3,data.options.password=abc,seed=0", "lr=1e-3,data.options.password=***,seed=0"),
        ("data.options={token: abc, path: x}", "data.options={token: ***, path: x}"),
        ("data.options={path: x, 'secret': abc}", "data.options={path: x, 'secret': ***}"),
        ("export WANDB_API_KEY='a b' && run", "export WANDB_API_KEY=*** && run"),
        ("see hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "see ***"),
        ("outputs/runs/hf_smollm2_korean_base_350m", "outputs/runs/hf_smollm2_korean_base_350m"),
        ("/home/sk-kim_research_group/run", "/home/sk-kim_research_group/run"),
        ("tokenizer.bos_token=<s>", "tokenizer.bos_token=<s>"),
        ("tokenizer={bos_token: <s>}", "tokenizer={bos_token: <s>}"),
        ("batch.tokens=512", "batch.tokens=512"),
        ("prompt=the token: abc", "prompt=the token: abc"),
    ],
)
def test_secrets_in_text(text: str, masked: str):
    assert mask_text(text) == masked


def test_secrets_in_a_configuration():
    values = {
        "options": {"token": "abc", "deep": [{"password": 1}], "path": "x", "api_key": None},
        "pad_token": "<p>",
    }
    expected = {
        "options": {"token": "***", "deep": [{"password": "***"}], "path": "x", "api_key": None},
        "pad_token": "<p>",
    }
    assert mask_secrets(values) == expected
    assert mask_config(OmegaConf.create(values)).options.token == "***"


def test_a_configuration_without_secrets_is_returned_as_it_is():
    config = OmegaConf.create({"lr": "${x}", "x": 1})
    assert mask_config(config) is config


def test_the_record_of_a_run_has_no_secret(tmp_path: Path):
    Record(tmp_path).update(signature="a", state="running", overrides=["lr=1", "data.options.token=abc"])
    assert json.loads((tmp_path / "status.json").read_text())["overrides"] == [
        "lr=1",
        "data.options.token=***",
    ]
