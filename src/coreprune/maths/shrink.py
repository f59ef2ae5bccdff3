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

__all__ = ["shrunk"]

#: samples from which a correlation of 1 − COPY means a copy; the chance of it otherwise is below COPY^7
FEWEST, COPY = 16, 1e-5


def shrunk(covariance: Tensor, count: int) -> Tensor:
    """The covariance with its correlations drawn towards zero.

    Args:
        covariance: of samples, (p, p). count: N.

    Example:
        >>> shrunk(torch.ones(2, 2), 2)[0, 1] < 1
        tensor(True)
    """
    variance = covariance.diagonal().clamp(min=0)
    scale = torch.where(variance > 0, variance.clamp(min=1e-30).rsqrt(), 0.0)
    square = float(((covariance * scale[:, None]) * scale).square().sum())
    p = trace = int((variance > 0).sum())  # the diagonal is 1
    spread = square - trace**2 / max(p, 1)
    if p < 2 or spread <= 0:
        return covariance
    rho = ((1 - 2 / p) * square + trace**2) / ((count + 1 - 2 / p) * spread)
    result = covariance * (1 - min(1.0, rho))
    result.diagonal().copy_(covariance.diagonal())
    if count >= FEWEST:
        deviation = variance.sqrt()
        copies = covariance.abs() >= (1 - COPY) * deviation[:, None] * deviation
        result = torch.where(copies, covariance, result)
    return result
