"""Covariances of few samples and many units, G = U Uᵀ + diag(d), without any matrix of n × n entries.

N samples of n units have a covariance of rank N, which shrinkage makes (1 − ρ) U Uᵀ + ρ diag. With N far below n all
that the greedy needs costs n·N and not n². After the units S are taken, what is left to explain of the others is

    diag(d) + Z Zᵀ,        Z = U A⁻ᵀ,  A Aᵀ = I + U_Sᵀ D_S⁻¹ U_S        (Woodbury)

of the same form again, and the optimal replacement of a unit that goes is T_j = U_j (A Aᵀ)⁻¹ U_Sᵀ D_S⁻¹.

Source: 01-maths §3; Woodbury 1950. The greedy is that of `coreprune.maths.select.forward`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreprune.maths.layer import Thin, changed
from coreprune.maths.products import product
from coreprune.maths.reweight import RIDGE
from coreprune.maths.select import Path, greedy

__all__ = ["LowRank", "about_zero", "forward", "replacement", "residual"]


@dataclass(frozen=True)
class LowRank:
    """G = U Uᵀ + diag(d).

    Attributes:
        factor: U, (n, N).
        rest: d, (n,), not negative.
    """

    factor: Tensor
    rest: Tensor

    def diagonal(self) -> Tensor:
        """G_jj, (n,)."""
        return self.factor.square().sum(1) + self.rest

    def dense(self) -> Tensor:
        """G, (n, n)."""
        G = self.factor @ self.factor.T
        G.diagonal().add_(self.rest)
        return G

    def to(self, dtype: torch.dtype) -> LowRank:
        """In another precision."""
        return LowRank(self.factor.to(dtype), self.rest.to(dtype))

    def scaled(self, scale: Tensor) -> LowRank:
        """D G D for factors D on the units, (n,)."""
        return LowRank(self.factor * scale[:, None], self.rest * scale.square())

    def energy(self, W: Tensor, squares: Tensor | None = None) -> float:
        """E‖W h‖² of centred units, tr W G Wᵀ, for W of shape (p, n), with ‖W_j‖² of every column where it is known."""
        squares = _squares(W) if squares is None else squares
        return float((W @ self.factor).square().sum() + squares @ self.rest)


def about_zero(covariance: Tensor | LowRank, mean: Tensor) -> Tensor | LowRank:
    """Second moments, G + m mᵀ."""
    if isinstance(covariance, LowRank):
        return LowRank(torch.cat([covariance.factor, mean[:, None]], 1), covariance.rest)
    return covariance + torch.outer(mean, mean)


def forward(
    G: LowRank,
    W: Tensor,
    k: int,
    *,
    ridge: float | Tensor = 0.0,
    block: int | None = None,
    squares: Tensor | None = None,
) -> Path:
    """Add k units, the best one first, as `coreprune.maths.select.forward` does for Y = W G.

    Args:
        G: covariance of the units, (n, n); of those with d + ridge > 0 k are chosen.
        W: the target is W h, (p, n).
        k: units to keep.
        ridge: added to d, one number or one for each unit.
        block: units added between two updates of the rest; default k/8, held between 16 and 256.
        squares: ‖W_j‖² of every column, (n,), where it is known.

    Returns:
        The path, without a factor.

    Example:
        >>> G = LowRank(torch.tensor([[2.0], [1.0], [0.0]]), torch.full((3,), 0.1))
        >>> forward(G, torch.eye(3), 1).kept.tolist()
        [0]
    """
    d, block = G.rest + ridge, block or min(max(16, k // 8), 256)
    own, free = _squares(W) if squares is None else squares, d > 0
    columns = W.T.contiguous()  # which are gathered many times
    Z = G.factor.T.contiguous()
    P = product(Z, W)  # samples lie along rows here and below, as thin matrices are best multiplied from the left
    through = product(
        P, columns
    )  # P W: a block of units changes it by less work than there is in it, unless samples are fewer than that
    order, gained = torch.zeros(0, dtype=torch.int64, device=d.device), d.new_zeros(0)
    while (done := order.numel()) < k:
        # Y_j = d_j W_j + Pᵀ z_j with P = Z Wᵀ over the units that are not in
        energy = d.square() * own + (torch.addmm(through * (2 * d), P @ P.T, Z) * Z).sum(0)
        score = torch.where(free, energy / (d + Z.square().sum(0)), -1.0)
        step = min(block, k - done)
        best = torch.topk(score, min(step + max(16, step // 2), int(free.sum()))).indices
        Z_best = Z[:, best]
        R = Z_best.T @ Z_best
        R.diagonal().add_(d[best])
        Y = torch.addmm(columns.index_select(0, best) * d[best, None], Z_best.T, P)
        chosen, gains = greedy(R, product(Y, Y), step, torch.zeros_like(d[best]))
        if chosen.numel() == 0:  # nothing is left that any output sees: fill up by index
            chosen = best.argsort()[:step]
            gains = d.new_zeros(chosen.numel())
        picked = best[chosen]
        order, gained = torch.cat([order, picked]), torch.cat([gained, gains])
        if order.numel() < k:
            free[picked] = False
            off, V = Z_best[:, chosen], columns.index_select(0, picked)
            turn = _inverse(_core(off.T, d[picked]))  # A⁻¹
            P = turn @ (P - off @ V)
            fewer = len(Z) <= picked.numel()
            through = product(P, columns) if fewer else turn @ (through - off @ product(V, columns))
            Z = turn @ Z
    return Path(order.sort().values, order, gained, added=True)


def replacement(G: LowRank, kept: Tensor, ridge: float | None = None) -> Thin:
    """T* = G[:,S] G[S,S]⁻¹, with a ridge on the correlations as in `coreprune.maths.reweight`."""
    variance = G.diagonal()
    d = G.rest[kept] + (RIDGE[variance.dtype] if ridge is None else ridge) * variance[kept]
    safe = torch.where(variance[kept] > 0, d, 1.0)
    weighted = G.factor[kept] / safe[:, None]
    gone = torch.ones_like(variance, dtype=torch.bool).index_fill_(0, kept, False).nonzero()[:, 0]
    return Thin(gone, G.factor[gone], torch.cholesky_solve(weighted.T, _core(G.factor[kept], safe)))


def residual(G: LowRank, W: Tensor, kept: Tensor, T: Tensor | Thin, squares: Tensor | None = None) -> float:
    """Tr W Cov(e) Wᵀ, e = h − T h_S, for any T, (n, k): what of e is common, and what is each unit's own.

    Args:
        G: of h. W: (p, n). kept: S. T: T. squares: ‖W_j‖² of every column, (n,), where it is known.
    """
    explained = T @ G.factor[kept]
    if isinstance(T, Thin):  # W is large, and read once
        off, left = torch.zeros_like(G.factor), T.left.new_zeros(len(W.T), T.left.shape[1])
        off[T.gone], left[T.gone] = (G.factor - explained)[T.gone], T.left
        through, V = (W @ torch.cat([off, left], 1)).split([off.shape[1], left.shape[1]], 1)
        own = (_squares(W) if squares is None else squares).clone()
        own[kept] = (T.right * (V.T @ V @ T.right)).sum(0)  # ‖V T.right‖², column by column
        return float(through.square().sum() + own @ G.rest)
    at = changed(T, kept)
    W = W[:, at]
    through = W @ (G.factor[at] - explained[at])
    own = torch.zeros_like(G.rest).index_copy_(0, at, _squares(W))
    V = W @ T[at]
    both = (at[:, None] == kept).nonzero()  # kept units that do not stand for themselves
    V[:, both[:, 1]] -= W[:, both[:, 0]]
    own[kept] = _squares(V)
    return float(through.square().sum() + own @ G.rest)


def _squares(W: Tensor) -> Tensor:
    """‖W_j‖² of every column, (n,), summed up in pieces of rows."""
    total = W.new_zeros(W.shape[1])
    for rows in W.split(256):
        total += rows.square().sum(0)
    return total


def _inverse(A: Tensor) -> Tensor:
    """A⁻¹ of a small lower triangular matrix, by which many rows are multiplied faster than solved for."""
    inverse: Tensor = torch.linalg.solve_triangular(A, torch.eye(len(A), dtype=A.dtype, device=A.device), upper=False)
    return inverse


def _core(U: Tensor, d: Tensor) -> Tensor:
    """A lower triangular with A Aᵀ = I + Uᵀ diag(d)⁻¹ U, (N, N)."""
    inner = (U / d[:, None]).T @ U
    inner.diagonal().add_(1.0)
    A: Tensor = torch.linalg.cholesky(inner)
    return A
