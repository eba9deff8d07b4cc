"""Models match their configuration: parameters, heads, rotary base, tied weights, initial weights."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from compositions import compose

from krill.config.schema import CustomModelConfig, TransformerConfig
from krill.errors import UsageError
from krill.models.build import build_model, count_parameters

ORIGINAL: dict[str, tuple[int, int, int, int, int, int]] = {
    # hidden, intermediate, layers, heads, key and value heads, head width
    "llama_pico": (16, 64, 2, 4, 4, 4),
    "llama_micro": (256, 1024, 12, 4, 2, 64),
    "llama_small": (768, 1920, 27, 12, 4, 64),
    "qwen3_pico": (16, 64, 2, 4, 4, 128),
    "qwen3_micro": (256, 1024, 12, 4, 2, 128),
    "qwen3_small": (768, 1920, 27, 12, 4, 128),
    "tiny_ko": (768, 1920, 27, 12, 4, 64),
}


@cache
def load_preset(name: str) -> TransformerConfig:
    from omegaconf import OmegaConf

    return TransformerConfig.model_validate(
        OmegaConf.to_container(compose("train", f"model={name}").model, resolve=True)
    )


def make_small_config(**overrides: Any) -> TransformerConfig:
    values: dict[str, Any] = {
        "name": "small", "family": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": None, "max_position_embeddings": 32,
        "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "initializer_range": 0.02,
    }  # fmt: skip
    return TransformerConfig.model_validate(values | overrides)


def build_small_model(config: TransformerConfig, vocab_size: int = 300) -> Any:
    torch.manual_seed(0)
    return build_model(config, vocab_size, bos_id=5, eos_id=6, pad_id=7)


@pytest.mark.parametrize("name", ORIGINAL)
def test_presets_of_the_original_have_the_expected_number_of_parameters(name: str) -> None:
    hidden, intermediate, layers, heads, kv_heads, width = ORIGINAL[name]
    attention = 2 * hidden * heads * width + 2 * hidden * kv_heads * width
    norms = 2 * hidden + (2 * width if name.startswith("qwen3") else 0)  # Qwen3 norms queries and keys too
    layer = attention + 3 * hidden * intermediate + norms
    assert count_parameters(load_preset(name), 32_000) == 32_000 * hidden + layers * layer + hidden


def test_counting_allocates_nothing() -> None:
    huge = make_small_config(
        hidden_size=65536, intermediate_size=2**18, num_hidden_layers=100
    )  # 6 trillion parameters
    assert count_parameters(huge, 1000) > 5e12


def test_untied_embeddings_are_counted_twice() -> None:
    tied, untied = (
        count_parameters(make_small_config(tie_word_embeddings=tie), 300) for tie in (True, False)
    )
    assert untied - tied == 300 * 64


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_tied_embeddings_are_one_matrix(family: str, tie: bool) -> None:
    model = build_small_model(make_small_config(family=family, tie_word_embeddings=tie))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tie


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_the_rotary_base_takes_effect(family: str, theta: float) -> None:
    model = build_small_model(make_small_config(family=family, rope_theta=theta, head_dim=8))
    expected = [theta ** (-2 * index / 8) for index in range(4)]
    assert model.model.rotary_emb.inv_freq.tolist() == pytest.approx(expected, rel=1e-6)
    assert model.config.rope_parameters["rope_theta"] == theta


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("std", [0.02, 1 / 8])
def test_initial_weights_have_the_standard_deviation(family: str, std: float) -> None:
    model = build_small_model(make_small_config(family=family, initializer_range=std))
    for name in (
        "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ):
        weights = dict(model.named_parameters())[name]
        assert weights.std().item() == pytest.approx(std, rel=0.1), name
    assert (model.model.norm.weight == 1).all()


def test_initial_weights_of_the_original_depend_on_the_width() -> None:
    assert load_preset("tiny_ko").initializer_range == pytest.approx(1 / math.sqrt(768))
    assert load_preset("llama_micro").initializer_range == pytest.approx(1 / 16)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_head_dim(family: str) -> None:
    assert build_small_model(make_small_config(family=family)).config.head_dim == 16
    model = build_small_model(make_small_config(family=family, head_dim=24))
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (4 * 24, 64)
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (2 * 24, 64)


def test_every_key_of_the_configuration_takes_effect() -> None:
    config = make_small_config(rms_norm_eps=1e-3, max_position_embeddings=77, num_hidden_layers=3)
    built = build_small_model(config).config
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "initializer_range"):  # fmt: skip
        assert getattr(built, key) == getattr(config, key), key


def test_vocabulary_and_special_ids_come_from_the_tokenizer() -> None:
    model = build_small_model(make_small_config(), vocab_size=311)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 311
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 6, 7)


def test_weights_are_fp32_and_determined_by_the_seed() -> None:
    one, two = build_small_model(make_small_config()), build_small_model(make_small_config())
    torch.manual_seed(1)
    other = build_model(make_small_config(), 300, 5, 6, 7)
    equal = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(equal)
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}


def test_the_cache_is_off_so_that_rows_do_not_leak() -> None:
    assert build_small_model(make_small_config()).config.use_cache is False


@pytest.mark.parametrize("backend", ["varlen", "sdpa", "eager"])
def test_the_requested_attention_backend_is_set(backend: str) -> None:
    import krill.training.compute.attention  # noqa: F401  (registers varlen)

    assert build_model(make_small_config(), 300, 5, 6, 7, backend).config._attn_implementation == backend


# --- custom models -----------------------------------------------------------------------------------------

CUSTOM_MODEL = """
from transformers import GPT2Config, GPT2LMHeadModel

def make(vocab_size, max_position_embeddings, bos_token_id, eos_token_id, pad_token_id, width):
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=max_position_embeddings, n_embd=width, n_layer=1, n_head=2,
        bos_token_id=bos_token_id, eos_token_id=eos_token_id, pad_token_id=pad_token_id,
    ))
"""


def make_custom_config(reference: str, **options: Any) -> CustomModelConfig:
    return CustomModelConfig(
        name="own", family="custom", max_position_embeddings=32, build=reference, options=options
    )


def test_a_custom_model_receives_vocabulary_ids_and_options(tmp_path: Path) -> None:
    file = tmp_path / "own_model.py"
    file.write_text(CUSTOM_MODEL)
    model: Any = build_model(make_custom_config(f"{file}:make", width=12), 300, 5, 6, 7)
    assert model.config.model_type == "gpt2"
    assert (model.config.vocab_size, model.config.n_positions, model.config.n_embd) == (300, 32, 12)
    assert (model.config.bos_token_id, model.generation_config.eos_token_id) == (5, 6)
    expected = 300 * 12 + 32 * 12 + (12 * 12 * 12 + 13 * 12) + 2 * 12  # wte, wpe, block, ln_f
    assert count_parameters(make_custom_config(f"{file}:make", width=12), 300) == expected


def test_a_custom_function_must_build_a_transformers_model(tmp_path: Path) -> None:
    file = tmp_path / "own_model.py"
    file.write_text("import torch\n\ndef make(**_):\n    return torch.nn.Linear(2, 2)\n")
    with pytest.raises(UsageError, match=r"own_model\.py:make: returned Linear; return a PreTrainedModel"):
        build_model(make_custom_config(f"{file}:make"), 300, 5, 6, 7)


def test_the_error_names_a_missing_function(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.py"):
        build_model(make_custom_config(f"{tmp_path}/none.py:make"), 300, 5, 6, 7)
