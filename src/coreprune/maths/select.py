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

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Path", "at_once", "backward", "dropped", "dropped_beside", "forward", "greedy", "pivot"]

_NOISE = 1e-10  # a residual variance below this share of a unit's own is rounding
COPY = 2.5  # times the ridge, up to which a residual variance is that of a copy
BLOCK = 64  # units that are dropped between two updates of the rest
CANDIDATES = 4  # for each of them


@dataclass(frozen=True)
class Path:
    """What a greedy run decided.

    Attributes:
        kept: S, (k,) int64, ascending.
        order: units in the order they were added (forward) or dropped (backward).
        energy: change of E‖y − ŷ‖² at each step: what a unit explained, or what its loss costs.
        added: whether `order` adds units; otherwise it drops them.
        factor: L, (k, n), with LᵀL = Ĝ, the part of G that the kept units explain, its rows in the order of
            `order`; None if fewer explain it all, or the run was backward.
    """

    kept: Tensor
    order: Tensor
    energy: Tensor
    added: bool = True
    factor: Tensor | None = None

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
            error[units] = 0
        else:
            error[units - len(steps) : units] = steps.flip(0)
            error[units] = 0
            error[0] = total
        return error.clamp(min=0).flip(0).cummax(0).values.flip(0).clamp(max=total)


def forward(
    G: Tensor, Y: Tensor, k: int, *, scale: Tensor | None = None, ridge: float = 0.0, block: int | None = None
) -> Path:
    """Add k units, the best one first: a pivoted Cholesky factorisation that is stopped after k columns.

    Args:
        G: covariance of the units, (n, n); only k of its columns are read, and its diagonal.
        Y: covariance of the target with the units, (p, n).
        k: units to keep.
        scale: factors on the units, (n,), so that D G D is factorised without being formed.
        ridge: added to the diagonal of D G D.
        block: units added between two updates of the rest; default k/24, held between 16 and 256.

    Returns:
        The path, with its factor; units that explain nothing come last, in order of their index.
    """
    n = G.shape[0]
    block = block or min(max(16, k // 24), 256)
    D = torch.ones_like(G.diagonal()) if scale is None else scale
    L = G.new_zeros(k, n)
    order = torch.zeros(0, dtype=torch.int64, device=G.device)
    energy = G.new_zeros(0)
    # everything below runs over the units still in play, `at`, which are gathered anew as they become fewer
    at, factor, Y = torch.arange(n, device=G.device), L, Y * D
    rest = G.diagonal() * D.square() + ridge
    # a copy of what is in keeps twice the ridge, its own and what the ridge kept of the other, and is nothing new
    floor = max(_NOISE, 8 * torch.finfo(G.dtype).eps) * rest + COPY * ridge
    free = torch.ones(n, dtype=torch.bool, device=G.device)
    while (done := order.numel()) < k:
        if n - done < 0.7 * at.numel():
            at, Y, rest, floor, free = at[free], Y[:, free], rest[free], floor[free], free[free]
            factor = G.new_zeros(k, at.numel())
            factor[:done] = L[:done, at]
        score = torch.where(free & (rest > floor), Y.square().sum(0) / rest.clamp(min=1e-30), -1.0)
        size = min(block, k - done)
        best = torch.topk(score, min(size + max(16, size // 2), at.numel())).indices
        best = best[score[best] > 0]
        known, D_best = factor[:done, best], D[at[best]]
        R = (G[at[best]][:, at[best]] * D_best).mul_(D_best[:, None]).addmm_(known.T, known, alpha=-1)
        R.diagonal().add_(ridge)
        target = Y[:, best]
        chosen, gains = greedy(R, target.T @ target, size, floor[best])
        if chosen.numel() == 0:
            break
        picked, units = best[chosen], at[best[chosen]]
        # sweep the block out: new rows of the factor, then the residual variances and targets
        rows = G[units] if at.numel() == n else G[units][:, at]
        rows.mul_(D[at]).mul_(D[units, None]).addmm_(known[:, chosen].T, factor[:done], alpha=-1)
        rows[torch.arange(picked.numel(), device=G.device), picked] += ridge
        corner = pivot(rows[:, picked])
        new = torch.linalg.solve_triangular(corner, rows, upper=False)
        new *= free  # a unit that is in has nothing left to explain
        factor[done : done + picked.numel()] = new
        L[done : done + picked.numel(), at] = new
        Y.addmm_(torch.linalg.solve_triangular(corner, Y[:, picked].T, upper=False).T, new, alpha=-1)
        rest = (rest - new.square().sum(0)).clamp(min=0)
        free[picked] = False
        order, energy = torch.cat([order, units]), torch.cat([energy, gains])
    spare = torch.ones(n, dtype=torch.bool, device=G.device).index_fill_(0, order, 0).nonzero()[: k - order.numel(), 0]
    whole = L if spare.numel() == 0 else None
    order, energy = torch.cat([order, spare]), torch.cat([energy, G.new_zeros(spare.numel())])
    return Path(order.sort().values, order, energy, True, whole)


def backward(G: Tensor, Y: Tensor, k: int, *, block: int = BLOCK) -> Path:
    """Drop all but k units, the cheapest one first.

    Args:
        G: covariance of the units, positive definite, (n, n).
        Y: covariance of the target with the units, (p, n).
        k: units to keep.
        block: units dropped between two updates of the rest.

    Returns:
        The path.
    """
    H = torch.cholesky_inverse(torch.linalg.cholesky(G))
    V = Y @ H
    return dropped(H, V.T @ V, k, block=block)


def dropped(H: Tensor, E: Tensor, k: int, *, block: int = BLOCK) -> Path:
    """`backward`, given H = G⁻¹ and E = VᵀV for V = Y G⁻¹, (n, n), which are used up.

    A block B goes with A = L⁻¹ H_B, L Lᵀ = H_BB, which takes H to H − AᵀA, and V to V − V_B L⁻ᵀ A; so that, with
    Q = L⁻¹ E_B and Γ = L⁻¹ E_BB L⁻ᵀ, E goes to E − QᵀA − AᵀQ + AᵀΓA.
    """
    n = H.shape[0]
    # everything below runs over the units still in play, `at`, which are gathered anew as they become fewer
    at, alive = torch.arange(n, device=H.device), torch.ones(n, dtype=torch.bool, device=H.device)
    order = torch.zeros(0, dtype=torch.int64, device=H.device)
    energy = H.new_zeros(0)
    while (left := n - order.numel()) > k:
        if left < 0.8 * at.numel():
            at, H, E, alive = at[alive], H[alive][:, alive], E[alive][:, alive], alive[alive]
        size = min(block, left - k)
        if CANDIDATES * size >= left == at.numel():  # all are candidates
            gone, costs = greedy(H, E, size)
        else:
            score = torch.where(alive, E.diagonal() / H.diagonal().clamp(min=1e-30), torch.inf)
            cheap = torch.topk(score, min(CANDIDATES * size, left), largest=False).indices
            chosen, costs = greedy(H[cheap][:, cheap], E[cheap][:, cheap], size)
            gone = cheap[chosen]
        alive[gone] = False
        order, energy = torch.cat([order, at[gone]]), torch.cat([energy, costs])
        if left - size > k:
            corner = pivot(H[gone][:, gone])
            A = torch.linalg.solve_triangular(corner, H[gone], upper=False)
            Q = torch.linalg.solve_triangular(corner, E[gone], upper=False)
            inner = torch.linalg.solve_triangular(corner, Q[:, gone].T, upper=False)
            Q -= (inner / 2) @ A
            H.addmm_(A.T, A, alpha=-1)
            E.addmm_(torch.cat([Q, A]).T, torch.cat([A, Q]), alpha=-1)
    return Path(at[alive], order, energy, added=False)


def at_once(n: int, k: int) -> bool:
    """Whether `dropped` goes from n units to k by the exact greedy alone, among all of them and in one block."""
    return n - k <= BLOCK and n <= CANDIDATES * (n - k)


def dropped_beside(H: Tensor, E: Tensor, k: int) -> list[Path | None]:
    """`dropped` of several small problems that go `at_once`, step by step beside each other.

    The steps are those of `greedy`, all problems in one call of NumPy, as calls are what a small problem takes.

    Args:
        H: G⁻¹ of each, (B, n, n). E: VᵀV of each, (B, n, n). k: units to keep of each.

    Returns:
        The path of each; None where rounding leaves a unit no variance, which `dropped` knows what to do with.
    """
    count, n = H.shape[:2]
    size, each = n - k, np.arange(count)
    both = torch.stack([H, E], 1).cpu().numpy()
    state = both.diagonal(axis1=2, axis2=3).astype(float)  # variances, and halves of the energies
    state[:, 1] /= 2
    known, factors = np.zeros((count, 2 * size, n), dtype=both.dtype), np.zeros((count, 2, 2 * size), dtype=both.dtype)
    chosen, gamma = np.zeros((count, size), dtype=np.int64), np.zeros((count, size))
    clear = np.ones(count, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        for step, i in enumerate(range(0, 2 * size, 2)):
            chosen[:, step] = j = (state[:, 1] / state[:, 0]).argmin(1)
            clear &= state[each, 0, j] > 0
            factors[:, 0, :i:2] = factors[:, 1, 1:i:2] = known[each, :i:2, j]
            factors[:, 1, :i:2] = known[each, 1:i:2, j]
            pair = both[each, :, j] - factors[:, :, :i] @ known[:, :i]
            root = np.sqrt(np.maximum(pair[each, 0, j], 1e-300))
            pair /= root[:, None, None]
            gamma[:, step] = gain = np.maximum(pair[each, 1, j] / root, 0)
            pair[:, 1] -= pair[:, 0] * (0.5 * gain)[:, None]
            known[:, i : i + 2] = pair
            state -= pair * pair[:, :1]
            state[each, 0, j], state[each, 1, j] = 1, np.inf
    chosen[~clear] = np.arange(size)  # whatever, as long as they differ
    alive = np.ones((count, n), dtype=bool)
    np.put_along_axis(alive, chosen, False, 1)
    kept, costs = torch.from_numpy(alive.nonzero()[1].reshape(count, k)).to(H.device), torch.as_tensor(gamma).to(H)
    order = torch.from_numpy(chosen).to(H.device)
    return [Path(kept[b], order[b], costs[b], added=False) if clear[b] else None for b in range(count)]


def pivot(A: Tensor) -> Tensor:
    """Cholesky factor of a block, (m, m), or of several, (…, m, m); diagonals are raised where rounding has left one
    indefinite.
    """
    level = 0.0
    while True:
        raised = A + level * torch.diag_embed(A.diagonal(dim1=-2, dim2=-1)) if level else A
        L, failed = torch.linalg.cholesky_ex(raised)
        if not bool(failed.any()) or level > 1:
            result: Tensor = L
            return result
        level = max(10 * level, 8 * torch.finfo(A.dtype).eps)


def greedy(R: Tensor, A: Tensor, size: int, floor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The exact greedy among m candidates, one by one: forward on (R, YᵀY), backward on (H, VᵀV), which sweep alike.

    Sweeping unit j out takes R to R − l lᵀ, l = R_j / √R_jj, and Y to Y − g lᵀ, g = Y_j / √R_jj; so A = YᵀY
    goes to A − u lᵀ − l uᵀ with u = A_j / √R_jj − ½ γ l, γ = A_jj / R_jj. Rows of R and A are brought up to date
    only when they are needed. Too small and too sequential for a device: it runs on the host, rows in the precision of
    R, and what is left of the diagonals in float64.

    Args:
        R: residual covariance of the candidates, or H, (m, m).
        A: YᵀY of the residual targets, or VᵀV of the weights, (m, m).
        size: how many to choose.
        floor: forward: residual variances at or below it are rounding. None: backward, the cheapest goes.

    Returns:
        Chosen candidates in order, and A_jj / R_jj of each.
    """
    m, r, a = R.shape[0], R.cpu().numpy(), A.cpu().numpy()
    state = np.stack([r.diagonal(), a.diagonal() / 2]).astype(float)
    variance, half = state  # of the energies
    low = np.zeros(m) if floor is None else np.array(floor.double().cpu().numpy())
    never = np.inf if floor is None else -np.inf
    known, crossed = np.zeros((2, 2 * size, m), dtype=r.dtype)  # rows l and u in turn, and u and l
    pair, score, gamma = np.empty((2, m), dtype=r.dtype), np.empty(m), np.zeros(size)
    row, line = pair
    chosen: list[int] = []
    with np.errstate(divide="ignore", invalid="ignore"):
        while (i := 2 * len(chosen)) < 2 * min(size, m):
            np.divide(half, variance, out=score)
            j = int(score.argmin() if floor is None else score.argmax())
            clear = variance[j] > low[j]
            if score[j] == never or (floor is not None and clear and score[j] <= 0):
                break
            if clear:
                np.subtract(r[j], known[:i:2, j] @ known[:i:2], out=row)
                np.subtract(a[j], crossed[:i, j] @ known[:i], out=line)
                root = math.sqrt(max(row[j], low[j], 1e-300))
                pair /= root
                gamma[len(chosen)] = gain = max(float(line[j]) / root, 0.0)
                line -= row * (0.5 * gain)
                known[i : i + 2], crossed[i : i + 2] = pair, pair[::-1]
                state -= pair * row
                chosen.append(j)
            variance[j], half[j], low[j] = 1.0, never, 0.0  # it is in, or nothing but rounding
    indices = torch.tensor(chosen, dtype=torch.int64, device=R.device)
    return indices, torch.as_tensor(gamma[: len(chosen)]).to(R)
