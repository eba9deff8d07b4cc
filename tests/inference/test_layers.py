"""The logit lens and the attention maps are those of the model's own hidden states and weights, for each family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GraniteConfig, GraniteForCausalLM

from krill.errors import UsageError
from krill.inference.attention_maps import compute_attention_map
from krill.inference.logit_lens import EMBEDDING, compute_logit_lens
from krill.inference.token_scores import score_tokens

IDS = [0, 50, 7, 60, 61, 9, 1]


def build_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=70, n_positions=16, n_embd=16, n_layer=3, n_head=2)).eval()


@pytest.fixture(params=["llama", "gpt2"])
def any_model(request: pytest.FixtureRequest, model: Any) -> Any:
    return model.eval() if request.param == "llama" else build_gpt2()


def test_the_lens_reads_the_hidden_states_of_every_layer(any_model: Any) -> None:
    lens = compute_logit_lens(any_model, IDS, top=3)
    with torch.no_grad():
        output = any_model(input_ids=torch.tensor([IDS[:-1]]), output_hidden_states=True)
    norm = any_model.model.norm if hasattr(any_model, "model") else any_model.transformer.ln_f
    assert [layer.layer for layer in lens] == [EMBEDDING, *map(str, range(len(lens) - 1))]
    for layer, state_1ND in zip(lens[:-1], output.hidden_states[:-1], strict=True):
        logprobs_NV = any_model.lm_head(norm(state_1ND))[0].log_softmax(-1)
        for expected_V, token, score in zip(logprobs_NV, IDS[1:], layer.scores, strict=True):
            assert score.token == token
            assert score.logprob == pytest.approx(expected_V[token].item(), abs=1e-5)
            assert score.top[0][0] == expected_V.argmax()
            assert score.rank == (expected_V > expected_V[token]).sum()
    own = score_tokens(any_model, IDS, top=3)
    assert [score.logprob for score in lens[-1].scores] == pytest.approx([score.logprob for score in own])


def test_a_model_whose_logits_are_scaled_has_no_lens() -> None:
    config = GraniteConfig(
        vocab_size=70, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=8.0, initializer_range=1.0,
    )  # fmt: skip
    with pytest.raises(UsageError, match="GraniteForCausalLM: its logits are not its output embeddings"):
        compute_logit_lens(GraniteForCausalLM(config).eval(), IDS)


def test_a_map_is_the_attention_of_that_head(any_model: Any) -> None:
    before = any_model.config._attn_implementation
    found = compute_attention_map(any_model, IDS, 1, 1)
    assert any_model.config._attn_implementation == before
    any_model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = any_model(input_ids=torch.tensor([IDS]), output_attentions=True).attentions[1][0, 1]
    any_model.set_attn_implementation(before)
    torch.testing.assert_close(found.weights_NN, expected)
    torch.testing.assert_close(found.weights_NN.sum(-1), torch.ones(len(IDS)))
    assert not found.weights_NN.triu(1).any()
    assert not torch.equal(found.weights_NN, compute_attention_map(any_model, IDS, 0, 1).weights_NN)


def test_a_layer_or_head_that_does_not_exist_is_named(model: Any) -> None:
    with pytest.raises(UsageError, match=r"attention=2\.0: no layer 2; the model has layers 0 to 1"):
        compute_attention_map(model.eval(), IDS, 2, 0)
    with pytest.raises(UsageError, match=r"attention=1\.4: no head 4; layer 1 has heads 0 to 3"):
        compute_attention_map(model, IDS, 1, 4)
