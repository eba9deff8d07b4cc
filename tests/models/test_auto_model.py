"""model.family=auto accepts the keys of the architecture, except those that krill sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from krill.config.schema import AutoModelConfig
from krill.errors import UsageError
from krill.models.build import build_model, count_parameters


def make_auto_config(model_type: str = "gpt2", **keys: Any) -> AutoModelConfig:
    return AutoModelConfig(
        name="any", family="auto", model_type=model_type, max_position_embeddings=40, config=keys
    )


def build_tiny_model(config: AutoModelConfig) -> Any:
    return build_model(config, 90, bos_id=5, eos_id=6, pad_id=7)


@pytest.mark.parametrize("keys", [{"n_embd": 24, "n_layer": 2}, {"hidden_size": 24, "num_hidden_layers": 2}])
def test_keys_use_the_name_of_the_class_or_the_shared_name(keys: dict[str, Any]) -> None:
    config = make_auto_config(**keys, n_head=3)
    model = build_tiny_model(config)
    assert model.config.model_type == "gpt2"
    assert (model.config.n_embd, model.config.n_layer, model.config.n_head) == (24, 2, 3)
    assert count_parameters(config, 90) == model.num_parameters()


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "phi3"])
def test_vocabulary_ids_and_length_are_set_and_the_cache_is_off(model_type: str) -> None:
    model = build_tiny_model(
        make_auto_config(model_type, hidden_size=24, num_hidden_layers=1, num_attention_heads=3)
    )
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 90
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 6, 7)
    assert model.config.max_position_embeddings == 40
    assert model.config.use_cache is False
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_seed_determines_the_weights() -> None:
    small = make_auto_config(n_embd=24, n_layer=1, n_head=3)
    torch.manual_seed(1)
    one = build_tiny_model(small)
    torch.manual_seed(1)
    two = build_tiny_model(small)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_embed": 3}, r"model\.config\.n_embed: GPT2Config .* no such key\. Did you mean n_embd\?"),
        ({"vocab_size": 9}, r"model\.config\.vocab_size: leave it out; it follows the tokenizer"),
        ({"n_positions": 9}, r"leave it out; set model\.max_position_embeddings="),
        ({"use_cache": True}, "leave it out; it is off"),
        ({"n_embd": "wide"}, r"cannot build gpt2 .*expected int"),
        ({"n_embd": 33}, "divisible"),
    ],
)
def test_errors_name_an_invalid_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_tiny_model(make_auto_config(**keys))


def test_all_invalid_keys_are_reported_together() -> None:
    with pytest.raises(UsageError) as error:
        build_tiny_model(make_auto_config(n_embed=3, n_layers=2))
    assert len(str(error.value).splitlines()) == 2


def test_the_error_names_an_unknown_architecture() -> None:
    with pytest.raises(UsageError, match=r"model\.model_type=gptt2: .* similar names: .*gpt2"):
        build_tiny_model(make_auto_config("gptt2"))
