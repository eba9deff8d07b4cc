"""Orthogonalizes matrices with a few Newton–Schulz iterations, the core of Muon.

An odd polynomial is applied repeatedly to the singular values of a matrix until all are near 1; this needs matrix
products only, no decomposition. `keller`: the same quintic in every step, from Jordan et al. 2024, "Muon: An
optimizer for hidden layers in neural networks"; the singular values end between 0.7 and 1.2. `polar_express`: a
different quintic for each of five steps, from Amsel et al. 2025, "The Polar Express"; more accurate at equal cost.

Shapes: B matrices, M rows, N columns; K the smaller of the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]

KELLER: Coefficients = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
POLAR_EXPRESS_SAFETY = 1.02  # the five polynomials were fitted for singular values of at most 1 / 1.02

MIN_NORM = 1e-15  # below it, the squares of the entries are not accurate enough in fp32


def get_step_coefficients(coefficients: str, steps: int) -> list[Coefficients]:
    """Returns (a, b, c) of each step: x becomes a·x + b·x³ + c·x⁵.

    Polar Express repeats its fifth polynomial after five steps, as its authors do.

    Raises:
        ValueError: `coefficients` is neither keller nor polar_express, or Polar Express has fewer than five steps
            (only the fifth brings the singular values to 1; before it they are around 2).
    """
    if coefficients == "keller":
        return [KELLER] * steps
    if coefficients == "polar_express":
        if steps < len(POLAR_EXPRESS):
            raise ValueError(
                f"ns_coefficients=polar_express needs at least 5 steps, got ns_steps={steps}, after which singular "
                f"values are not near 1; use ns_steps=5, or ns_coefficients=keller"
            )
        return [POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] for step in range(steps)]
    raise ValueError(f"coefficients={coefficients!r} is unknown; use keller or polar_express")


def resolve_ns_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """Returns the dtype of the iterations on `device` for `name`: auto, bf16 or fp32.

    auto is bf16 on CUDA, where every device supports it and the authors use it, and fp32 elsewhere. This includes
    CPUs with bf16 instructions (where bf16 would halve the time), because the result would otherwise depend on the
    CPU on which a run is started or resumed.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


@torch.no_grad()
def orthogonalize(
    g_BMN: Tensor,
    steps: int = 5,
    coefficients: str = "keller",
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Computes the approximately nearest orthogonal matrices: scale · U·Vᵀ of each matrix U·S·Vᵀ.

    The result does not depend on the norm of a matrix if its Frobenius norm is between 1e-15 and 1e18; below, the
    result shrinks with the matrix, and a zero matrix stays zero.

    Args:
        g_BMN: B matrices of any floating-point dtype; not changed.
        steps: Iterations, at least 1; at least 5 for Polar Express.
        coefficients: `keller` or `polar_express`.
        dtype: Arithmetic of the iterations; None: `resolve_ns_dtype`. With bf16 the values of the result are bf16
            numbers, whatever its dtype.
        scale: Applied within the last iteration, so that it costs no extra operation or rounding.

    Returns:
        B × M × N, contiguous, in the dtype of `g_BMN`.

    Raises:
        ValueError: `g_BMN` does not have three dimensions, or `get_step_coefficients` raises.
    """
    if g_BMN.ndim != 3:
        raise ValueError(f"orthogonalize takes B × M × N, got the shape {tuple(g_BMN.shape)}")
    schedule = get_step_coefficients(coefficients, steps)
    accurate = torch.float32 if g_BMN.dtype.itemsize < 4 else g_BMN.dtype
    norm_B11 = torch.linalg.vector_norm(g_BMN, dim=(1, 2), keepdim=True, dtype=accurate)
    norm_B11 = norm_B11.clamp_min_(MIN_NORM)
    if coefficients == "polar_express":
        norm_B11 *= POLAR_EXPRESS_SAFETY
    x_BMN = torch.empty(g_BMN.shape, dtype=dtype or resolve_ns_dtype(g_BMN.device), device=g_BMN.device)
    torch.div(g_BMN, norm_B11, out=x_BMN)
    return _run_iterations(x_BMN, schedule, scale).to(g_BMN.dtype)


def _run_iterations(x_BMN: Tensor, schedule: list[Coefficients], scale: float) -> Tensor:
    """Runs the iterations on x, whose spectral norm is at most 1; overwrites x."""
    size, rows, columns = x_BMN.shape
    is_tall = rows > columns  # x·xᵀ and xᵀ·x are equivalent: use the smaller one, so that x stays contiguous
    gram_BKK = x_BMN.new_empty(size, min(rows, columns), min(rows, columns))
    poly_BKK, y_BMN = torch.empty_like(gram_BKK), torch.empty_like(x_BMN)
    (x, xT), (y, yT) = (x_BMN, x_BMN.mT), (y_BMN, y_BMN.mT)
    for step, (a, b, c) in enumerate(schedule, start=1):
        s = scale if step == len(schedule) else 1.0
        torch.bmm(*((xT, x) if is_tall else (x, xT)), out=gram_BKK)
        torch.baddbmm(gram_BKK, gram_BKK, gram_BKK, beta=b, alpha=c, out=poly_BKK)
        torch.baddbmm(x, *((x, poly_BKK) if is_tall else (poly_BKK, x)), beta=s * a, alpha=s, out=y)
        (x, xT), (y, yT) = (y, yT), (x, xT)
    return x
