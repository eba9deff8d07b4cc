"""The rule by which learning rate, batch, weight decay and warm-up follow from the size of a run.

N are the hidden parameters: the matrices of the layers, without embeddings and head, so that the tokenizer does not
count. D are the tokens that the run trains on.

    lr            LR_COEFFICIENT · (6·N·D)^LR_EXPONENT, and the factor of the optimizer
                  (the exponent of Bi et al. 2024, "DeepSeek LLM", arXiv 2401.02954, equation 1, of the compute
                  budget; the coefficient, 0.73 times theirs, is fitted to muon_krill at 0.3 and 1 million
                  parameters by benchmarks/optimizer_track.py)
    batch         BATCH_COEFFICIENT · D^BATCH_EXPONENT tokens per step; of a run of S steps D = S · batch, so
                  batch = (BATCH_COEFFICIENT · S^BATCH_EXPONENT)^(1 / (1 − BATCH_EXPONENT)), but at most that of
                  TOKENS_PER_PARAMETER tokens per parameter: a longer run does not get ever larger steps
                  (Li et al. 2025, "Step Law", arXiv 2503.04715)
    weight decay  (D / N)^DECAY_EXPONENT / (DECAY_TIMESCALE · lr · S): the weights forget over a part of the run that
                  is shorter with more tokens per parameter (Bergsma et al. 2025, "Power Lines", arXiv 2505.13738)
    warm-up       WARMUP_FRACTION of the steps, at most MAX_WARMUP_STEPS steps
"""

from __future__ import annotations

LR_COEFFICIENT = 0.228
LR_EXPONENT = -0.125
MIN_LR, MAX_LR = 1e-4, 2e-2
BATCH_COEFFICIENT = 0.58
BATCH_EXPONENT = 0.571
MAX_BATCH_TOKENS = 2**22
"""An upper limit, with which published runs of hundreds of billions of parameters begin."""
DECAY_EXPONENT = 0.527
DECAY_TIMESCALE = 1.084
MIN_DECAY, MAX_DECAY = 0.01, 0.1
WARMUP_FRACTION = 0.01
MAX_WARMUP_STEPS = 2000
TOKENS_PER_PARAMETER = 20
"""D / N of a run whose tokens are not known yet (Hoffmann et al. 2022, "Chinchilla", arXiv 2203.15556)."""


def compute_lr(parameters: float, tokens: float, factor: float = 1.0) -> float:
    """Returns the learning rate of a run, with two significant digits; `factor`: that of its optimizer."""
    lr = factor * LR_COEFFICIENT * (6 * parameters * tokens) ** LR_EXPONENT
    return round_to_digits(min(MAX_LR, max(MIN_LR, lr)), 2)


def compute_batch_of_tokens(tokens: float) -> float:
    """Returns the tokens per step of a run on `tokens` tokens."""
    return min(MAX_BATCH_TOKENS, BATCH_COEFFICIENT * tokens**BATCH_EXPONENT)


def compute_batch_of_steps(steps: float, parameters: float | None) -> float:
    """Returns the tokens per step of a run of `steps` steps; `parameters`: None if they are not known."""
    most = (
        MAX_BATCH_TOKENS if parameters is None else compute_batch_of_tokens(TOKENS_PER_PARAMETER * parameters)
    )
    return min(most, (BATCH_COEFFICIENT * steps**BATCH_EXPONENT) ** (1 / (1 - BATCH_EXPONENT)))


def compute_weight_decay(lr: float, steps: float, tokens_per_parameter: float) -> float:
    """Returns the weight decay of a run, with two significant digits."""
    decay = tokens_per_parameter**DECAY_EXPONENT / (DECAY_TIMESCALE * lr * steps)
    return round_to_digits(min(MAX_DECAY, max(MIN_DECAY, decay)), 2)


def compute_warmup(steps: float) -> float:
    """Returns the fraction of the steps in which the learning rate rises."""
    return min(WARMUP_FRACTION, MAX_WARMUP_STEPS / steps)


def round_to_digits(value: float, digits: int) -> float:
    """Returns `value` with `digits` significant digits."""
    return float(f"{value:.{digits}g}")
