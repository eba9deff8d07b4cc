"""model.family=auto: the architecture's own keys, and nothing that krill sets itself."""

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
def test_keys_go_by_the_classes_own_name_or_the_shared_one(keys: dict[str, Any]) -> None:
    config = make_auto_config(**keys, n_head=3)
    model = build_tiny_model(config)
    assert model.config.model_type == "gpt2"
    assert (model.config.n_embd, model.config.n_layer, model.config.n_head) == (24, 2, 3)
    assert count_parameters(config, 90) == model.num_parameters()


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "phi3"])
def test_vocabulary_ids_and_length_follow_and_the_cache_is_off(model_type: str) -> None:
    model = build_tiny_model(
        make_auto_config(model_type, hidden_size=24, num_hidden_layers=1, num_attention_heads=3)
    )
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 90
    for place in (model.config, model.generation_config):
        assert (place.bos_token_id, place.eos_token_id, place.pad_token_id) == (5, 6, 7)
    assert model.config.max_position_embeddings == 40
    assert model.config.use_cache is False
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_seed_decides_the_weights() -> None:
    small = make_auto_config(n_embd=24, n_layer=1, n_head=3)
    torch.manual_seed(1)
    one = build_tiny_model(small)
    torch.manual_seed(1)
    two = build_tiny_model(small)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"n_embed": 3}, r"model\.config\.n_embed: GPT2Config .* no such key\. Did you mean n_embd\?"),
        ({"vocab_size": 9}, r"model\.config\.vocab_size: leave it out; it follows the tokenizer"),
        ({"n_positions": 9}, r"leave it out; write model\.max_position_embeddings="),
        ({"use_cache": True}, "leave it out; it is off"),
        ({"n_embd": "wide"}, r"cannot build gpt2 .*expected int"),
        ({"n_embd": 33}, "divisible"),
    ],
)
def test_a_key_that_cannot_be_is_named(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_tiny_model(make_auto_config(**keys))


def test_all_wrong_keys_are_told_at_once() -> None:
    with pytest.raises(UsageError) as told:
        build_tiny_model(make_auto_config(n_embed=3, n_layers=2))
    assert len(str(told.value).splitlines()) == 2


def test_an_architecture_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"model\.model_type=gptt2: .* near are gpt2"):
        build_tiny_model(make_auto_config("gptt2"))
