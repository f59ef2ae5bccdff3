"""Moments of gated units h_i = φ(a_i) v_i (SwiGLU, GEGLU, ReGLU), (a, v) jointly Gaussian.

With F_ij = φ(a_i) φ(a_j), v_i = v̄_i + ṽ_i and Gaussian integration by parts (Stein),

    E h_i     = v̄_i E φ(a_i) + Cov(v_i, a_i) E φ'(a_i)
    E h_i h_j = v̄_i v̄_j E F + v̄_i Σ_q Cov(v_j, a_q) E ∂_q F + v̄_j Σ_r Cov(v_i, a_r) E ∂_r F
              + Cov(v_i, v_j) E F + Σ_{r,q ∈ {i,j}} Cov(v_i, a_r) Cov(v_j, a_q) E ∂_r ∂_q F.

Every E φ^(α)(a_i) φ^(β)(a_j) is a Mehler sum of the coefficients of φ and its derivatives. With
the series of φ cut after K terms this is the exact Gram of real random variables φ_K(a) v, hence
positive semi-definite. Units whose variance it overstates are scaled down to the exact one, and what
the others lack is added to the diagonal.

Source: 01-maths §3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.activation import Activation
from coreprune.maths.gram import Moments, check_covariance, correlation
from coreprune.maths.hermite import TERMS, derivative, expand, second_moments

__all__ = ["gated_moments"]


def gated_moments(
    phi: Activation,
    mean: Tensor,
    covariance: Tensor,
    value_mean: Tensor,
    value_covariance: Tensor,
    cross: Tensor,
    terms: int = TERMS[torch.float64],
) -> Moments:
    """Mean and covariance of φ(a)∘v.

    Args:
        phi: φ of the gate.
        mean: E a, (n,). covariance: Cov(a), (n, n).
        value_mean: v̄ = E v, (n,). value_covariance: Cov(v), (n, n).
        cross: Cov(v_i, a_j), (n, n), rows are v.
        terms: K.

    Returns:
        Moments in the dtype of `covariance`; `truncation` is the largest share by which the series of φ
        misses a unit's variance, which is put right on the diagonal and not resolved off it.

    Raises:
        InvalidInputError: as `gaussian_moments`.
    """
    check_covariance(mean, covariance)
    check_covariance(value_mean, value_covariance)
    if value_covariance.shape != covariance.shape or cross.shape != covariance.shape:
        shapes = [tuple(c.shape) for c in (covariance, value_covariance, cross)]
        raise InvalidInputError(f"the covariances of gate, value and both are {shapes}: they must be of one size")
    if not bool(torch.isfinite(cross.sum())):
        raise InvalidInputError("the covariance of value and gate holds NaN or infinite values: give finite moments")
    kind = covariance.dtype
    std = covariance.diagonal().clamp(min=0).sqrt()
    c0 = expand(phi, mean, std, terms).coefficients
    c1 = derivative(c0, std.double())
    c2 = derivative(c1, std.double())
    rho = correlation(covariance, std, std)
    own = cross.diagonal().double()
    v = value_mean.double()
    first = v * c0[:, 0] + own * c1[:, 0]

    c0, c1, c2 = c0.to(kind), c1.to(kind), c2.to(kind)
    u, k = value_mean, cross.diagonal()
    plain = _mehler(c0, c0, rho)
    # E ∂_i F and E ∂_j F, rows i: φ'(a_i) φ(a_j) and its transpose
    bent = _mehler(c1, c0, rho)
    both = _mehler(c1, c1, rho)
    twice = _mehler(c2, c0, rho)
    # v̄_j [Cov(v_i,a_i) E∂_iF + Cov(v_i,a_j) E∂_jF], and the same with i and j exchanged
    linear = (k[:, None] * bent + cross * bent.T) * u
    second = (value_covariance + torch.outer(u, u)) * plain + linear + linear.T
    # Σ Cov(v_i,a_r) Cov(v_j,a_q) E∂_r∂_qF over (r,q) = (i,i), (j,j), (i,j), (j,i)
    side = k[:, None] * cross.T * twice
    second += side + side.T + (torch.outer(k, k) + cross * cross.T) * both
    gram = second - torch.outer(first, first).to(kind)
    gram = (gram + gram.T) / 2

    variance = _variance(phi, mean, std, value_mean, value_covariance, cross, first).to(kind)
    have = gram.diagonal().clone()
    truncation = float(((variance - have).abs() / variance.clamp(min=1e-30)).max()) if variance.numel() else 0.0
    shrink = torch.where(have > variance, variance / have.clamp(min=1e-30), 1.0).sqrt()
    gram *= torch.outer(shrink, shrink)
    gram.diagonal().copy_(variance)
    return Moments(first.to(kind), gram, truncation)


def _mehler(c: Tensor, d: Tensor, rho: Tensor) -> Tensor:
    """Σ_k c_ik d_jk ρ_ij^k, (n, n), mean term included; the shorter series decides where it ends."""
    terms = min(c.shape[1], d.shape[1])
    total = torch.outer(c[:, terms - 1], d[:, terms - 1])
    for k in range(terms - 2, -1, -1):
        total.mul_(rho).addr_(c[:, k], d[:, k])
    return total


def _variance(
    phi: Activation, mean: Tensor, std: Tensor, v: Tensor, value_covariance: Tensor, cross: Tensor, first: Tensor
) -> Tensor:
    """Var h_i exactly, by 1-D quadrature of E[φ(a)² E(v² | a)]: v | a is Gaussian with mean linear in z."""
    slope = torch.where(std > 0, cross.diagonal() / std.clamp(min=1e-300), 0.0).double()
    left = (value_covariance.diagonal().double() - slope.square()).clamp(min=0)
    m0, m1, m2 = second_moments(phi, mean.double(), std.double())
    v = v.double()
    return ((v.square() + left) * m0 + 2 * v * slope * m1 + slope.square() * m2 - first.square()).clamp(min=0)
