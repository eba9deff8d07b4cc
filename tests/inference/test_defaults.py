"""What the user sets wins over the model's generation_config.json, which wins over krill's defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krill.errors import UsageError
from krill.inference.defaults import (
    NEUTRAL,
    describe_params,
    read_model_defaults,
    resolve_params,
    to_eos_ids,
)
from krill.inference.sampling import SamplingParams


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, {}),
        ({"eos_token_id": [1, 2], "temperature": None, "cache_implementation": "x"}, {}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20}, {"temperature": 0.7, "top_k": 20}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0}),
    ],
)
def test_a_models_defaults_are_read(content: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert read_model_defaults(tmp_path) == expected


@pytest.mark.parametrize("content", ["{", "[]", '{"top_k": "all"}', '{"top_p": true}'])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UsageError, match=r"generation_config\.json: not a generation_config\.json"):
        read_model_defaults(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("temperature", -1, "input should be greater than or equal to 0"),
        ("temperature", 1e-46, "use 0, or at least 1e-06"),
        ("temperature", float("nan"), "input should be a finite number"),
        ("top_k", 50.5, "input should be a valid integer"),
        ("min_p", 2, "input should be less than or equal to 1"),
        ("repetition_penalty", 0, "input should be greater than or equal to 0.1"),
        ("no_repeat_ngram_size", -1, "input should be greater than or equal to 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(key: str, value: float, reason: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(UsageError, match=rf"generation_config\.json: {key} {value}: {reason}.*; correct it"):
        read_model_defaults(tmp_path)


@pytest.mark.parametrize("configured", ["</s>", [[1]], [1, "a"], 1.5, True])
def test_an_eos_that_is_not_an_id_is_an_error(configured: Any) -> None:
    with pytest.raises(UsageError, match="neither a token id nor a list of them"):
        to_eos_ids(configured)


def test_the_origin_of_each_parameter_is_said() -> None:
    given = {"top_k": 5, "seed": 0, "temperature": None, "stop": []}
    assert describe_params(given, {"top_k": 7, "top_p": 0.9}) == [
        "set: seed 0, top_k 5",
        "generation_config.json: top_p 0.9",
        "krill's defaults: max_new_tokens 128, repetition_penalty 1.5, temperature 0.6",
    ]


def test_the_order_of_precedence() -> None:
    params = resolve_params({"top_k": None, "top_p": 0.3, "seed": 5}, {"top_k": 7, "top_p": 0.9})
    assert params == SamplingParams(top_k=7, top_p=0.3, seed=5)
    assert resolve_params({}, {}) == SamplingParams()
    assert resolve_params({}, {"top_k": 3}, NEUTRAL).repetition_penalty == 1
