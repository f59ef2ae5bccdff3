"""The optimal replacement of the units that go, for any choice of the units that stay.

    T* = X_S (G_SS)⁻¹        t = E h − T* E h̃_S        W' = W T*        c' = c + W t

with G the covariance of the units as they are, and X = Cov(h, h̃) that of the units to be
reproduced with them (X = G unless they have moved). Least squares, hence never worse than any
other weights on the same S.

Regularisation: G_SS is scaled to correlations, and `RIDGE[dtype]` is added to its diagonal: free of
the units' scales. Units whose variance is rounding against their mean are constants: their mean
goes into t and nothing else remains of them.

Source: 01-maths §3.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Coreset
from coreprune.maths.propagate import Law

__all__ = ["RIDGE", "factored", "replacement", "residual_energy", "solve"]

#: ridge on correlations, by precision
RIDGE = {torch.float64: 1e-10, torch.float32: 1e-5}


def solve(G: Tensor, B: Tensor, ridge: float | None = None) -> Tensor:
    """B G⁻¹ for a covariance G that may be singular, (m, k), or for several at once.

    Args:
        G: (…, k, k), positive semi-definite.
        B: (…, m, k).
        ridge: added to the diagonal of the correlations; the default suits the precision. It is raised
            tenfold until the factorisation succeeds.

    Example:
        >>> G = torch.ones(2, 2, dtype=torch.float64)                    # two copies of one unit
        >>> (torch.ones(1, 2, dtype=torch.float64) @ solve(G, G).T).round(decimals=6).tolist()
        [[1.0, 1.0]]
    """
    variance = G.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(variance > 0, variance.clamp(min=1e-300).rsqrt(), 0.0)[..., None, :]
    R = G * scale.mT * scale
    factor = factored(R, RIDGE[G.dtype] if ridge is None else ridge)
    return torch.cholesky_solve((B * scale).mT, factor).mT * scale


def factored(R: Tensor, ridge: float) -> Tensor:
    """L with L Lᵀ = R + ridge·I for correlations R, (…, k, k), whose diagonal is set; raised until it succeeds."""
    R.diagonal(dim1=-2, dim2=-1).fill_(1 + ridge)
    L, failed = torch.linalg.cholesky_ex(R)
    while bool(failed.any()) and ridge <= 1:
        ridge = max(10 * ridge, RIDGE[R.dtype])
        R.diagonal(dim1=-2, dim2=-1)[failed > 0] = 1 + ridge
        L, failed = torch.linalg.cholesky_ex(R)
    result: Tensor = L
    return result


def replacement(law: Law, coreset: Coreset, *, ridge: float | None = None) -> Coreset:
    """The least-squares coreset on the units that another one keeps.

    Args:
        law: of the units to be reproduced and of the units as they are.
        coreset: only its units count, turned or not, and none of its weights.
        ridge: see `solve`.

    Returns:
        The same units with T* and t.

    Raises:
        InvalidInputError: the units are turned and the law, which was measured, does not say what they would do.
    """
    if coreset.incoming is not None:
        return _turned(law, coreset, ridge)
    G, S = law.moments.covariance, coreset.indices
    X = G if law.cross is None else law.cross
    T = solve(G[S][:, S], X[:, S], ridge)
    if law.cross is None:  # a kept unit is its own best replacement, exactly
        T[S] = torch.eye(S.numel(), dtype=T.dtype, device=T.device)
    target = law.moments.mean if law.target is None else law.target
    return Coreset(S, T, target - T @ law.moments.mean[S])


def _turned(law: Law, coreset: Coreset, ridge: float | None) -> Coreset:
    """The same for units Qᵀã + shift, from the law of the pre-activations."""
    if law.pair is None or law.phi is None:
        raise InvalidInputError("units that are merged cannot be reweighted by measured moments: give a Gaussian prior")
    assert coreset.incoming is not None
    n, k = coreset.incoming.shape
    Q = coreset.incoming.T
    shift = Q.new_zeros(k) if coreset.shift is None else coreset.shift
    eye, none = torch.eye(n, dtype=Q.dtype, device=Q.device), Q.new_zeros(n)
    both = law.pair.linear(eye, none, Q, shift)
    mean, spread = both.units(law.phi).overall()
    T = solve(spread[n:, n:], spread[:n, n:], ridge)
    return replace(coreset, mix=T, offset=mean[:n] - T @ mean[n:])


def residual_energy(W: Tensor, law: Law, coreset: Coreset) -> tuple[Tensor, Tensor]:
    """E (y_i − ŷ_i)² and Var y_i of every reader's output, for any coreset of unturned units, (p,) each.

    y = W h, ŷ = W' h̃_S + W t: Cov(y − ŷ) = W G Wᵀ − W X_S W'ᵀ − W' X_Sᵀ Wᵀ + W' G̃_SS W'ᵀ.

    Args:
        W: outgoing weights, (p, n). law: of h and h̃. coreset: with `incoming` None.
    """
    G = law.moments.covariance
    own = G if law.own is None else law.own
    cross = G if law.cross is None else law.cross
    target = law.moments.mean if law.target is None else law.target
    S, W_cut = coreset.indices, coreset.outgoing(W)
    variance = ((W @ own) * W).sum(1)
    mixed = ((W @ cross[:, S]) * W_cut).sum(1)
    kept = ((W_cut @ G[S][:, S]) * W_cut).sum(1)
    gap = W @ target - W_cut @ law.moments.mean[S] - coreset.constant(W)
    return (variance - 2 * mixed + kept).clamp(min=0) + gap.square(), variance.clamp(min=0)
