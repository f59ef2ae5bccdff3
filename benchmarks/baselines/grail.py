"""GRAIL: whatever was selected, the readers are refitted by ridge regression on the units' Gram matrix. Calibrated.

    G = E h hᵀ,    T = G[:,S] (G[S,S] + λ I)⁻¹,    λ = 10⁻³ · mean diag G[S,S],    W' = W T

The second moments are about zero and no bias changes. The paper pairs it with selectors from elsewhere; here with
Wanda's, and with the greedy that adds the unit which lowers the readers' error most,

    S ← S ∪ argmax_j ‖W R e_j‖²/R_jj,    R ← R − R e_j e_jᵀ R/R_jj,    R₀ = G,

the strongest rival that real data allow: an oracle, as data-free methods have no G.

Sources: Tang et al., "GRAIL: Post-hoc Compensation by Linear Reconstruction for Compressed Networks", CPAL 2026,
arXiv:2602.23795; the greedy is orthogonal least squares (Chen, Billings & Luo 1989) with several outputs.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from baselines.units import Choice, Units, selected, top
from baselines.wanda import scores

__all__ = ["compensated", "grail_greedy", "grail_wanda", "greedy", "root"]

#: λ relative to the mean of the diagonal, as published
RIDGE = 1e-3


def compensated(second: Tensor, kept: Tensor, ridge: float = RIDGE) -> Tensor:
    """T, (n, k), for G = E h hᵀ, (n, n)  (positive definite where the ridge is 0).

    Example:
        >>> compensated(torch.ones(2, 2, dtype=torch.float64), torch.tensor([0]), 0.0).tolist()
        [[1.0], [1.0]]
    """
    inner = second[kept][:, kept]
    level = ridge * float(inner.diagonal().mean()) + torch.finfo(second.dtype).tiny
    A = inner + level * torch.eye(kept.numel(), dtype=second.dtype)
    T: Tensor = torch.linalg.solve(A, second[kept]).T
    return T


def root(M: Tensor) -> Tensor:
    """L, (n, n), with LᵀL = M, for M positive semi-definite."""
    values, vectors = torch.linalg.eigh(M)
    L: Tensor = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return L


def greedy(units: Units, k: int) -> Tensor:
    """S by the greedy, ascending, (k,); with several readers gains are shares of each one's own energy, summed."""
    residuals = [seen.second.clone() for seen in units.observed()]
    floors = [1e-10 * R.diagonal().max().clamp(min=1e-300) for R in residuals]
    images, energies = [], []
    for W, R in zip(units.readers, residuals, strict=True):
        L = W if len(W) < units.count else root(W.T @ W)  # the smaller of two with the same LᵀL
        images.append(L @ R)
        energies.append(((W @ R) * W).sum().clamp(min=1e-300))
    chosen: list[int] = []
    for _ in range(k):
        gain = residuals[0].new_zeros(units.count)
        for R, LR, energy, floor in zip(residuals, images, energies, floors, strict=True):
            left = R.diagonal()
            gain += torch.where(left > floor, LR.square().sum(0) / left.clamp(min=float(floor)), 0.0) / energy
        gain[chosen] = -1.0
        best = int(gain.argmax())
        chosen.append(best)
        for R, LR, floor in zip(residuals, images, floors, strict=True):
            if float(R[best, best]) > float(floor):
                row = R[best] / R[best, best]
                LR.addr_(LR[:, best].clone(), row, alpha=-1)
                R.addr_(R[:, best].clone(), row, alpha=-1)
    return torch.tensor(sorted(chosen))


def _refitted(units: Units, kept: Tensor) -> Choice:
    return selected(units, kept, [compensated(seen.second, kept) for seen in units.observed()])


def grail_wanda(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """Wanda's selection, refitted."""
    return _refitted(units, top(scores(units), k))


def grail_greedy(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """The greedy's selection, refitted."""
    return _refitted(units, greedy(units, k))
