"""YAML and schema are equal in both directions; every field has its sentence; sections refuse what cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import pytest
from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from krill.cli.commands import SCHEMA
from krill.cli.compose import composed
from krill.config import schema
from krill.config.location import CONF_DIR, options
from krill.config.schema import Batch, HubTarget, Tokenizer, TrainConfig
from krill.config.validation import validated
from krill.errors import UsageError

SECTIONS = [
    value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, schema.Section)
]
PERSONS_OWN = {schema.CustomModel, schema.CustomData, schema.CustomOptimizer, schema.OwnFilter, schema.Length}
"""Sections that no option of krill uses: a person writes their YAML."""


@cache
def values(*words: str) -> dict[str, Any]:
    """The composed YAML of train, resolved; missing values stay ???."""
    needed = ["model.model_type=gpt2"] if "model=auto" in words else []  # the model's name follows it
    found = OmegaConf.to_container(composed("train", [*words, *needed]), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def used() -> Iterator[tuple[type[BaseModel], set[str]]]:
    """Every section that an option of conf/ fills, and the keys that the YAML gives it."""
    yield TrainConfig, set(values())
    for group in ("model", "data", "tokenizer", "optimizer", "scheduler", "hardware"):
        for name in options(group, [CONF_DIR]):
            section = values(f"{group}={name}")[group]
            yield type(getattr(valid(f"{group}={name}"), group)), set(section)
    yield (
        type(valid("hardware=slurm_gpu").hardware.slurm),
        set(values("hardware=slurm_gpu")["hardware"]["slurm"]),
    )
    for key in ("batch", "stop", "guard", "hub", "sweep"):
        yield type(getattr(valid(), key)), set(values()[key])
    yield type(valid().data.near), set(values()["data"]["near"])
    rules = valid("filters=web").data.filters
    for rule, written in zip(rules, values("filters=web")["data"]["filters"], strict=True):
        yield type(rule), set(written)


@cache
def valid(*words: str) -> TrainConfig:
    needed = ["data.paths=[x]"] if "data=files" in words else []
    needed += ["model.model_type=gpt2"] if "model=auto" in words else []
    needed += ["model.from=x"] if "model=pretrained" in words else []
    needed += ["tokenizer.path=x"] if "tokenizer=pretrained" in words else []
    needed += ["tokenizer.base=x", "tokenizer.vocab_size=1000"] if "tokenizer=extended" in words else []
    return validated(TrainConfig, composed("train", [*words, *needed]))


@pytest.mark.slow
def test_every_key_of_the_yaml_is_a_field_and_every_field_a_key():
    for section, keys in used():
        fields = {field.alias or name for name, field in section.model_fields.items()}
        assert keys == fields, section.__name__


def test_infers_keys_are_its_fields():
    found = OmegaConf.to_container(composed("infer", []))
    assert isinstance(found, dict)
    assert set(found) == set(schema.InferConfig.model_fields)


def test_inspects_keys_are_its_fields():
    found = OmegaConf.to_container(composed("inspect", []))
    assert isinstance(found, dict)
    assert set(found) == set(schema.InspectConfig.model_fields)


def test_every_section_is_filled_by_some_option():
    filled = {section for section, _ in used()} | {schema.InferConfig, schema.HubDataset, schema.FilePath}
    filled |= {schema.ModelPlace, schema.TokenizerPlace, schema.InspectConfig}
    concrete = {section for section in SECTIONS if not section.__name__.startswith("_")} - {schema.Section}
    assert concrete - PERSONS_OWN == filled


def test_every_choice_of_a_union_is_named_by_an_option():
    for group, union in (("model", schema.Model), ("data", schema.Data), ("optimizer", schema.Optimizer)):
        members = set(get_args(get_args(union)[0])) - PERSONS_OWN
        made = {type(getattr(valid(f"{group}={name}"), group)) for name in options(group, [CONF_DIR])}
        assert made == members
    rules = set(get_args(get_args(schema.Filter)[0])) - PERSONS_OWN
    assert {type(rule) for rule in valid("filters=web").data.filters} == rules


def test_a_rule_without_thresholds_is_that_of_filters_web():
    for rule in valid("filters=web").data.filters:
        assert type(rule)(name=rule.name) == rule


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_has_its_sentence(section: type[schema.Section]):
    own = [name for name in section.model_fields if name in section.__annotations__]
    for name in own:
        field = section.model_fields[name]
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if not is_section and field.discriminator is None:
            assert field.description, f"{section.__name__}.{name}"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_what_is_unsigned_is_a_field(section: type[schema.Section]):
    assert set(section.model_fields) >= section.UNSIGNED


@pytest.mark.parametrize("command", SCHEMA)
def test_an_unknown_key_is_refused(command: str):
    words = ["model.path=x"] if command == "infer" else []
    with pytest.raises(UsageError, match=r"no such key 'sead'\. Did you mean seed\?"):
        validated(SCHEMA[command], composed(command, [*words, "+sead=1"]))


def test_what_says_the_same_thing_twice_is_refused():
    with pytest.raises(ValidationError, match="set one to null"):
        Batch(micro_batch_size=1, gradient_accumulation_steps=2, tokens=256)
    with pytest.raises(ValidationError, match=r"hub\.id=user/name"):
        HubTarget(id=None, push=True, checkpoints=False, private=True)
    assert HubTarget(id="user/name", push=True, checkpoints=False, private=True).push


def test_pad_is_a_token_of_its_own():
    whole = valid().tokenizer.model_dump()
    for role in ("bos_token", "eos_token"):
        with pytest.raises(ValidationError, match="pad_token must differ"):
            Tokenizer(**whole | {"pad_token": whole[role]})
    assert Tokenizer(**whole | {"bos_token": whole["eos_token"]})  # one boundary token may serve as both


def test_exactly_one_of_steps_and_epochs():
    for words in (["epochs=2", "steps=3"], ["epochs=null", "steps=null"]):
        with pytest.raises(UsageError, match="exactly one of steps and epochs"):
            valid(*words)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "~", "a\\b", "줄\n바꿈", "이름" * 40])
def test_a_name_is_the_name_of_a_folder(name: str):
    whole = valid().model_dump()
    with pytest.raises(ValidationError, match=r"names no folder|bytes long"):
        TrainConfig(**whole | {"name": name})
    assert TrainConfig(**whole | {"name": "이름" * 33}).name == "이름" * 33


def test_a_validated_configuration_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        valid().seed = 1  # type: ignore[misc]


def test_a_value_is_not_a_number_by_being_infinite():
    for value in (".inf", ".nan"):
        with pytest.raises(UsageError, match="lr"):
            valid(f"lr={value}")
