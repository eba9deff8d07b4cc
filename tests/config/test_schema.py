"""YAML and schema are equal in both directions; every field has its sentence; sections refuse what cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import pytest
from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from krill.cli.compose import compose_config
from krill.config import schema
from krill.config.commands import COMMAND_SCHEMAS
from krill.config.paths import CONF_DIR, list_config_options
from krill.config.schema import BatchConfig, HubConfig, TokenizerConfig, TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError

SECTIONS = [
    value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, schema.Section)
]
CUSTOM_SECTIONS = {
    schema.CustomModelConfig,
    schema.CustomDataConfig,
    schema.CustomOptimizerConfig,
    schema.CustomFilter,
    schema.LengthFilter,
}
"""Sections that no option of krill uses: a person writes their YAML."""


@cache
def compose_values(*words: str) -> dict[str, Any]:
    """The composed YAML of train, resolved; missing values stay ???."""
    needed = ["model.model_type=gpt2"] if "model=auto" in words else []  # the model's name follows it
    found = OmegaConf.to_container(compose_config("train", [*words, *needed]), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def iterate_sections() -> Iterator[tuple[type[BaseModel], set[str]]]:
    """Every section that an option of conf/ fills, and the keys that the YAML gives it."""
    yield TrainConfig, set(compose_values())
    for group in ("model", "data", "tokenizer", "optimizer", "scheduler", "hardware"):
        for name in list_config_options(group, [CONF_DIR]):
            section = compose_values(f"{group}={name}")[group]
            yield type(getattr(load_config(f"{group}={name}"), group)), set(section)
    yield (
        type(load_config("hardware=slurm_gpu").hardware.slurm),
        set(compose_values("hardware=slurm_gpu")["hardware"]["slurm"]),
    )
    for key in ("batch", "stop", "skip_step", "hub", "sweep"):
        yield type(getattr(load_config(), key)), set(compose_values()[key])
    yield type(load_config().data.minhash), set(compose_values()["data"]["minhash"])
    rules = load_config("filters=web").data.filters
    for rule, written in zip(rules, compose_values("filters=web")["data"]["filters"], strict=True):
        yield type(rule), set(written)


@cache
def load_config(*words: str) -> TrainConfig:
    needed = ["data.paths=[x]"] if "data=files" in words else []
    needed += ["model.model_type=gpt2"] if "model=auto" in words else []
    needed += ["model.from=x"] if "model=pretrained" in words else []
    needed += ["tokenizer.path=x"] if "tokenizer=pretrained" in words else []
    needed += ["tokenizer.base=x", "tokenizer.vocab_size=1000"] if "tokenizer=extended" in words else []
    return validate_config(TrainConfig, compose_config("train", [*words, *needed]))


@pytest.mark.slow
def test_every_key_of_the_yaml_is_a_field_and_every_field_a_key():
    for section, keys in iterate_sections():
        fields = {field.alias or name for name, field in section.model_fields.items()}
        assert keys == fields, section.__name__


def test_infers_keys_are_its_fields():
    found = OmegaConf.to_container(compose_config("infer", []))
    assert isinstance(found, dict)
    assert set(found) == set(schema.InferConfig.model_fields)


def test_inspects_keys_are_its_fields():
    found = OmegaConf.to_container(compose_config("inspect", []))
    assert isinstance(found, dict)
    assert set(found) == set(schema.InspectConfig.model_fields)


def test_every_section_is_filled_by_some_option():
    filled = {section for section, _ in iterate_sections()} | {
        schema.InferConfig,
        schema.HubDatasetConfig,
        schema.FileEntryConfig,
    }
    filled |= {schema.ModelPathConfig, schema.TokenizerPathConfig, schema.InspectConfig}
    concrete = {section for section in SECTIONS if not section.__name__.startswith("_")} - {schema.Section}
    assert concrete - CUSTOM_SECTIONS == filled


def test_every_choice_of_a_union_is_named_by_an_option():
    for group, union in (
        ("model", schema.ModelConfig),
        ("data", schema.DataConfig),
        ("optimizer", schema.OptimizerConfig),
    ):
        members = set(get_args(get_args(union)[0])) - CUSTOM_SECTIONS
        made = {
            type(getattr(load_config(f"{group}={name}"), group))
            for name in list_config_options(group, [CONF_DIR])
        }
        assert made == members
    rules = set(get_args(get_args(schema.Filter)[0])) - CUSTOM_SECTIONS
    assert {type(rule) for rule in load_config("filters=web").data.filters} == rules


def test_a_rule_without_thresholds_is_that_of_filters_web():
    for rule in load_config("filters=web").data.filters:
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
    assert set(section.model_fields) >= section.unsigned_keys()


@pytest.mark.parametrize("command", COMMAND_SCHEMAS)
def test_an_unknown_key_is_refused(command: str):
    words = ["model.path=x"] if command == "infer" else []
    with pytest.raises(UsageError, match=r"no such key 'sead'\. Did you mean seed\?"):
        validate_config(COMMAND_SCHEMAS[command], compose_config(command, [*words, "+sead=1"]))


def test_what_says_the_same_thing_twice_is_refused():
    with pytest.raises(ValidationError, match="set one to null"):
        BatchConfig(micro_batch_size=1, gradient_accumulation_steps=2, tokens=256)
    with pytest.raises(ValidationError, match=r"hub\.id=user/name"):
        HubConfig(id=None, push=True, checkpoints=False, private=True)
    assert HubConfig(id="user/name", push=True, checkpoints=False, private=True).push


def test_pad_is_a_token_of_its_own():
    whole = load_config().tokenizer.model_dump()
    for role in ("bos_token", "eos_token"):
        with pytest.raises(ValidationError, match="pad_token must differ"):
            TokenizerConfig(**whole | {"pad_token": whole[role]})
    assert TokenizerConfig(
        **whole | {"bos_token": whole["eos_token"]}
    )  # one boundary token may serve as both


def test_exactly_one_of_steps_and_epochs():
    for words in (["epochs=2", "steps=3"], ["epochs=null", "steps=null"]):
        with pytest.raises(UsageError, match="exactly one of steps and epochs"):
            load_config(*words)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "~", "a\\b", "줄\n바꿈", "이름" * 40])
def test_a_name_is_the_name_of_a_folder(name: str):
    whole = load_config().model_dump()
    with pytest.raises(ValidationError, match=r"names no folder|bytes long"):
        TrainConfig(**whole | {"name": name})
    assert TrainConfig(**whole | {"name": "이름" * 33}).name == "이름" * 33


def test_a_validated_configuration_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        load_config().seed = 1  # type: ignore[misc]


def test_a_value_is_not_a_number_by_being_infinite():
    for value in (".inf", ".nan"):
        with pytest.raises(UsageError, match="lr"):
            load_config(f"lr={value}")
