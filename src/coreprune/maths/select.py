"""Which units to keep: greedy subset selection for least squares, in blocks.

The target is y = W (h − E h). Units are given by their covariance G, the target by its covariance
with them, Y = Cov(y, h̃): p × n (Y = W G unless the units have moved since the target was fixed).
Keeping S and reweighting optimally leaves

    E‖y − ŷ‖² = tr Cov(y) − tr Y_S G_SS⁻¹ Y_Sᵀ.

*Forward* adds the unit that lowers it most, argmax ‖Y_j‖² / G_jj, and sweeps it out of G and Y (a
pivoted Cholesky factorisation). *Backward* starts from all units with weights V = Y G⁻¹ and drops
the unit that costs least, argmin ‖V_j‖² / H_jj with H = G⁻¹ (optimal brain surgeon).

Both work in blocks: among the best candidates the greedy is exact, one by one; the remaining
units are updated once per block, by matrix products.

Source: 01-maths §3; Hassibi & Stork 1993; greedy column subset selection, Farahat et al. 2013.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Path", "backward", "forward"]

_NOISE = 1e-10  # a residual variance below this share of a unit's own is rounding


@dataclass(frozen=True)
class Path:
    """What a greedy run decided.

    Attributes:
        kept: S, (k,) int64, ascending.
        order: units in the order they were added (forward) or dropped (backward).
        energy: change of E‖y − ŷ‖² at each step: what a unit explained, or what its loss costs.
        added: whether `order` adds units; otherwise it drops them.
    """

    kept: Tensor
    order: Tensor
    energy: Tensor
    added: bool = True

    def curve(self, units: int, total: float) -> Tensor:
        """err(k) = E‖y − ŷ‖² with k units kept, for k = 0 … n, (n + 1,), never rising in k.

        Args:
            units: n. total: E‖y − E y‖², the error of keeping none.
        """
        error = self.energy.new_full((units + 1,), total)
        steps = self.energy.cumsum(0)
        if self.added:
            error[1 : len(steps) + 1] = total - steps
            error[len(steps) + 1 :] = (total - steps[-1]) if len(steps) else total
        else:
            error[units - len(steps) : units] = steps.flip(0)
            error[units] = 0
            error[0] = total
        return error.clamp(min=0).flip(0).cummax(0).values.flip(0).clamp(max=total)


def forward(G: Tensor, Y: Tensor, k: int, *, block: int = 64) -> Path:
    """Add k units, the best one first.

    Args:
        G: covariance of the units, (n, n).
        Y: covariance of the target with the units, (p, n).
        k: units to keep.
        block: units added between two updates of the rest.

    Returns:
        The path; units that explain nothing come last, in order of their index.
    """
    n = G.shape[0]
    rest, floor = G.diagonal().clone(), _NOISE * G.diagonal()
    Y = Y.clone()
    L = G.new_zeros(n, 0)
    order: list[Tensor] = []
    energy: list[Tensor] = []
    free = torch.ones(n, dtype=torch.bool, device=G.device)
    while len(order) < k:
        score = torch.where(free & (rest > floor), Y.square().sum(0) / rest.clamp(min=1e-300), -1.0)
        size = min(block, k - len(order))
        best = torch.topk(score, min(4 * size, n)).indices
        best = best[score[best] > 0]
        if best.numel() == 0:
            break
        R = G[best][:, best] - L[best] @ L[best].T
        chosen, gains = _pivots(R, Y[:, best], floor[best], size)
        picked = best[chosen]
        order += list(picked)
        energy += list(gains)
        free[picked] = False
        # sweep the block out: new columns of the factor, then the residual variances and targets
        columns = G[:, picked] - L @ L[picked].T
        pivot = torch.linalg.cholesky(columns[picked])
        new = torch.linalg.solve_triangular(pivot, columns.T, upper=False).T
        Y -= torch.linalg.solve_triangular(pivot, Y[:, picked].T, upper=False).T @ new.T
        rest = (rest - new.square().sum(1)).clamp(min=0)
        L = torch.cat([L, new], 1)
    path = torch.stack(order) if order else torch.zeros(0, dtype=torch.int64, device=G.device)
    spare = free.nonzero()[: k - path.numel(), 0]
    path = torch.cat([path, spare])
    gain = torch.cat([torch.stack(energy), G.new_zeros(spare.numel())]) if energy else G.new_zeros(path.numel())
    return Path(path.sort().values, path, gain)


def backward(G: Tensor, Y: Tensor, k: int, *, block: int = 64) -> Path:
    """Drop all but k units, the cheapest one first.

    Args:
        G: covariance of the units, positive definite, (n, n).
        Y: covariance of the target with the units, (p, n).
        k: units to keep.
        block: units dropped between two updates of the rest.

    Returns:
        The path.
    """
    n = G.shape[0]
    H = torch.cholesky_inverse(torch.linalg.cholesky(G))
    V = Y @ H
    alive = torch.arange(n, device=G.device)
    order: list[Tensor] = []
    energy: list[Tensor] = []
    while alive.numel() > k:
        score = V.square().sum(0) / H.diagonal()
        size = min(block, alive.numel() - k)
        cheap = torch.topk(score, min(4 * size, alive.numel()), largest=False).indices
        chosen, costs = _drops(H[cheap][:, cheap].clone(), V[:, cheap].clone(), size)
        gone = cheap[chosen]
        order.append(alive[gone])
        energy.append(costs)
        stay = torch.ones(alive.numel(), dtype=torch.bool, device=G.device)
        stay[gone] = False
        pivot = torch.linalg.cholesky(H[gone][:, gone])
        across = torch.linalg.solve_triangular(pivot, H[gone][:, stay], upper=False)
        V = V[:, stay] - torch.linalg.solve_triangular(pivot, V[:, gone].T, upper=False).T @ across
        H = H[stay][:, stay].addmm_(across.T, across, alpha=-1)
        alive = alive[stay]
    none = torch.zeros(0, dtype=torch.int64, device=G.device)
    steps = torch.cat(energy) if energy else G.new_zeros(0)
    return Path(alive, torch.cat(order) if order else none, steps, added=False)


def _pivots(R: Tensor, Y: Tensor, floor: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Exact forward greedy among candidates: residual covariance R (m, m), targets Y (p, m)."""
    Y = Y.clone()
    chosen, gains = [], []
    for _ in range(size):
        rest = R.diagonal()
        score = torch.where(rest > floor, Y.square().sum(0) / rest.clamp(min=1e-300), -1.0)
        j = int(score.argmax())
        if score[j] <= 0:
            break
        chosen.append(j)
        gains.append(score[j].clone())
        column = R[:, j] / R[j, j].sqrt()
        Y -= torch.outer(Y[:, j] / R[j, j].sqrt(), column)
        R = R - torch.outer(column, column)
        R[j, j] = 0
    return torch.tensor(chosen, device=R.device), torch.stack(gains)


def _drops(H: Tensor, V: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Exact backward greedy among candidates: H (m, m) of the inverse, weights V (p, m)."""
    chosen, costs = [], []
    gone = torch.zeros(H.shape[0], dtype=torch.bool, device=H.device)
    for _ in range(size):
        diagonal = H.diagonal()
        score = (V.square().sum(0) / diagonal.clamp(min=1e-300)).masked_fill(gone, torch.inf)
        j = int(score.argmin())
        chosen.append(j)
        costs.append(score[j].clone())
        gone[j] = True
        row = H[j] / H[j, j]
        V = V - torch.outer(V[:, j], row)
        H = H - torch.outer(H[:, j], row)
    return torch.tensor(chosen, device=H.device), torch.stack(costs)
