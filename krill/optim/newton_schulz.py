"""Orthogonalize matrices by a few Newton–Schulz iterations: what makes Muon Muon.

An odd polynomial is applied again and again to the singular values of a matrix until all are near 1; it needs
matrix products alone, no decomposition. `keller`: one quintic for every step, from Jordan et al. 2024, "Muon:
An optimizer for hidden layers in neural networks"; the values end between 0.7 and 1.2. `polar_express`: a
quintic of its own for each of five steps, from Amsel et al. 2025, "The Polar Express"; closer at equal cost.

Shapes: B matrices, M rows, N columns (M <= N inside the iteration).
"""

from __future__ import annotations

import torch
from torch import Tensor

Triple = tuple[float, float, float]

KELLER: Triple = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
POLAR_EXPRESS_SAFETY = 1.02  # the five polynomials were fitted for singular values of at most 1 / 1.02

TINY = 1e-30  # guards the division of a zero matrix; no gradient is small enough to feel it


def polynomials(coefficients: str, steps: int) -> list[Triple]:
    """The (a, b, c) of each step: x becomes a·x + b·x³ + c·x⁵.

    Polar Express beyond its five steps repeats the last, as its authors do.

    Raises:
        ValueError: `coefficients` is neither keller nor polar_express.
    """
    if coefficients == "keller":
        return [KELLER] * steps
    if coefficients == "polar_express":
        return [POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] for step in range(steps)]
    raise ValueError(f"coefficients={coefficients!r} is unknown; use keller or polar_express")


def orthogonalize(
    g_BMN: Tensor, steps: int = 5, coefficients: str = "keller", dtype: torch.dtype | None = None
) -> Tensor:
    """The nearest orthogonal matrices, approximately: U·Vᵀ of each matrix U·S·Vᵀ.

    The size of a matrix does not matter, from 1e-36 to 1e36: the norm is taken in fp32, after a division by
    the largest entry, so that its squares neither vanish nor overflow. A zero matrix stays zero.

    Args:
        g_BMN: B matrices of any floating dtype; not changed.
        steps: Iterations. Polar Express is centred on 1 only from its fifth step on (before, below 2).
        coefficients: `keller` or `polar_express`.
        dtype: Arithmetic of the iterations. None: bf16 on CUDA, where every device has it and the authors
            use it; fp32 everywhere else, also on a CPU with bf16 instructions (where bf16 would halve the
            time), because the result would then depend on which CPU a run landed or resumed on.

    Returns:
        B × M × N in the dtype of `g_BMN`.

    Raises:
        ValueError: `g_BMN` has not three dimensions, or `coefficients` is unknown.
    """
    if g_BMN.ndim != 3:
        raise ValueError(f"orthogonalize takes B × M × N, got the shape {tuple(g_BMN.shape)}")
    if dtype is None:
        dtype = torch.bfloat16 if g_BMN.is_cuda else torch.float32
    schedule = polynomials(coefficients, steps)

    tall = g_BMN.shape[1] > g_BMN.shape[2]
    x_BMN = g_BMN.mT if tall else g_BMN  # the Gram matrix below is then the smaller of the two
    x_BMN = x_BMN.to(torch.promote_types(g_BMN.dtype, torch.float32))
    x_BMN = x_BMN / x_BMN.abs().amax(dim=(1, 2), keepdim=True).clamp(min=TINY)
    norm_B11 = torch.linalg.vector_norm(x_BMN, dim=(1, 2), keepdim=True).clamp(min=TINY)
    if coefficients == "polar_express":
        norm_B11 = norm_B11 * POLAR_EXPRESS_SAFETY
    x_BMN = (x_BMN / norm_B11).to(dtype)

    for a, b, c in schedule:
        gram_BMM = x_BMN @ x_BMN.mT
        poly_BMM = torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c)
        x_BMN = torch.baddbmm(x_BMN, poly_BMM, x_BMN, beta=a)
    return (x_BMN.mT if tall else x_BMN).to(g_BMN.dtype)
