"""YAML and schema have the same keys; every field is documented; sections reject invalid values."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import pytest
from compositions import OPTION_ROWS, add_required_overrides, compose, load_config, load_option
from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from krill.config import schema
from krill.config.commands import COMMAND_SCHEMAS
from krill.config.overrides import MODEL_COMMANDS
from krill.config.paths import CONF_DIR, list_config_options
from krill.config.schema import BatchConfig, HubConfig, TokenizerConfig, TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError

TOO_LARGE = (
    "seed=4294967296", "steps=1e23", "steps=99999999999999999999", "epochs=1e300", "lr=1e300",
    "sequence_len=1000000000000",
    "model.num_hidden_layers=100000000", "model.hidden_size=99999999999", "batch.micro_batch_size=1000000000000",
    "tokenizer.vocab_size=100000000000", "hardware.threads=100000000", "data.workers=100000000",
    "data.min_chars=10000000000000000000000", "optimizer.weight_decay=1e300", "scheduler.warmup=1",
    "keep_checkpoints=0", "batch.micro_batch_size=-1",
)  # fmt: skip

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
"""Sections that no option of krill uses, for a user's YAML."""


@cache
def compose_values(*overrides: str) -> dict[str, Any]:
    """Returns the composed YAML of train as a dict, resolved."""
    values = OmegaConf.to_container(compose("train", *add_required_overrides(overrides)), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@cache
def list_sections() -> list[tuple[type[BaseModel], set[str]]]:
    """Returns every section that an option of conf/ fills, with the keys that the YAML gives it."""
    sections: list[tuple[type[BaseModel], set[str]]] = [(TrainConfig, set(compose_values()))]
    for row in OPTION_ROWS:
        config, values = load_config(*row), compose_values(*row)
        for group in (option.partition("=")[0] for option in row):
            if group != "filters":
                sections.append((type(getattr(config, group)), set(values[group])))
        if config.hardware.slurm is not None:
            sections.append((type(config.hardware.slurm), set(values["hardware"]["slurm"])))
        for rule, rule_values in zip(config.data.filters, values["data"]["filters"], strict=True):
            sections.append((type(rule), set(rule_values)))
    for key in ("batch", "stop", "skip_step", "hub", "sweep"):
        sections.append((type(getattr(load_config(), key)), set(compose_values()[key])))
    sections.append((type(load_config().data.minhash), set(compose_values()["data"]["minhash"])))
    return sections


def test_every_key_of_the_yaml_is_a_field_and_every_field_a_key():
    for section, keys in list_sections():
        fields = {field.alias or name for name, field in section.model_fields.items()}
        assert keys == fields, section.__name__


@pytest.mark.parametrize("command", ["infer", "inspect", "plan", "serve", "export", "evaluate"])
def test_the_keys_of_other_commands_are_their_fields(command: str):
    values = OmegaConf.to_container(compose(command))
    assert isinstance(values, dict)
    assert set(values) == set(COMMAND_SCHEMAS[command].model_fields)


def test_every_section_is_filled_by_some_option():
    filled = {section for section, _ in list_sections()} | {
        schema.InferConfig,
        schema.ExportConfig,
        schema.EvaluateConfig,
        schema.EvaluationConfig,
        schema.HubDatasetConfig,
        schema.FileEntryConfig,
    }
    filled |= {schema.ModelPathConfig, schema.TokenizerPathConfig, schema.InspectConfig}
    filled |= {schema.PlanConfig, schema.PlanOptionsConfig}
    filled |= {schema.ServeConfig, schema.ServerConfig, schema.LimitsConfig}
    bases = {schema.Section, schema.ModelCommandConfig}
    concrete = {section for section in SECTIONS if not section.__name__.startswith("_")} - bases
    assert concrete - CUSTOM_SECTIONS == filled


def test_every_member_of_a_union_is_chosen_by_an_option():
    for group, union in (
        ("model", schema.ModelConfig),
        ("data", schema.DataConfig),
        ("optimizer", schema.OptimizerConfig),
    ):
        members = set(get_args(get_args(union)[0])) - CUSTOM_SECTIONS
        chosen = {
            type(getattr(load_option(f"{group}={name}"), group))
            for name in list_config_options(group, [CONF_DIR])
        }
        assert chosen == members
    rules = set(get_args(get_args(schema.Filter)[0])) - CUSTOM_SECTIONS
    assert {type(rule) for rule in load_option("filters=web").data.filters} == rules


def test_the_default_thresholds_of_rules_are_those_of_filters_web():
    for rule in load_option("filters=web").data.filters:
        assert type(rule)(name=rule.name) == rule


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_is_documented(section: type[schema.Section]):
    for name in section.model_fields.keys() & section.__annotations__.keys():
        field = section.model_fields[name]
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if not is_section and field.discriminator is None:
            assert field.description, f"{section.__name__}.{name}"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_unsigned_key_is_a_field(section: type[schema.Section]):
    assert set(section.model_fields) >= section.get_unsigned_keys()


@pytest.mark.parametrize("command", COMMAND_SCHEMAS)
def test_an_unknown_key_is_rejected(command: str):
    overrides = ["model.path=x"] if command in MODEL_COMMANDS else []
    with pytest.raises(UsageError, match=r"no such key 'nmae'\. Did you mean name\?"):
        validate_config(COMMAND_SCHEMAS[command], compose(command, *overrides, "+nmae=1"))


def test_contradicting_values_are_rejected():
    with pytest.raises(ValidationError, match="set one to null"):
        BatchConfig(micro_batch_size=1, gradient_accumulation_steps=2, tokens=256)
    with pytest.raises(ValidationError, match=r"hub\.id=user/name"):
        HubConfig(id=None, push=True, checkpoints=False, private=True)
    assert HubConfig(id="user/name", push=True, checkpoints=False, private=True).push


def test_the_pad_token_differs_from_boundary_tokens():
    values = load_config().tokenizer.model_dump()
    for role in ("bos_token", "eos_token"):
        with pytest.raises(ValidationError, match="pad_token must differ"):
            TokenizerConfig(**values | {"pad_token": values[role]})
    assert TokenizerConfig(**values | {"bos_token": values["eos_token"]})  # one token may be both


def test_exactly_one_of_steps_and_epochs_is_set():
    for overrides in (["epochs=2", "steps=3"], ["epochs=null", "steps=null"]):
        with pytest.raises(UsageError, match="exactly one of steps and epochs"):
            load_config(*overrides)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "~", "a\\b", "줄\n바꿈", "이름" * 40])
def test_a_name_must_be_a_valid_folder_name(name: str):
    values = load_config().model_dump()
    with pytest.raises(ValidationError, match=r"is not a folder name|bytes long"):
        TrainConfig(**values | {"name": name})
    assert TrainConfig(**values | {"name": "이름" * 33}).name == "이름" * 33


def test_a_validated_configuration_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load_config().seed = 1  # type: ignore[misc]


def test_infinite_numbers_and_nan_are_rejected():
    for value in (".inf", ".nan"):
        with pytest.raises(UsageError, match="lr"):
            load_config(f"lr={value}")


@pytest.mark.parametrize("override", TOO_LARGE)
def test_numbers_that_no_library_takes_are_refused(override: str):
    with pytest.raises(UsageError) as raised:
        load_config(override)
    (error,) = str(raised.value).splitlines()
    assert error.startswith(override.partition("=")[0])


def test_the_tokens_of_a_step_are_limited():
    with pytest.raises(UsageError, match="tokens per step"):
        load_config(
            "batch.micro_batch_size=1000000",
            "batch.gradient_accumulation_steps=2000000000",
            "sequence_len=2000000000",
        )  # fmt: skip


def test_a_warm_up_and_a_decay_that_exceed_the_run_are_refused():
    with pytest.raises(UsageError, match=r"use scheduler\.decay=0\.1 or less"):
        load_config("scheduler=wsd", "scheduler.warmup=0.9", "scheduler.decay=0.2")
    assert load_config("scheduler=wsd", "scheduler.warmup=0.9", "scheduler.decay=0.1").scheduler.name == "wsd"


def test_an_odd_head_is_refused():
    with pytest.raises(UsageError, match="head_dim=11 is odd"):
        load_config("model.hidden_size=66", "model.num_attention_heads=6")
