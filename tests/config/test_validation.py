"""Every mistake is told in one go, in the words of the command line, with the name that was meant."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from krill.cli.compose import compose_config
from krill.config.schema import InferConfig, TrainConfig
from krill.config.validation import find_closest_name, format_unknown_key_error, validate_config
from krill.errors import UsageError

VALID_CONFIG = {
    "name": "infer",
    "model": {"path": "x"},
    "tokenizer": {"path": None},
    "prompt": None,
    "max_new_tokens": 8,
    "temperature": 0.5,
    "top_p": 0.9,
    "repetition_penalty": 1.0,
    "seed": 0,
    "device": "cpu",
    "output": None,
    "dry_run": False,
    "detach": False,
    "hardware": OmegaConf.to_container(compose_config("infer", []).hardware),
    "sweep": {"max_parallel": "auto", "on_failure": "continue", "search": "grid", "trials": None},
}
KNOWN_KEYS = ["lr", "seed", "model", "model.hidden_size", "data.paths", "optimizer", "optimizer.weight_decay"]


def get_error_lines(**changes: object) -> list[str]:
    with pytest.raises(UsageError) as refused:
        validate_config(InferConfig, OmegaConf.create(VALID_CONFIG | changes))
    return str(refused.value).splitlines()


def test_what_is_right_is_taken():
    config = validate_config(
        InferConfig, OmegaConf.create(VALID_CONFIG | {"name": 3, "top_p": "${temperature}"})
    )
    assert (config.name, config.top_p, config.model.path) == ("3", 0.5, "x")


def test_everything_that_is_wrong_is_told_missing_values_too():
    lines = get_error_lines(model={"path": "???"}, top_p=2, seed=-1, promt="a")
    assert lines == [
        "model.path is not set; write model=…",
        "top_p=2: input should be less than or equal to 1",
        "seed=-1: input should be greater than or equal to 0",
        "no such key 'promt'. Did you mean prompt?",
    ]


def test_what_follows_a_missing_value_is_not_told_as_well():
    assert get_error_lines(model={"path": "???"}, output="${model.path}") == [
        "model.path is not set; write model=…"
    ]


def test_a_key_that_is_gone():
    (line,) = get_error_lines(output="${place}")
    assert line == "output follows place, which is not set; write one of them"


def test_a_missing_section_of_a_union_is_told():
    with pytest.raises(UsageError, match=r"lr is not set; write lr=…"):
        validate_config(TrainConfig, OmegaConf.create({"model": {"family": "gpt"}}))
    with pytest.raises(
        UsageError, match=r"model: 'gpt' is none of 'llama', 'qwen3', 'auto', 'pretrained', 'custom'"
    ):
        validate_config(TrainConfig, OmegaConf.create({"model": {"family": "gpt"}}))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lrr", "lr"),
        ("sede", "seed"),
        ("model.hiden_size", "model.hidden_size"),
        ("hidden_size", "model.hidden_size"),
        ("hiden_size", "model.hidden_size"),
        ("weight_decay", "optimizer.weight_decay"),
        ("data.path", "data.paths"),
        ("xyzzy", None),
    ],
)
def test_the_name_that_was_meant(typed: str, meant: str | None):
    assert find_closest_name(typed, KNOWN_KEYS) == meant


def test_the_sentence_for_an_unknown_key():
    assert format_unknown_key_error("lrr", KNOWN_KEYS) == "no such key 'lrr'. Did you mean lr?"
    assert format_unknown_key_error("xyzzy", KNOWN_KEYS) == "no such key 'xyzzy'. All keys: --cfg job"


def test_a_removed_key_is_reported_as_removed():
    assert format_unknown_key_error("optimizer.backend", KNOWN_KEYS) == (
        "no such key 'optimizer.backend': it was removed. Muon is always krill's; leave the key out"
    )
