"""Scores are those of log_softmax, each from the position before its token, and add up to the evaluation's loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import write_store

from krill.data.packing import pack
from krill.errors import KrillError, UsageError
from krill.inference.token_scores import encode_document, score_tokens
from krill.tokenizer.artifact import TokenizerFolder
from krill.training.batches import RowCollator, build_dataloader
from krill.training.metrics.evaluate import compute_bits_per_byte, evaluate_batches

TEXT = "옛날 <|eos|> a\nb"


@pytest.fixture(scope="module")
def model(model: Any) -> Any:
    return model.eval()


def test_scores_are_those_of_log_softmax(model: Any, tokenizer: TokenizerFolder) -> None:
    ids = encode_document(model, tokenizer, TEXT)
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert len(ids) == len(TEXT.encode()) + 2  # one token per byte: the literal <|eos|> is text
    with torch.no_grad():
        logprobs_NV = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    scores = score_tokens(model, ids, top=5)
    assert [score.token for score in scores] == ids[1:]
    for expected_V, score in zip(logprobs_NV, scores, strict=False):
        assert score.logprob == pytest.approx(expected_V[score.token].item(), abs=1e-5)
        assert score.probability == pytest.approx(expected_V[score.token].exp().item(), abs=1e-5)
        assert score.surprisal == pytest.approx(-expected_V[score.token].item() / math.log(2), abs=2e-5)
        assert score.rank == (expected_V > expected_V[score.token]).sum()
        best = expected_V.sort(descending=True)
        assert [token for token, _ in score.top] == best.indices[:5].tolist()
        assert [value for _, value in score.top] == pytest.approx(best.values[:5].tolist(), abs=1e-5)
        assert score.entropy == pytest.approx(
            -(expected_V.exp() * expected_V).sum().item() / math.log(2), abs=1e-4
        )


def test_scores_add_up_to_the_loss_of_the_evaluation(
    model: Any, tokenizer: TokenizerFolder, tmp_path: Path
) -> None:
    store = write_store(tmp_path / "store", tokenizer, [("a", "x")], [("a", "옛날 옛적에 a")])
    rows = pack(store.validation, 64, "wrapped")
    batches = build_dataloader(rows, [[0]], RowCollator("sdpa", torch.device("cpu")), 0)
    (totals,) = evaluate_batches(model, batches, tokenizer.eos_id)
    scores = score_tokens(model, encode_document(model, tokenizer, "옛날 옛적에 a"))
    assert totals.tokens == len(scores)
    assert -sum(score.logprob for score in scores) / len(scores) == pytest.approx(totals.loss(), abs=1e-5)
    text_nats = -sum(score.logprob for score in scores[:-1])
    size = len("옛날 옛적에 a".encode())
    assert compute_bits_per_byte(text_nats, size) == pytest.approx(totals.bits_per_byte(size), abs=1e-5)
    assert sum(score.surprisal for score in scores[:-1]) / size == pytest.approx(totals.bits_per_byte(size))


def test_a_text_fills_the_context_at_most(model: Any, tokenizer: TokenizerFolder) -> None:
    assert (
        len(score_tokens(model, encode_document(model, tokenizer, "x" * 63))) == 64
    )  # eos is predicted, too
    message = r"the text has 70 tokens with bos, 6 more than the context of the model \(64\); shorten it"
    with pytest.raises(UsageError, match=message):
        encode_document(model, tokenizer, "x" * 69)
    with pytest.raises(UsageError, match="the text is empty"):
        encode_document(model, tokenizer, "")
    with pytest.raises(UsageError, match=r"not valid UTF-8 \(character 2\)"):
        encode_document(model, tokenizer, "a\udcff")


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_a_model_that_computes_nan_or_infinity_is_reported(
    factor: float, model: Any, tokenizer: TokenizerFolder
) -> None:
    ids = encode_document(model, tokenizer, "a")
    with (
        model.lm_head.register_forward_hook(lambda module, inputs, output: output.exp() * factor),
        pytest.raises(KrillError, match="the model computes NaN or infinity"),
    ):
        score_tokens(model, ids)
