"""Covariances from fewer samples than one would like.

Oracle-approximating shrinkage of the correlations towards the identity: with S the p × p sample correlation
of N samples,

    ρ = ((1 − 2/p) tr S² + (tr S)²) / ((N + 1 − 2/p)(tr S² − (tr S)²/p)),        Ŝ = (1 − ρ) S + ρ I.

With many samples ρ → 0, and no number is tuned. Entries that do not vary have no correlations and do not count.
Copies of each other, at any scale, stay so: a correlation of ±1 over FEWEST samples or more is no accident.

Source: Chen, Wiesel, Eldar & Hero 2010, "Shrinkage Algorithms for MMSE Covariance Estimation", eq. 23.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from coreprune.maths.lowrank import LowRank

__all__ = ["shrunk"]

#: samples from which a correlation of 1 − COPY means a copy; the chance of it otherwise is below COPY^7
FEWEST, COPY = 16, 1e-5


def shrunk(covariance: Tensor | LowRank, count: int | Tensor) -> Tensor | LowRank:
    """The covariance with its correlations drawn towards zero.

    Args:
        covariance: of samples, (p, p), or several, (…, p, p). count: N, or of each, (…).

    Returns:
        Of low rank if it was given so, unless there are copies, which a multiple of the identity would tell apart.

    Example:
        >>> shrunk(torch.ones(2, 2), 2)[0, 1] < 1
        tensor(True)
    """
    many = torch.as_tensor(count)
    if isinstance(covariance, LowRank):
        variance = covariance.diagonal().clamp(min=0)
        half = covariance.scaled(_inverse(variance)).factor
        if int(many) >= FEWEST and _copied(half):
            return shrunk(covariance.dense(), count)
        rho = _intensity((half.T @ half).square().sum(), variance, many).to(variance)
        return LowRank(covariance.factor * (1 - rho) ** 0.5, covariance.rest + rho * variance)
    own = covariance.diagonal(dim1=-2, dim2=-1)
    variance = own.clamp(min=0)
    scale = _inverse(variance)[..., None, :]
    correlation = (covariance * scale.mT).mul_(scale)
    square = torch.linalg.vector_norm(correlation, dim=(-2, -1)).square()
    rho = _intensity(square, variance, many)[..., None, None].to(covariance)
    if not bool(rho.any()):
        return covariance
    correlation.diagonal(dim1=-2, dim2=-1).zero_()
    low, high = (float(end) for end in torch.aminmax(correlation))
    copies = (
        (correlation.abs() >= 1 - COPY) & (many >= FEWEST)[..., None, None] if max(high, -low) >= 1 - COPY else None
    )
    result = torch.mul(covariance, 1 - rho, out=correlation)
    result.diagonal(dim1=-2, dim2=-1).copy_(own)
    if copies is not None:
        result = torch.where(copies, covariance, result)
    return result


def _inverse(variance: Tensor) -> Tensor:
    """One over the standard deviation, 0 where nothing varies."""
    return torch.where(variance > 0, variance.clamp(min=1e-30).rsqrt(), 0.0)


def _intensity(square: Tensor, variance: Tensor, count: Tensor) -> Tensor:
    """ρ, at most 1, from tr S²; 0 where there is nothing to shrink."""
    p = (variance > 0).sum(-1).cpu().numpy().astype(float)  # and tr S, as the diagonal is 1
    few, total = 2 / np.maximum(p, 1), square.double().cpu().numpy()
    spread = total - p
    clear = (p >= 2) & (spread > 0)
    rho = ((1 - few) * total + p**2) / ((count.cpu().numpy() + 1 - few) * np.where(clear, spread, 1.0))
    return torch.as_tensor(np.where(clear, np.minimum(rho, 1.0), 0.0))


def _copied(half: Tensor) -> bool:
    """Whether two rows of unit length are the same but for their sign, looked at a few at a time."""
    for low in range(0, len(half), 256):
        near = (half[low : low + 256] @ half.T).abs_() >= 1 - COPY
        if int(near.sum()) > int(near[:, low:].diagonal().sum()):
            return True
    return False
