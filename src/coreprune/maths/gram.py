"""Mean and covariance of hidden units under a Gaussian, in closed form for every activation.

For jointly Gaussian pre-activations with correlations ρ_ij, Mehler's formula gives

    Cov(h_i, h_j) = Σ_{k ≥ 1} c_ik c_jk ρ_ij^k.

K terms are summed. What they leave out has variance τ_i², and τ_i τ_j ρ^{K+1} is added for it: the
diagonal becomes exact, the matrix stays positive semi-definite (a sum of Schur products of such),
and off the diagonal the error is at most 2 τ_i τ_j |ρ_ij|^{K+1}.

Source: 01-maths §3; Cho & Saul 2009 for the arc-cosine kernel that the zero-mean ReLU case equals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.activation import Activation
from coreprune.maths.hermite import TERMS, Expansion, expand

__all__ = ["Moments", "check_covariance", "correlation", "cross_covariance", "gaussian_moments"]

_SLACK = 1e4  # units in the last place that a correlation may exceed 1 by rounding
_NOT_PSD = "the covariance is not positive semi-definite, so it is no covariance"


@dataclass(frozen=True)
class Moments:
    """First two moments of n units.

    Attributes:
        mean: m, (n,).
        covariance: G, (n, n).
        truncation: largest error of an entry of G, relative to the standard deviations of its two units.
    """

    mean: Tensor
    covariance: Tensor
    truncation: float = 0.0


def gaussian_moments(phi: Activation, mean: Tensor, covariance: Tensor, terms: int | None = None) -> Moments:
    """Moments of φ(a), a ~ N(μ, C).

    Args:
        phi: φ.
        mean: μ, (n,).
        covariance: C, (n, n), positive semi-definite.
        terms: K; the default depends on the precision.

    Returns:
        Moments in the dtype and on the device of `covariance`.

    Raises:
        InvalidInputError: μ or C is not finite, does not fit, or C is no covariance.

    Example:
        >>> from coreprune.maths.activation import activation
        >>> moments = gaussian_moments(activation("relu"), torch.zeros(2), torch.eye(2))
        >>> moments.covariance[0, 1].item()                                # independent stays independent
        0.0
    """
    check_covariance(mean, covariance)
    std = covariance.diagonal().clamp(min=0).sqrt()
    expansion = expand(phi, mean, std, terms or TERMS[covariance.dtype])
    rho = correlation(covariance, std, std)
    gram, truncation = cross_covariance(expansion, expansion, rho, symmetric=True)
    return Moments(expansion.mean.to(covariance.dtype), gram, truncation)


def correlation(covariance: Tensor, std: Tensor, other: Tensor) -> Tensor:
    """ρ_ij = C_ij / (s_i s_j), (n, m), 0 where a standard deviation is 0.

    Raises:
        InvalidInputError: some |ρ_ij| exceeds 1 by more than rounding.
    """
    rows = torch.where(std > 0, 1 / std.clamp(min=torch.finfo(std.dtype).tiny), 0.0)
    columns = torch.where(other > 0, 1 / other.clamp(min=torch.finfo(other.dtype).tiny), 0.0)
    rho = (covariance * rows[:, None]).mul_(columns)
    low, high = torch.aminmax(rho) if rho.numel() else (rho.new_zeros(()), rho.new_zeros(()))
    if max(-float(low), float(high)) > 1 + _SLACK * torch.finfo(rho.dtype).eps:
        raise InvalidInputError(f"{_NOT_PSD}: a correlation is {max(-float(low), float(high)):.3g}")
    return rho.clamp_(-1, 1)


def cross_covariance(
    left: Expansion, right: Expansion, rho: Tensor, *, symmetric: bool = False, block: int = 128
) -> tuple[Tensor, float]:
    """Cov(h_i, h'_j) of two sets of units whose pre-activations have correlations ρ.

    Args:
        left: n units. right: m units.
        rho: (n, m); its memory is used for the result.
        symmetric: both are the same units; half of the work is saved and the diagonal is exact.
        block: rows worked on at a time, so that they stay in the processor's cache.

    Returns:
        The covariances (n, m), and the truncation error relative to the standard deviations.
    """
    c, d = left.coefficients.to(rho.dtype), right.coefficients.to(rho.dtype)
    tail, other = left.tail.to(rho.dtype), right.tail.to(rho.dtype)
    lost = torch.nan_to_num(left.tail / left.variance.sqrt()).to(rho.dtype)
    lost_other = torch.nan_to_num(right.tail / right.variance.sqrt()).to(rho.dtype)
    terms, worst = c.shape[1] - 1, 0.0
    for start in range(0, rho.shape[0], block):
        rows = slice(start, min(start + block, rho.shape[0]))
        columns = slice(0, rows.stop) if symmetric else slice(None)
        r = rho[rows, columns].contiguous()
        worst = max(worst, _truncation(lost[rows], lost_other[columns], r, terms + 1, start if symmetric else None))
        total = torch.outer(tail[rows], other[columns])
        for k in range(terms, 0, -1):  # Horner: ρ(c₁c₁ᵀ + ρ(c₂c₂ᵀ + … + ρ(c_K c_Kᵀ + ρ ττᵀ)))
            total.mul_(r).addr_(c[rows, k], d[columns, k])
        rho[rows, columns] = total.mul_(r)
    if symmetric:
        for start in range(0, rho.shape[0], block):
            rows = slice(start, min(start + block, rho.shape[0]))
            rho[: rows.start, rows] = rho[rows, : rows.start].T
        variance = left.variance.to(rho.dtype)
        rho.diagonal().copy_(variance)
    return rho, worst


def _truncation(lost: Tensor, other: Tensor, rho: Tensor, power: int, diagonal: int | None) -> float:
    """A bound on 2 (τ_i/σ_i)(τ_j/σ_j) |ρ_ij|^{K+1} over a block, without its diagonal: the largest of each factor."""
    size = rho.abs()
    if diagonal is not None:
        size[:, diagonal:].fill_diagonal_(0)
    return float((2 * lost * size.amax(1).pow(power)).max() * other.max())


def check_covariance(mean: Tensor, covariance: Tensor) -> None:
    """Raise InvalidInputError unless μ and C are finite, of one size, and C has a non-negative diagonal.

    `correlation` then refuses |C_ij| > √(C_ii C_jj); neither costs a factorisation.
    """
    n = mean.numel()
    if tuple(covariance.shape) != (n, n):
        raise InvalidInputError(f"the covariance is {tuple(covariance.shape)} for {n} means: it must be ({n}, {n})")
    if not (bool(torch.isfinite(mean.sum())) and bool(torch.isfinite(covariance.sum()))):
        raise InvalidInputError("the mean or the covariance holds NaN or infinite values: give finite moments")
    variance = covariance.diagonal()
    if n == 0:
        return
    if bool(covariance[variance == 0].any()):
        raise InvalidInputError(f"{_NOT_PSD}: a constant varies with something")
    if bool((variance < -_SLACK * torch.finfo(covariance.dtype).eps * variance.abs().amax()).any()):
        raise InvalidInputError(f"{_NOT_PSD}: a variance is {float(variance.min()):.3g}")
