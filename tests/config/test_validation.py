"""Validation reports all errors at once, as overrides, with the name that was probably meant."""

from __future__ import annotations

from functools import cache

import pytest
from compositions import OPTION_ROWS, REQUIRED_OVERRIDES, compose
from omegaconf import OmegaConf

from krill.config.key_aliases import FOREIGN_KEYS
from krill.config.schema import InferConfig, TrainConfig
from krill.config.suggestions import find_closest_name
from krill.config.validation import (
    format_unknown_key_error,
    iterate_dotted_keys,
    resolve_interpolations,
    validate_config,
)
from krill.errors import UsageError

VALID_CONFIG = {
    "name": "infer",
    "model": {"path": "x"},
    "tokenizer": {"path": None},
    "prompt": None,
    "prompts": None,
    "chat": "auto",
    "system": None,
    "n": 1,
    "min_new_tokens": None,
    "top_k": None,
    "min_p": None,
    "typical_p": None,
    "no_repeat_ngram_size": None,
    "stop": [],
    "inspect": False,
    "max_batch_size": 32,
    "history": True,
    "max_new_tokens": 8,
    "temperature": 0.5,
    "top_p": 0.9,
    "repetition_penalty": 1.0,
    "seed": 0,
    "device": "cpu",
    "output": None,
    "dry_run": False,
    "detach": False,
    "hardware": OmegaConf.to_container(compose("infer").hardware),
    "sweep": {"max_parallel": "auto", "on_failure": "continue", "search": "grid", "trials": None},
}
KNOWN_KEYS = ["lr", "seed", "model", "model.hidden_size", "data.paths", "optimizer", "optimizer.weight_decay"]


def get_error_lines(**changes: object) -> list[str]:
    with pytest.raises(UsageError) as raised:
        validate_config(InferConfig, OmegaConf.create(VALID_CONFIG | changes))
    return str(raised.value).splitlines()


def test_a_valid_configuration():
    config = validate_config(
        InferConfig, OmegaConf.create(VALID_CONFIG | {"name": 3, "top_p": "${temperature}"})
    )
    assert (config.name, config.top_p, config.model.path) == ("3", 0.5, "x")


def test_all_errors_are_reported_at_once():
    lines = get_error_lines(model={"path": "???"}, top_p=2, seed=-1, promt="a")
    assert lines == [
        "model.path is not set; use model=…",
        "top_p=2: input should be less than or equal to 1",
        "seed=-1: input should be greater than or equal to 0",
        "no such key 'promt'. Did you mean prompt?",
    ]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("temperature", 1e-300, "temperature: use 0, or at least 1e-06"),
        (
            "repetition_penalty",
            1e-38,
            "repetition_penalty=1e-38: input should be greater than or equal to 0.1",
        ),
        ("stop", [""], "stop.0=: string should have at least 1 character"),
        ("stop", ["\udcff"], "stop.0=\udcff: input should be a valid string"),
    ],
)
def test_a_sampling_key_that_would_do_something_else(key: str, value: object, reason: str):
    (line,) = get_error_lines(**{key: value})
    assert line.startswith(reason)


def test_the_error_for_a_value_of_several_types_names_the_key():
    for key, value in (("resume", ["a"]), ("hardware.processes", "x"), ("hardware.compile", "x")):
        composed = compose("train")
        OmegaConf.update(composed, key, value)
        with pytest.raises(UsageError) as raised:
            validate_config(TrainConfig, composed)
        lines = str(raised.value).splitlines()
        assert len(lines) == 2
        assert all(line.startswith(f"{key}={value}: input should be ") for line in lines)


def test_a_key_that_follows_a_missing_key_is_not_reported():
    assert get_error_lines(model={"path": "???"}, output="${model.path}") == [
        "model.path is not set; use model=…"
    ]


def test_a_key_that_follows_an_unknown_key():
    (line,) = get_error_lines(output="${folder}")
    assert line == "output follows folder, which is not set; set one of them"


def test_an_unknown_member_of_a_union():
    with pytest.raises(UsageError, match=r"lr is not set; use lr=…"):
        validate_config(TrainConfig, OmegaConf.create({"model": {"family": "gpt"}}))
    with pytest.raises(
        UsageError, match=r"model: 'gpt' is not one of 'llama', 'qwen3', 'auto', 'pretrained', 'custom'"
    ):
        validate_config(TrainConfig, OmegaConf.create({"model": {"family": "gpt"}}))


@pytest.mark.parametrize(
    ("name", "closest"),
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
def test_the_closest_name(name: str, closest: str | None):
    assert find_closest_name(name, KNOWN_KEYS) == closest


def test_the_error_for_an_unknown_key():
    assert format_unknown_key_error("lrr", KNOWN_KEYS) == "no such key 'lrr'. Did you mean lr?"
    assert format_unknown_key_error("xyzzy", KNOWN_KEYS) == "no such key 'xyzzy'. All keys: --cfg job"


def test_a_removed_key_is_reported_as_removed():
    assert format_unknown_key_error("optimizer.backend", KNOWN_KEYS) == (
        "no such key 'optimizer.backend': it was removed. Muon is always krill's; leave the key out"
    )


@pytest.mark.parametrize("options", [*OPTION_ROWS, ("experiment=tiny_ko",)], ids=" ".join)
def test_interpolations_are_resolved_as_omegaconf_resolves_them(options: tuple[str, ...]):
    required = [override for option in options for override in REQUIRED_OVERRIDES.get(option, [])]
    composed = compose("train", *options, *required)
    assert resolve_interpolations(OmegaConf.to_container(composed, resolve=False), composed) == (
        OmegaConf.to_container(composed, resolve=True)
    )


def test_nested_and_escaped_interpolations_are_resolved():
    text = "a: {b: [1, '${c}', {d: '${a.b.0}'}]}\nc: {e: '${f}'}\nf: 2\ng: '\\${f}'\nh: '???'\ni: 'x${f}'\nj: null"
    composed = OmegaConf.create(text)
    resolved = resolve_interpolations(OmegaConf.to_container(composed, resolve=False), composed)
    assert resolved == OmegaConf.to_container(composed, resolve=True)
    assert resolved["a"]["b"] == [1, {"e": 2}, {"d": 1}]


@cache
def compose_values(command: str) -> object:
    return OmegaConf.to_container(compose(command))


@pytest.mark.parametrize("name", FOREIGN_KEYS)
def test_the_answer_to_a_key_of_another_tool_is_a_key(name: str):
    known = {key for command in ("train", "infer") for key in iterate_dotted_keys(compose_values(command))}
    optional = {"data.paths", "data.text_column", "scheduler", "model.path"}
    for answer in FOREIGN_KEYS[name]:
        assert answer.partition("=")[0] in known | optional, answer
    assert name not in known


def test_a_key_of_another_tool_is_answered_for_the_command():
    assert format_unknown_key_error("max_length", ["sequence_len"]).endswith("Use sequence_len=…")
    assert format_unknown_key_error("args.max_length", ["max_new_tokens"]).endswith("Use max_new_tokens=…")
    assert "Use" not in format_unknown_key_error("max_length", ["lr"])
