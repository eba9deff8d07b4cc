"""The rule by which learning rate, batch, weight decay and warm-up follow from the size of a run.

N are the hidden parameters: the matrices of the layers, without embeddings and head, so that the tokenizer does not
count. D are the tokens that the run trains on.

    lr            LR_COEFFICIENT · (6·N·D)^LR_EXPONENT, and the factor of the optimizer
                  (Bi et al. 2024, "DeepSeek LLM", arXiv 2401.02954, equation 1: of the compute budget)
    batch         BATCH_COEFFICIENT · D^BATCH_EXPONENT tokens per step; of a run of S steps D = S · batch, so
                  batch = (BATCH_COEFFICIENT · S^BATCH_EXPONENT)^(1 / (1 − BATCH_EXPONENT))
                  (Li et al. 2025, "Step Law", arXiv 2503.04715)
    weight decay  DECAY_COEFFICIENT / (lr · S): the weights forget over a constant part of the run
                  (Wang & Aitchison 2024, arXiv 2405.13698)
    warm-up       WARMUP_FRACTION of the steps, at most MAX_WARMUP_STEPS steps
"""

from __future__ import annotations

LR_COEFFICIENT = 0.3118
LR_EXPONENT = -0.125
MIN_LR, MAX_LR = 1e-4, 2e-2
BATCH_COEFFICIENT = 0.58
BATCH_EXPONENT = 0.571
MAX_BATCH_TOKENS = 2**22
"""The largest batch of the runs to which the rule was fitted."""
DECAY_COEFFICIENT = 2.0
MIN_DECAY, MAX_DECAY = 0.01, 0.4
WARMUP_FRACTION = 0.05
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


def compute_batch_of_steps(steps: float) -> float:
    """Returns the tokens per step of a run of `steps` steps."""
    return min(MAX_BATCH_TOKENS, (BATCH_COEFFICIENT * steps**BATCH_EXPONENT) ** (1 / (1 - BATCH_EXPONENT)))


def compute_weight_decay(lr: float, steps: float) -> float:
    """Returns the weight decay of a run, with two significant digits."""
    return round_to_digits(min(MAX_DECAY, max(MIN_DECAY, DECAY_COEFFICIENT / (lr * steps))), 2)


def compute_warmup(steps: float) -> float:
    """Returns the fraction of the steps in which the learning rate rises."""
    return min(WARMUP_FRACTION, MAX_WARMUP_STEPS / steps)


def round_to_digits(value: float, digits: int) -> float:
    """Returns `value` with `digits` significant digits."""
    return float(f"{value:.{digits}g}")
