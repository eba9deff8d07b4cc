"""Every option composes and validates with every command; which value wins; the original's numbers, literally."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from compositions import OPTION_ROWS, compose, load_config, load_option
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from krill.cli.argv import ParsedArguments
from krill.cli.compose import compose_config, normalize_overrides
from krill.config.overrides import clear_exclusive_keys
from krill.config.paths import CONF_DIR, list_config_groups, list_config_options
from krill.config.schema import (
    CosineSchedulerConfig,
    HubDataConfig,
    InferConfig,
    MuonConfig,
    TrainConfig,
    TransformerConfig,
)
from krill.config.validation import validate_config
from krill.errors import UsageError

DIFFERING_NAMES = {"model=auto": "gpt2", "scheduler=cosine_to_zero": "cosine"}
"""Option → the name in its section, where that is not the option's own name."""

FILTER_RULES = {"none": [], "web": ["language", "symbols", "links", "words", "lines", "repetition"]}
ACCUMULATION_KEY = "gradient_accumulation_steps"
FIXED_LRS = {
    "adamw": 1e-3,
    "muon_keller": 3e-3,
    "muon_krill": 3e-3,
    "muon_moonlight": 3e-3,
    "muon_pto": 3e-3,
}


# --- everything composes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", OPTION_ROWS, ids=" ".join)
def test_every_option_composes(row: tuple[str, ...]):
    config = load_config(*row)
    for option in row:
        group, _, name = option.partition("=")
        if group == "filters":
            assert [rule.name for rule in config.data.filters] == FILTER_RULES[name]
        elif group == "evaluation":
            chosen = yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text())
            assert config.evaluation.tasks == chosen["tasks"]
        else:
            assert getattr(config, group).name == DIFFERING_NAMES.get(option, name)


def test_the_rows_contain_every_option():
    options = {
        f"{group}={name}" for group in list_config_groups() for name in list_config_options(group, [CONF_DIR])
    }
    chosen = {option for row in OPTION_ROWS for option in row}
    assert chosen | {f"experiment={name}" for name in EXPERIMENTS} == options


@pytest.mark.parametrize("command", ["preprocess", "tokenizer"])
def test_other_commands_compose_as_train_does(command: str):
    """Their files add nothing to train.yaml, so that every option composes with them as well."""
    assert yaml.safe_load((CONF_DIR / f"{command}.yaml").read_text()) == {"defaults": ["train", "_self_"]}
    assert load_config(command=command) == load_config()
    assert load_config(*OPTION_ROWS[0], command=command) == load_config(*OPTION_ROWS[0])
    assert load_config("experiment=tiny_ko", command=command) == load_config("experiment=tiny_ko")


@pytest.mark.parametrize(
    "overrides",
    [
        ["lr=1e-2"],
        [],
        ["seed=1", "experiment=tiny_ko", "data.datasets=[{path: x}]", "optimizer=adamw", "epochs=3", "~sweep.search"],
        ["+model.config.n_layer=2", "model.model_type=gpt2", "model=auto", "hydra/launcher=basic"],
    ],
)  # fmt: skip
def test_shared_compositions_are_those_of_hydra(overrides: list[str]):
    composed = compose_config("train", overrides)
    for _ in range(2):  # setting values does not change what is shared
        assert compose("train", *overrides) == composed


def test_filters_are_chosen_separately_from_the_data(tmp_path: Path):
    (tmp_path / "data").mkdir()
    option = "defaults: [_rules, _self_]\nname: mine\nsource: python_docs\nfilters: [{name: length, max_chars: 9}]\n"
    (tmp_path / "data" / "mine.yaml").write_text(option)
    rules = {}
    for words in ([], ["filters=web"], ["filters=none"], ["data.filters=[]"]):
        config = validate_config(TrainConfig, compose_config("train", ["data=mine", *words], [tmp_path]))
        rules[" ".join(words)] = [rule.name for rule in config.data.filters]
    assert rules == {
        "": ["length"],
        "filters=web": FILTER_RULES["web"],
        "filters=none": [],
        "data.filters=[]": [],
    }
    assert (
        load_config("data=tiny_ko", "filters=web").data.min_tokens
        == load_config("data=tiny_ko").data.min_tokens
        == 150
    )


@pytest.mark.parametrize("group", ["filters", "experiment"])
def test_null_chooses_no_option(group: str):
    assert normalize_overrides("train", ParsedArguments(overrides=[f"{group}=null", "seed=1"])) == ["seed=1"]


def test_infer_composes():
    assert validate_config(InferConfig, compose("infer", "model.path=x")).model.path == "x"


@pytest.mark.parametrize("launcher", ["basic", "submitit_local", "submitit_slurm"])
def test_every_launcher_composes(launcher: str):
    assert load_config(f"hydra/launcher={launcher}") == load_config()


@pytest.mark.parametrize("optimizer", FIXED_LRS)
def test_every_optimizer_composes_with_other_models(optimizer: str):
    for words in (["model=tiny_ko"], ["model=qwen3_pico"], ["experiment=qwen_micro_1k"]):
        assert load_config(*words, f"optimizer={optimizer}").optimizer.name == optimizer


def test_the_default_needs_neither_network_nor_gpu():
    default = load_config()
    assert default.data.source == "python_docs"
    assert default.model.name == "llama_nano"
    assert default.tokenizer.path is None
    assert default.device == "auto"
    assert default.hub.push is False
    assert default.resume == "auto"
    assert default.epochs is None
    assert default.steps is not None


# --- which value wins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", FIXED_LRS)
def test_each_optimizer_sets_the_fixed_lr(optimizer: str):
    assert load_config(f"optimizer={optimizer}", "rule=off").lr == FIXED_LRS[optimizer]


@pytest.mark.parametrize("optimizer", FIXED_LRS)
def test_the_lr_of_an_experiment_overrides_that_of_any_optimizer(optimizer: str):
    assert load_config("experiment=tiny_ko", f"optimizer={optimizer}").lr == 1e-3
    assert load_config(f"optimizer={optimizer}", "experiment=tiny_ko").lr == 1e-3


@pytest.mark.parametrize("optimizer", FIXED_LRS)
def test_the_lr_of_the_command_line_overrides_both_and_sets_all_rates_of_the_optimizer(optimizer: str):
    for words in ([], ["experiment=tiny_ko"]):
        one, two = (load_config(*words, f"optimizer={optimizer}", f"lr={lr}") for lr in (1e-2, 2e-2))
        assert (one.lr, one.optimizer.lr) == (1e-2, 1e-2)
        if isinstance(one.optimizer, MuonConfig):
            assert isinstance(two.optimizer, MuonConfig)
            assert two.optimizer.muon_lr == pytest.approx(2 * one.optimizer.muon_lr)
            decays = [muon.muon_lr * muon.muon_weight_decay for muon in (one.optimizer, two.optimizer)]
            assert decays == pytest.approx(
                [config.lr * config.optimizer.weight_decay for config in (one, two)]
            )


def test_a_sweep_over_optimizers_uses_the_lr_of_each():
    overrides = OverridesParser.create().parse_overrides(["optimizer=adamw,muon_keller", "rule=off"])
    points = BasicSweeper.split_arguments(overrides, None)[0]
    assert [load_config(*point).lr for point in points] == [1e-3, 3e-3]


def test_a_chosen_option_overrides_that_of_an_experiment():
    chosen = load_config("experiment=tiny_ko", "data=python_docs", "scheduler=constant")
    assert chosen.data.name == "python_docs"
    assert chosen.model.name == "tiny_ko"


@pytest.mark.parametrize("experiment", [None, "tiny_ko"])
def test_steps_and_epochs_clear_each_other(experiment: str | None):
    words = [f"experiment={experiment}"] if experiment else []
    assert (load_config(*words, "steps=5").steps, load_config(*words, "steps=5").epochs) == (5, None)
    assert (load_config(*words, "epochs=2").steps, load_config(*words, "epochs=2").epochs) == (None, 2.0)


@pytest.mark.parametrize(
    ("experiment", "override", "expected"),
    [
        ("steps: 7", "epochs=2", {"steps": None, "epochs": 2}),
        ("epochs: 7", "steps=2", {"steps": 2, "epochs": None}),
        ("batch: {tokens: 1024}", f"batch.{ACCUMULATION_KEY}=2", {"tokens": None, ACCUMULATION_KEY: 2}),
        (f"batch: {{{ACCUMULATION_KEY}: 2}}", "batch.tokens=1024", {"tokens": 1024, ACCUMULATION_KEY: None}),
    ],
)
def test_an_override_clears_the_exclusive_key_of_an_experiment(
    tmp_path: Path, experiment: str, override: str, expected: dict[str, int | None]
):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{experiment}\n")
    words = clear_exclusive_keys(["experiment=mine", override])
    config = validate_config(TrainConfig, compose_config("train", words, [tmp_path]))
    values = config.model_dump() | config.batch.model_dump()
    assert {key: values[key] for key in expected} == expected


def test_the_model_follows_the_sequence_length():
    assert load_config("model=tiny_ko").model.max_position_embeddings == 8192
    assert load_config("model=tiny_ko", "sequence_len=256").model.max_position_embeddings == 256


# --- the scales of Muon ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [("muon_moonlight", 1.0), ("muon_krill", 1.0), ("muon_keller", 5.5426), ("muon_pto", 5.5426)],
)
def test_muon_lr_at_width_768(optimizer: str, factor: float):
    muon = load_config("model=tiny_ko", f"optimizer={optimizer}", "lr=1e-3").optimizer
    assert isinstance(muon, MuonConfig)
    assert muon.muon_lr == pytest.approx(1e-3 * factor, rel=1e-4)


def test_muon_lr_follows_the_scale_for_every_preset():
    for optimizer in ("muon_moonlight", "muon_keller"):
        words = ("model=tiny_ko", f"optimizer={optimizer}", "lr=1e-3", "rule=off")
        rms, spectral = (
            load_config(*words, f"optimizer.scale={scale}").optimizer for scale in ("rms", "spectral")
        )
        assert (rms.muon_lr, rms.muon_weight_decay) == (1e-3, 0.1)
        assert spectral.muon_lr == pytest.approx(5.5426e-3, rel=1e-4)


@pytest.mark.parametrize(
    "override", ["lr=abc", "model.hidden_size=wide", "model.hidden_size=-4", "optimizer.scale=big"]
)
@pytest.mark.parametrize("optimizer", ["muon_moonlight", "muon_keller"])
def test_an_invalid_value_is_reported_by_its_key(override: str, optimizer: str):
    with pytest.raises(UsageError, match=override.partition("=")[0]) as raised:
        load_config(f"optimizer={optimizer}", override)
    assert "interpolation" not in str(raised.value)


@pytest.mark.parametrize("optimizer", ["muon_moonlight", "muon_krill", "muon_keller", "muon_pto"])
def test_muon_lr_times_decay_equals_adamws(optimizer: str):
    muon = load_config(f"optimizer={optimizer}", "lr=2e-3", "optimizer.weight_decay=0.1").optimizer
    assert isinstance(muon, MuonConfig)
    assert muon.muon_lr * muon.muon_weight_decay == pytest.approx(2e-3 * 0.1)


def test_the_muon_presets():
    keys = (
        "scale",
        "weight_decay",
        "momentum",
        "nesterov",
        "ns_steps",
        "betas",
        "eps",
        "max_grad_norm",
        "z_loss",
    )
    presets = {
        name: tuple(getattr(load_config(f"optimizer={name}", "rule=off").optimizer, key) for key in keys)
        for name in FIXED_LRS
        if name != "adamw"
    }
    assert presets == {
        "muon_moonlight": ("rms", 0.1, 0.95, True, 5, (0.9, 0.95), 1e-8, 1.0, 0.0),
        "muon_keller": ("spectral", 0.1, 0.95, True, 5, (0.9, 0.95), 1e-10, 1.0, 0.0),
        "muon_krill": ("rms", 0.1, 0.9, True, 5, (0.8, 0.99), 1e-8, 1.0, 0.03),
        "muon_pto": ("spectral", 0.0, 0.95, True, 5, (0.9, 0.95), 1e-10, 1.0, 0.0),
    }


def test_pretrained_weights_get_no_z_loss():
    assert load_config("model=pretrained", "model.from=run").optimizer.z_loss == 0.0


# --- the original's numbers --------------------------------------------------------------------------------

SIZES = {"pico": (16, 2, 64, 4, 4), "micro": (256, 12, 1024, 4, 2), "small": (768, 27, 1920, 12, 4)}
INIT = {"pico": 0.02, "micro": 1 / math.sqrt(256), "small": 1 / math.sqrt(768)}


def get_shape(model: Any) -> tuple[int, ...]:
    assert isinstance(model, TransformerConfig)
    heads = (model.num_attention_heads, model.num_key_value_heads)
    return (model.hidden_size, model.num_hidden_layers, model.intermediate_size, *heads)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("size", SIZES)
def test_the_originals_models(family: str, size: str):
    model = load_option(f"model={family}_{size}").model
    assert isinstance(model, TransformerConfig)
    assert model.family == family
    assert get_shape(model) == SIZES[size]
    assert model.tie_word_embeddings
    assert model.rope_theta == 10_000
    assert model.head_dim == (128 if family == "qwen3" else None)
    assert model.initializer_range == pytest.approx(INIT[size] if family == "llama" else 0.02)


def test_the_originals_tiny_ko():
    config = load_config("experiment=tiny_ko")
    assert isinstance(config.model, TransformerConfig)
    assert config.model.family == "llama"
    assert get_shape(config.model) == (768, 27, 1920, 12, 4)
    assert config.model.rope_theta == 1_000_000
    assert config.model.tie_word_embeddings
    assert config.model.initializer_range == pytest.approx(1 / math.sqrt(768))
    assert isinstance(config.data, HubDataConfig)
    assert [(data.path, data.split, data.text_column) for data in config.data.datasets] == [
        ("HAERAE-HUB/KOREAN-WEBTEXT", "train[:10000]", "text"),
        ("HAERAE-HUB/KOREAN-SyntheticText-1.5B", "train[:10000]", "text"),
        ("minpeter/fineweb-2-edu-korean", "train[:10000]", "text"),
        ("heegyu/korean-petitions", "train", "content"),
    ]


EXPERIMENTS = {
    "llama_pico_1k": (1024, "llama_pico", "muon_moonlight", 2048, "auto"),
    "qwen_pico_1k": (1024, "qwen3_pico", "muon_moonlight", 2048, "auto"),
    "qwen_micro_1k": (1024, "qwen3_micro", "muon_pto", 32, False),
    "tiny_ko": (8192, "tiny_ko", "muon_moonlight", 16, "auto"),
}
"""Experiment → sequence length, model, optimizer, micro batch size and resume of the original's file."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_originals_example_files(name: str):
    sequence_len, model, optimizer, micro_batch, resume = EXPERIMENTS[name]
    config = load_config(f"experiment={name}")
    assert config.name == name
    assert config.sequence_len == sequence_len
    assert config.model.name == model
    assert config.optimizer.name == optimizer
    assert config.batch.micro_batch_size == micro_batch
    assert config.batch.gradient_accumulation_steps in (None, 1)
    assert config.resume == resume
    assert (config.epochs, config.steps) == (1, None)
    assert (config.lr, config.optimizer.weight_decay) == (1e-3, 0.01)
    assert config.data.min_tokens == 150
    assert config.data.min_chars == 100
    assert config.data.validation_fraction == 0.001
    assert config.tokenizer.vocab_size == 32_000
    assert config.packing == "wrapped"
    assert isinstance(config.scheduler, CosineSchedulerConfig)
    assert (config.scheduler.warmup, config.scheduler.min_ratio) == (0.05, 0.0)
    if name != "tiny_ko":
        assert isinstance(config.data, HubDataConfig)
        (data,) = config.data.datasets
        assert (data.path, data.split, data.text_column) == ("pretraining/tiny-korean-100k", "train", "text")


def test_numbers_in_conf_are_not_read_as_text():
    """YAML 1.1 reads 1e-3 as text; conf/ uses 1.0e-03."""
    for file in CONF_DIR.rglob("*.yaml"):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        texts = [value for value in flatten_leaves(values) if isinstance(value, str)]
        assert not [text for text in texts if text.replace(".", "", 1).replace("e-", "").isdigit()], file


def flatten_leaves(values: Any) -> list[Any]:
    if isinstance(values, dict):
        return [leaf for value in values.values() for leaf in flatten_leaves(value)]
    return (
        [leaf for value in values for leaf in flatten_leaves(value)] if isinstance(values, list) else [values]
    )
