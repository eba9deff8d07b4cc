"""Scores the tokens of a text by what a model expected at each position: probability, rank, and alternatives.

Scores come from the model's logits themselves, before temperature and other sampling parameters, shifted by one: the
score of a token is read from the position before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from krill.data.encoding import Encoder
from krill.errors import KrillError, UsageError
from krill.terminal import encode_input
from krill.tokenizer.artifact import TokenizerFolder

TOP_ALTERNATIVES = 5
"""Number of alternatives that are shown for each token."""
CHUNK_ELEMENTS = 2**25
"""Number of logits, in float32, that are scored at a time."""


@dataclass(frozen=True)
class TokenScore:
    """How a model judged one token."""

    token: int
    logprob: float
    """Natural logarithm of the token's probability."""
    entropy: float
    """Entropy of the distribution over the vocabulary, in bits."""
    rank: int
    """Number of tokens that were more likely; 0: it was the most likely."""
    top: tuple[tuple[int, float], ...]
    """The most likely tokens, each with its logprob, the most likely first."""

    @property
    def surprisal(self) -> float:
        """Bits needed to encode the token with the model."""
        return -self.logprob / math.log(2)

    @property
    def probability(self) -> float:
        """Probability of the token, 0 to 1."""
        return math.exp(self.logprob)


def raise_if_not_finite(logits_NV: Tensor) -> None:
    """Raises KrillError for logits that give no probabilities: the largest of a row is NaN or infinite."""
    if not logits_NV.amax(dim=-1).isfinite().all():
        raise KrillError(
            "the model computes NaN or infinity: its weights are damaged, have diverged, or are too large for their "
            "type; try hardware.precision=fp32, or another checkpoint"
        )


def score_logits(logits_NV: Tensor, tokens_N: list[int], top: int) -> list[TokenScore]:
    """Returns the scores of `tokens_N`, with `top` alternatives; row i of the logits predicts token i."""
    scores: list[TokenScore] = []
    chunk = max(1, CHUNK_ELEMENTS // logits_NV.shape[-1])
    for start in range(0, len(tokens_N), chunk):
        scores += _score_chunk(logits_NV[start : start + chunk], tokens_N[start : start + chunk], top)
    return scores


def _score_chunk(logits_NV: Tensor, tokens: list[int], top: int) -> list[TokenScore]:
    raise_if_not_finite(logits_NV)
    logprobs_NV = logits_NV.float().log_softmax(dim=-1)
    targets_N = torch.tensor(tokens, device=logits_NV.device)
    chosen_N1 = logprobs_NV.gather(1, targets_N[:, None])
    entropies = (-(logprobs_NV.exp() * logprobs_NV.clamp(min=-1e30)).sum(dim=-1) / math.log(2)).tolist()
    ranks = (logprobs_NV > chosen_N1).sum(dim=-1).tolist()
    best = logprobs_NV.topk(min(top, logprobs_NV.shape[-1]), dim=-1)
    return [
        TokenScore(token, logprob, entropy, rank, tuple(zip(ids, values, strict=True)))
        for token, logprob, entropy, rank, ids, values in zip(
            tokens, chosen_N1[:, 0].tolist(), entropies, ranks, best.indices.tolist(), best.values.tolist(),
            strict=True,
        )
    ]  # fmt: skip


@torch.no_grad()
def score_tokens(model: PreTrainedModel, ids: list[int], top: int = TOP_ALTERNATIVES) -> list[TokenScore]:
    """Returns the scores of ids[1:], computed by one pass of the model over the tokens before the last.

    `ids`: bos first; see `encode_document`.
    """
    inputs_1N = torch.tensor([ids[:-1]], device=model.device)
    return score_logits(model(input_ids=inputs_1N, use_cache=False).logits[0], ids[1:], top)


def encode_document(model: PreTrainedModel, tokenizer: TokenizerFolder, text: str) -> list[int]:
    """Returns bos, the tokens of `text` and eos, as training sees a document.

    Special tokens written in the text are text. Raises UsageError if the text is empty or longer than the context of
    the model; eos needs no position in it, since nothing is predicted from it.
    """
    if not text:
        raise UsageError("the text is empty; write one with at least one character")
    encode_input(text, "the text")
    ids: list[int] = next(Encoder(tokenizer).encode_documents([text])).tolist()
    context = model.config.max_position_embeddings
    if len(ids) - 1 > context:
        raise UsageError(
            f"the text has {len(ids) - 1:,} tokens with bos, {len(ids) - 1 - context:,} more than the context of the "
            f"model ({context:,}); shorten it"
        )
    return ids
