"""Units that are several numbers at once, such as attention heads: which of them to keep.

Unit j owns b entries of h, and a removed unit's entries are replaced by combinations of the entries of all
kept units. With H = G⁻¹ and M = WᵀW, the optimal weights on the units that are left being W' and M' = W'ᵀW',
dropping unit j, entries B, and reweighting the rest costs exactly

    tr (H_BB)⁻¹ M'_BB,        W' ← W' − W'_B (H_BB)⁻¹ H_B:,        H ← H − H_:B (H_BB)⁻¹ H_B:

(optimal brain surgeon for a block of weights). Drop the cheapest, update, repeat: with b = 1 it is
`coreprune.maths.select.backward`.

Source: 01-maths §3; Hassibi & Stork 1993, block form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coreprune.maths.reweight import RIDGE, factored
from coreprune.maths.select import Path, pivot

__all__ = ["backward_blocks"]


def backward_blocks(G: Tensor, M: Tensor, units: int, keep: int) -> Path:
    """Drop units, the cheapest first, until `keep` are left.

    Args:
        G: covariance of all entries, (units·b, units·b), a unit's entries next to each other.
        M: WᵀW, same shape.
        units: n.
        keep: k.

    Returns:
        The path; `energy` is what each loss costs.

    Example:
        >>> G = torch.eye(4, dtype=torch.float64)
        >>> M = torch.diag(torch.tensor([3.0, 1.0, 0.1, 0.2], dtype=torch.float64))
        >>> backward_blocks(G, M, 2, 1).kept.tolist()
        [0]
    """
    n, b = units, G.shape[0] // units
    scale = G.diagonal().clamp(min=0).sqrt()
    safe = torch.where(scale > 0, scale, 1.0)
    R = G / safe[:, None] / safe
    H = torch.cholesky_inverse(factored(R, RIDGE[G.dtype]))
    energy_of = (M * scale[:, None] * scale).clone()
    left = torch.arange(n, device=G.device)
    order, costs = [], []
    while left.numel() > keep:
        inner = pivot(_diagonal(H, b))  # never by LU, which PyTorch gets wrong on several threads (its issue 142815)
        cost = torch.cholesky_solve(_diagonal(energy_of, b), inner).diagonal(dim1=1, dim2=2).sum(1)
        worst = int(cost.argmin())
        order.append(int(left[worst]))
        costs.append(max(float(cost[worst]), 0.0))
        B = slice(worst * b, (worst + 1) * b)
        E = torch.cholesky_solve(H[B], inner[worst])  # (H_BB)⁻¹ H_B:
        H = H - H[:, B] @ E
        side = E.T @ energy_of[B]
        energy_of = energy_of - side - side.T + E.T @ energy_of[B, B] @ E
        alive = torch.ones(len(H), dtype=torch.bool, device=G.device)
        alive[B] = False
        H, energy_of = H[alive][:, alive], energy_of[alive][:, alive]
        left = left[torch.arange(left.numel(), device=G.device) != worst]
    return Path(left, torch.tensor(order, dtype=torch.int64), torch.tensor(costs, dtype=G.dtype), added=False)


def _diagonal(A: Tensor, b: int) -> Tensor:
    """The b × b blocks on the diagonal, (n, b, b)."""
    n = A.shape[0] // b
    return A.reshape(n, b, n, b).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
