"""The rule by which batch, learning rate, weight decay and warm-up follow from the size of a run.

Two numbers determine all of them: N, the hidden parameters, which are the matrices of the layers, without embeddings
and head, so that the tokenizer does not count; and S, the steps. A run over epochs is assumed to train on
COMPUTE_OPTIMAL_RATIO tokens per hidden parameter.

    batch         BATCH_COEFFICIENT · D^BATCH_EXPONENT tokens per step (Li et al. 2025, "Step Law", arXiv 2503.04715),
                  where D = S · batch, so (BATCH_COEFFICIENT · S^BATCH_EXPONENT)^(1 / (1 − BATCH_EXPONENT)). At most
                  that of COMPUTE_OPTIMAL_RATIO tokens per hidden parameter, which is krill's own limit: a longer run
                  does not get ever larger steps
    lr            LR_COEFFICIENT · (6·N·D)^LR_EXPONENT, with the D of that batch or of MIN_BATCH_TOKENS, if that is
                  more, and the factor of the optimizer
                  (the exponent of Bi et al. 2024, "DeepSeek LLM", arXiv 2401.02954, equation 1, of the compute
                  budget; the coefficient, 0.87 times theirs, is fitted by benchmarks/optimizer_track.py)
    weight decay  (D / N)^DECAY_EXPONENT / (DECAY_TIMESCALE · lr · S), with that lr: the weights forget over a part of
                  the run that is shorter with more tokens per parameter (Bergsma et al. 2025, "Power Lines", arXiv
                  2505.13738)
    warm-up       WARMUP_FRACTION of the steps, at most MAX_WARMUP_STEPS steps

Another batch than that of the rule changes none of the others, so that a run has the same values on any number of
ranks and after any change of the micro batch.
"""

from __future__ import annotations

from typing import Final

LR_COEFFICIENT = 0.27
LR_EXPONENT = -0.125
MIN_LR, MAX_LR = 1e-4, 2e-2
BATCH_COEFFICIENT = 0.58
BATCH_EXPONENT = 0.571
MIN_BATCH_TOKENS = 2**10
"""The batch of the runs that the learning rate was fitted to; smaller ones of the rule count as this one for it."""
MAX_BATCH_TOKENS = 2**22
"""An upper limit, with which published runs of hundreds of billions of parameters begin."""
DECAY_EXPONENT = 0.527
DECAY_TIMESCALE = 1.084
MIN_DECAY, MAX_DECAY = 0.01, 0.1
WARMUP_FRACTION = 0.01
MAX_WARMUP_STEPS = 2000
COMPUTE_OPTIMAL_RATIO = 20
"""D / N of a compute-optimal run (Hoffmann et al. 2022, "Chinchilla", arXiv 2203.15556)."""
AUTO: Final = "auto"
"""The value of batch.tokens that the rule replaces."""


def compute_tokens(parameters: float, steps: float | None) -> float:
    """Returns the tokens of a run with the batch of the rule; `steps`: None if it is over epochs."""
    if steps is None:
        return COMPUTE_OPTIMAL_RATIO * parameters
    return steps * max(MIN_BATCH_TOKENS, compute_batch(parameters, steps))


def compute_lr(parameters: float, tokens: float, factor: float = 1.0) -> float:
    """Returns the learning rate of a run, with two significant digits; `factor`: that of its optimizer."""
    lr = factor * LR_COEFFICIENT * (6 * parameters * tokens) ** LR_EXPONENT
    return round_to_digits(min(MAX_LR, max(MIN_LR, lr)), 2)


def compute_batch_of_tokens(tokens: float) -> float:
    """Returns the tokens per step of a run on `tokens` tokens."""
    return min(MAX_BATCH_TOKENS, BATCH_COEFFICIENT * tokens**BATCH_EXPONENT)


def compute_batch(parameters: float, steps: float) -> float:
    """Returns the tokens per step of a run."""
    limit = compute_batch_of_tokens(COMPUTE_OPTIMAL_RATIO * parameters)
    return min(limit, (BATCH_COEFFICIENT * steps**BATCH_EXPONENT) ** (1 / (1 - BATCH_EXPONENT)))


def compute_weight_decay(parameters: float, steps: float | None) -> float:
    """Returns the weight decay of a run, with two significant digits; `steps`: None if it is over epochs."""
    tokens = compute_tokens(parameters, steps)
    if steps is None:
        steps = tokens / compute_batch_of_tokens(tokens)
    decay = (tokens / parameters) ** DECAY_EXPONENT / (
        DECAY_TIMESCALE * compute_lr(parameters, tokens) * steps
    )
    return round_to_digits(min(MAX_DECAY, max(MIN_DECAY, decay)), 2)


def compute_warmup(steps: float | None) -> float:
    """Returns the fraction of the steps in which the learning rate rises; `steps`: None if it is over epochs."""
    return WARMUP_FRACTION if steps is None else min(WARMUP_FRACTION, MAX_WARMUP_STEPS / steps)


def round_to_digits(value: float, digits: int) -> float:
    """Returns `value` with `digits` significant digits."""
    return float(f"{value:.{digits}g}")
