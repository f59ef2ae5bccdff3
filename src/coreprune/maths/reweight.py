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

import torch
from torch import Tensor

from coreprune.maths.gram import Moments
from coreprune.maths.layer import Coreset

__all__ = ["RIDGE", "replacement", "residual_energy", "solve"]

#: ridge on correlations, by precision
RIDGE = {torch.float64: 1e-10, torch.float32: 1e-5}


def solve(G: Tensor, B: Tensor, ridge: float | None = None) -> Tensor:
    """B G⁻¹ for a covariance G that may be singular, (m, k).

    Args:
        G: (k, k), positive semi-definite.
        B: (m, k).
        ridge: added to the diagonal of the correlations; the default suits the precision. It is raised
            tenfold until the factorisation succeeds.

    Example:
        >>> G = torch.ones(2, 2, dtype=torch.float64)                    # two copies of one unit
        >>> (torch.ones(1, 2, dtype=torch.float64) @ solve(G, G).T).round(decimals=6).tolist()
        [[1.0, 1.0]]
    """
    variance = G.diagonal()
    scale = torch.where(variance > 0, variance.clamp(min=1e-300).rsqrt(), 0.0)
    R = G * scale[:, None] * scale
    level = RIDGE[G.dtype] if ridge is None else ridge
    while True:
        R.diagonal().fill_(1 + level)
        factor, failed = torch.linalg.cholesky_ex(R)
        if not failed or level > 1:
            break
        level = max(10 * level, RIDGE[G.dtype])
    return torch.cholesky_solve((B * scale).T, factor).T * scale


def replacement(
    moments: Moments,
    kept: Tensor,
    *,
    cross: Tensor | None = None,
    target: Tensor | None = None,
    ridge: float | None = None,
) -> Coreset:
    """The least-squares coreset on given units.

    Args:
        moments: of the units as they are.
        kept: S, (k,) int64, ascending.
        cross: X = Cov(h, h̃), (n, n), if the units to be reproduced are others than those that are.
        target: E h, (n,), with `cross`.
        ridge: see `solve`.

    Returns:
        S, T* and t.
    """
    G = moments.covariance
    X = G if cross is None else cross
    T = solve(G[kept][:, kept], X[:, kept], ridge)
    if cross is None:  # a kept unit is its own best replacement, exactly
        T[kept] = torch.eye(kept.numel(), dtype=T.dtype, device=T.device)
    wanted = moments.mean if target is None else target
    return Coreset(kept, T, (wanted - T.double() @ moments.mean[kept].double()).to(wanted.dtype))


def residual_energy(W: Tensor, moments: Moments, coreset: Coreset) -> Tensor:
    """E (y_i − ŷ_i)² per output under the moments, for any coreset, (p,).

    With D = I − T·(scatter to S): diag(W D G Dᵀ Wᵀ) + (W (D m − t))². No selector takes part in it.
    """
    n = W.shape[1]
    V = W.clone()
    V.index_add_(1, coreset.indices, coreset.outgoing(W), alpha=-1)
    bias = V @ moments.mean.to(V.dtype) - coreset.constant(W).to(V.dtype)
    assert V.shape[1] == n
    return ((V @ moments.covariance.to(V.dtype)) * V).sum(1).clamp(min=0) + bias.square()
