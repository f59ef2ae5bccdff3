"""Covariances from fewer samples than one would like.

Oracle-approximating shrinkage of the correlations towards the identity: with S the p × p sample correlation
of N samples,

    ρ = ((1 − 2/p) tr S² + (tr S)²) / ((N + 1 − 2/p)(tr S² − (tr S)²/p)),        Ŝ = (1 − ρ) S + ρ I.

With many samples ρ → 0, and no number is tuned. Entries that do not vary have no correlations and do not count.
Copies of each other, at any scale, stay so: a correlation of ±1 over FEWEST samples or more is no accident.

Source: Chen, Wiesel, Eldar & Hero 2010, "Shrinkage Algorithms for MMSE Covariance Estimation", eq. 23.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coreprune.maths.lowrank import LowRank

__all__ = ["shrunk"]

#: samples from which a correlation of 1 − COPY means a copy; the chance of it otherwise is below COPY^7
FEWEST, COPY = 16, 1e-5


def shrunk(covariance: Tensor | LowRank, count: int) -> Tensor | LowRank:
    """The covariance with its correlations drawn towards zero.

    Args:
        covariance: of samples, (p, p). count: N.

    Returns:
        Of low rank if it was given so, unless there are copies, which a multiple of the identity would tell apart.

    Example:
        >>> shrunk(torch.ones(2, 2), 2)[0, 1] < 1
        tensor(True)
    """
    variance = covariance.diagonal().clamp(min=0)
    scale = torch.where(variance > 0, variance.clamp(min=1e-30).rsqrt(), 0.0)
    if isinstance(covariance, LowRank):
        half = covariance.scaled(scale).factor
        if count >= FEWEST and _copied(half):
            return shrunk(covariance.dense(), count)
        rho = _intensity(float((half.T @ half).square().sum()), variance, count)
        return LowRank(covariance.factor * (1 - rho) ** 0.5, covariance.rest + rho * variance)
    rho = _intensity(float(((covariance * scale[:, None]) * scale).square().sum()), variance, count)
    if not rho:
        return covariance
    result = covariance * (1 - rho)
    result.diagonal().copy_(covariance.diagonal())
    if count >= FEWEST:
        deviation = variance.sqrt()
        copies = covariance.abs() >= (1 - COPY) * deviation[:, None] * deviation
        result = torch.where(copies, covariance, result)
    return result


def _intensity(square: float, variance: Tensor, count: int) -> float:
    """ρ, at most 1, from tr S²; 0 where there is nothing to shrink."""
    p = trace = int((variance > 0).sum())  # the diagonal is 1
    spread = square - trace**2 / max(p, 1)
    if p < 2 or spread <= 0:
        return 0.0
    return min(1.0, ((1 - 2 / p) * square + trace**2) / ((count + 1 - 2 / p) * spread))


def _copied(half: Tensor) -> bool:
    """Whether two rows of unit length are the same but for their sign, looked at a few at a time."""
    for low in range(0, len(half), 256):
        near = (half[low : low + 256] @ half.T).abs_() >= 1 - COPY
        if int(near.sum()) > int(near[:, low:].diagonal().sum()):
            return True
    return False
