"""How large Σ_j v_j φ(z_j) can be when the pre-activations z share one bounded input: a certified upper bound.

Normal form.  Every unit is written z_j = b_j + r_j t_j, where t_j is *within slack_j of* d_j·u for one u in the unit
ball, and |t_j| ≤ reach_j.  For any real numbers S_j, Q_j (a quadratic instead of a line through each unit)

    Σ_j v_j φ(b_j + r_j t_j)  ≤  Σ_j o_j  +  sup_{‖u‖≤1} (g·u + uᵀA u)  +  Σ_j (|S_j| + 3|Q_j|) slack_j         (*)
    o_j = sup_{|t| ≤ reach_j} v_j φ(b_j + r_j t) − S_j t − Q_j t²,  g = Σ_j S_j d_j,  A = Σ_j Q_j d_j d_jᵀ

because v φ ≤ o + S t + Q t² unit by unit.  Q = 0 is the familiar linear relaxation, which lets every unit sit at its
own worst input.  Q > 0 prices what the units *share*: all |t_j| cannot be large under one input, Σ Q_j t_j² ≤ λ_max(A).
The best (S, Q) is the Lagrange (semidefinite) dual of the problem; a bad one is merely loose, so (S, Q) comes from an
unproved descent (`descend`) and only the last evaluation (`certify`) is proved, rounding included.

Sources: linear relaxation, Zhang et al. "CROWN", NeurIPS 2018; quadratic (semidefinite) relaxation, Raghunathan et al.,
NeurIPS 2018, and Dathathri et al., NeurIPS 2020; Cholesky certificate, Rump, "Verification of positive definiteness",
BIT 46, 2006; γ_k, Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreprune.maths.activation import Activation

__all__ = [
    "Cells",
    "Units",
    "cells",
    "certify",
    "certify_linear",
    "descend",
    "gamma",
    "offset",
    "quadratic_supremum",
    "read_error",
    "secant",
]

UNIT_ROUNDOFF = 2.0**-53
#: |fl φ(z) − φ(z)| ≤ PHI_ULPS · u · L · (scale + |z|) is asked of every activation's float64 code (tested)
PHI_ULPS = 64
RATE = 0.05  # first step of the descent, in units of a typical |v_j| (max φ − min φ)/2


def gamma(operations: int) -> float:
    """γ_k = k u / (1 − k u): relative error of k float64 operations in any order.

    Example:
        >>> gamma(1) < 1.2e-16 < gamma(2)
        True
    """
    return operations * UNIT_ROUNDOFF / (1 - operations * UNIT_ROUNDOFF)


@dataclass(frozen=True)
class Units:
    """n units over one input u, ‖u‖₂ ≤ 1: z_j = b_j + r_j t_j, |t_j| ≤ reach_j, |t_j − d_j·u| ≤ slack_j.

    Attributes:
        activation: φ. bias: b, (n,). radius: r > 0, (n,). directions: d, (n, m). reach: (n,). slack: (n,).
        coordinates: how many of the last units are not hidden units but coordinates of u (a box says |√m u_k| ≤ 1).
    """

    activation: Activation
    bias: Tensor
    radius: Tensor
    directions: Tensor
    reach: Tensor
    slack: Tensor
    coordinates: int = 0

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """An interval that contains every pre-activation, widened for rounding; two (n,)."""
        half = self.radius * self.reach
        half = half + 8 * UNIT_ROUNDOFF * (half + self.bias.abs())
        return self.bias - half, self.bias + half


@dataclass(frozen=True)
class Cells:
    """φ(b_j + r_j t), cell by cell: within `error` of the chord from (left, at_left) to (right, at_right).

    All are (cells, n); left and right are values of t. Cells may be empty (left = right).
    """

    left: Tensor
    right: Tensor
    at_left: Tensor
    at_right: Tensor
    error: Tensor


def cells(units: Units, count: int) -> Cells:
    """Cut every unit's interval at the knots of φ and at about `count` more points.

    On a cell of width h free of knots |φ − chord| ≤ sup|φ''| h²/8, and also ≤ max φ − min φ. φ is read just inside
    each cell, so that a jump at a knot shows both of its one-sided limits.

    Args:
        units: the units. count: cells spent on bent activations; piecewise-linear ones need none.

    Returns:
        The cells, covering [−reach_j, reach_j] for every j.
    """
    phi = units.activation
    lower, upper = units.ends
    points = [lower, upper, *(torch.full_like(lower, knot) for knot in phi.knots)]
    if phi.curvature > 0:
        share = torch.linspace(0, 1, count // 2 + 2, dtype=lower.dtype)[1:-1]
        points += list(lower + (upper - lower) * share[:, None])
        bent = 2 * share - 1
        points += list((8 * phi.scale * bent * bent.abs())[:, None].expand(-1, len(lower)))  # close together near 0
    grid = torch.stack(points).clamp(lower, upper).sort(0).values
    left, right = grid[:-1], grid[1:]
    inside_left = left + (2 * UNIT_ROUNDOFF * left.abs()).clamp(min=1e-200)
    inside_right = right - (2 * UNIT_ROUNDOFF * right.abs()).clamp(min=1e-200)
    error = torch.zeros_like(left)
    if phi.curvature > 0:
        low, high = phi.range(left, right)
        error = torch.minimum(phi.curvature * (right - left).square() / 8, high - low) * (1 + gamma(8))
    to_t = (grid - units.bias) / units.radius
    return Cells(to_t[:-1], to_t[1:], phi(inside_left), phi(inside_right), error)


def offset(cell: Cells, weight: Tensor, slope: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
    """O = sup_t v φ(b + r t) − S t − Q t², up to the rounding that `certify` allows for.

    On a cell the chord makes this a parabola: its top, held inside the cell, if Q > 0, else the better end.

    Args:
        cell: the cells of n units. weight: v, (rows, n). slope: S, (rows, n). bend: Q, (rows, n).

    Returns:
        The supremum and a point t where it is (nearly) reached; two (rows, n).
    """
    best = torch.full_like(weight, -torch.inf)
    where = torch.zeros_like(weight)
    size, bent, twice = weight.abs(), bend > 0, 2 * bend.clamp(min=1e-280)
    for left, right, at_left, at_right, error in zip(
        cell.left, cell.right, cell.at_left, cell.at_right, cell.error, strict=True
    ):
        width = right - left
        rate = torch.where(width > 0, (at_right - at_left) / width, 0)
        tilt = weight * rate - slope  # slope of the chord minus S t
        top = torch.maximum(torch.minimum(tilt / twice, right), left)
        end = torch.where(tilt > bend * (left + right), right, left)
        t = torch.where(bent, top, end)
        share = torch.where(width > 0, (t - left) / width, 0).clamp(0, 1)
        chord = at_left + share * (at_right - at_left)
        value = weight * chord + size * error - (slope + bend * t) * t
        where = torch.where(value > best, t, where)
        best = torch.maximum(best, value)
    return best, where


def _secular_root(eigenvalues: Tensor, squares: Tensor) -> Tensor:
    """λ ≥ max(λ_max, 0) with ¼ Σ g_k²/(λ − λ_k)² = 1 (or the largest eigenvalue if there is none); (rows,)."""
    low = eigenvalues[:, -1].clamp(min=0)
    high = low + squares.sum(1).sqrt() / 2
    for _ in range(50):
        middle = (low + high) / 2
        far = (squares / (4 * (middle[:, None] - eigenvalues).square().clamp(min=1e-300))).sum(1) > 1
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    return high


def quadratic_supremum(directions: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """A proved upper bound of sup_{‖u‖≤1} g·u + uᵀA u, g = Σ S_j d_j, A = Σ Q_j d_j d_jᵀ, for every row.

    For any λ with M = λI − A ⪰ 0 and any x, and e = g − 2Mx: g·u + uᵀAu ≤ λ + g·u − uᵀMu
    ≤ λ + ½(g + e)·x + ‖e‖(1 + ‖x‖) (concavity at x).  λ and x come from an eigendecomposition that need not be right;
    M ⪰ 0 is proved by Cholesky: if it runs through, M ⪰ −γ_{m+1}/(1−γ_{m+1}) tr(M) I [Rump 2006]. Forming A errs by at
    most γ_{n+2} Σ|Q_j|‖d_j‖² in norm, g by γ_n Σ|S_j|‖d_j‖; both ε enter as λ + ε, M + εI.
    Where Cholesky fails, ‖g‖ + Σ max(Q_j, 0)‖d_j‖² serves.

    Args:
        directions: d, (n, m). slope: S, (rows, n). bend: Q, (rows, n).

    Returns:
        The bounds, (rows,).
    """
    n, m = directions.shape
    norms = directions.square().sum(1)
    wide = gamma(2 * n + 2 * m + 16)
    blur = 2 * wide * (slope.abs() @ norms.sqrt())  # of g·u
    g = slope @ directions
    a = (directions.T * bend[:, None]) @ directions
    a = (a + a.mT) / 2
    values, vectors = torch.linalg.eigh(a)
    size = values.abs().amax(1) + g.norm(dim=1)
    lift = _secular_root(values, (vectors.mT @ g[:, :, None])[:, :, 0].square()) + 1e-9 * size
    matrix = -a
    matrix.diagonal(dim1=1, dim2=2).add_(lift[:, None])
    factor, failed = torch.linalg.cholesky_ex(matrix)
    x = torch.cholesky_solve(g[:, :, None] / 2, factor)[:, :, 0]
    e = g - 2 * (matrix @ x[:, :, None])[:, :, 0]
    far = x.norm(dim=1)
    shift = 2 * wide * (matrix.diagonal(dim1=1, dim2=2).sum(1) + bend.abs() @ norms)  # M + shift·I ⪰ 0, proved
    e_norm = e.norm(dim=1) + wide * (g.norm(dim=1) + 2 * matrix.flatten(1).norm(dim=1) * far) + 2 * shift * far
    dots = ((g + e) * x).sum(1) / 2 + wide * (g + e).norm(dim=1) * far
    value = (lift + shift + dots + (1 + far) * e_norm) * (1 + wide) + blur
    usable = (failed == 0) & value.isfinite()
    plain = _linear_supremum(directions, slope, bend)
    return torch.where(usable, torch.minimum(value, plain), plain)


def read_error(phi: Activation, size: Tensor) -> Tensor:
    """Bound of |fl φ(z) − φ(z)| for |z| ≤ size: what is asked of an activation's float64 code (and tested)."""
    lipschitz = phi.lipschitz if phi.lipschitz < torch.inf else 1.0
    return PHI_ULPS * UNIT_ROUNDOFF * lipschitz * (phi.scale + size)


def _allowance(units: Units, weight: Tensor, slope: Tensor, bend: Tensor, cell: Cells) -> Tensor:
    """Slack of (*), and all rounding in Σ o_j: of φ, of t = (z − b)/r, and of the sums; (rows,)."""
    phi = units.activation
    lower, upper = units.ends
    peak = phi.supremum(lower, upper) + 2 * cell.error.amax(0)
    read = read_error(phi, torch.maximum(lower.abs(), upper.abs()))
    place = units.slack + 8 * UNIT_ROUNDOFF * (2 * units.bias.abs() + units.radius * units.reach) / units.radius
    lines = slope.abs() + 3 * bend.abs()
    sums = weight.abs() @ (peak + read) + lines @ (1 + units.reach).square()
    return 2 * (4 * weight.abs() @ read + lines @ place + gamma(len(read) + 64) * sums)


def _linear_supremum(directions: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """‖g‖ + Σ max(Q_j, 0)‖d_j‖², rounded up: what is left of `quadratic_supremum` without eigenvalues; (rows,)."""
    norms = directions.square().sum(1)
    wide = gamma(2 * sum(directions.shape) + 16)
    g_norm: Tensor = torch.linalg.vector_norm(slope @ directions, dim=1)
    total = g_norm + bend.clamp(min=0) @ norms
    return total * (1 + wide) + 2 * wide * (slope.abs() @ norms.sqrt())


def certify(units: Units, weight: Tensor, slope: Tensor, bend: Tensor, cell: Cells, block: int) -> Tensor:
    """The right-hand side of (*) with every rounding error added: a proof, whatever slope and bend are.

    Args:
        units: the units. weight: V, (rows, n). slope: S, (rows, n). bend: Q, (rows, n). cell: their cells.
        block: rows whose matrices A are held at once.

    Returns:
        Upper bounds of Σ_j V_ij φ(z_j), (rows,); exactly 0 for a row of zeros.
    """
    pairs = zip(torch.split(slope, block), torch.split(bend, block), strict=True)
    shared = torch.cat([quadratic_supremum(units.directions, s, q) for s, q in pairs])
    return offset(cell, weight, slope, bend)[0].sum(1) + shared + _allowance(units, weight, slope, bend, cell)


def certify_linear(units: Units, weight: Tensor, slope: Tensor, cell: Cells) -> Tensor:
    """`certify` for Q = 0, where the supremum over u is ‖g‖ and needs no eigenvalues; (rows,)."""
    zero = torch.zeros_like(slope)
    own = offset(cell, weight, slope, zero)[0].sum(1)
    return own + _linear_supremum(units.directions, slope, zero) + _allowance(units, weight, slope, zero, cell)


def secant(units: Units, weight: Tensor) -> Tensor:
    """S of the linear relaxation: each unit's chord over its own interval; coordinates of a box cancel g; (rows, n)."""
    lower, upper = units.ends
    width = ((upper - lower) / units.radius).clamp(min=1e-30)
    slope = weight * ((units.activation(upper) - units.activation(lower)) / width)
    if units.coordinates:
        own = units.directions[-units.coordinates :].diagonal()
        slope[:, -units.coordinates :] = -(slope @ units.directions) / own
    return slope


def _start_bend(units: Units, weight: Tensor, slope: Tensor, cell: Cells) -> Tensor:
    """Q = κ G, G the height of the linear relaxation over φ at t = 0: |t| ≤ κt² + 1/(4κ), best κ in closed form."""
    gap = (offset(cell, weight, slope, torch.zeros_like(slope))[0] - weight * units.activation(units.bias)).clamp(min=0)
    u = torch.ones(len(weight), units.directions.shape[1], dtype=weight.dtype)
    largest = torch.zeros(len(weight), dtype=weight.dtype)
    for _ in range(20):  # power iteration for λ_max(Σ G d dᵀ)
        u = (gap * (u @ units.directions.T)) @ units.directions
        largest = u.norm(dim=1)
        u = u / largest.clamp(min=1e-300)[:, None]
    return gap * (gap.sum(1) / largest.clamp(min=1e-300)).sqrt().clamp(max=1e6)[:, None] / 2


def descend(
    units: Units, weight: Tensor, slope: Tensor, cell: Cells, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Look for a good (S, Q): min over (S, Q), max over u, of the right-hand side of (*). Proves nothing.

    u follows g/2 + A u (power iteration for the trust-region problem); by the envelope theorem the gradients are
    t_u − t_o in S and t_u² − t_o² in Q, with t_u = d·u and t_o the point where the offset is reached.

    Args:
        units: the units. weight: V, (rows, n). slope: starting S, (rows, n). cell: (coarse) cells.
        steps: descent steps. generator: draws the starting u.

    Returns:
        S and Q, (rows, n) each.
    """
    d = units.directions
    lower, upper = units.ends
    low, high = units.activation.range(lower, upper)
    spread = weight.abs() * (high - low) / 2
    scale = (spread + spread.mean(1, keepdim=True)) / 2
    safe = scale.clamp(min=1e-300)
    bend = _start_bend(units, weight, slope, cell)
    s, q = slope / safe, bend / safe
    u = torch.randn(len(weight), d.shape[1], dtype=weight.dtype, generator=generator)
    u = u / u.norm(dim=1, keepdim=True)
    adam = torch.optim.Adam([{"params": [s], "lr": RATE}, {"params": [q], "lr": 2 * RATE}], betas=(0.9, 0.99))
    for _ in range(steps):
        for group in adam.param_groups:
            group["lr"] *= 0.02 ** (1 / steps)
        slope, bend = s * scale, q * scale
        half = slope @ d / 2
        for _ in range(2):
            move = (bend * (u @ d.T)) @ d + half
            move = move + 0.5 * move.norm(dim=1, keepdim=True) * u
            u = move / move.norm(dim=1, keepdim=True).clamp(min=1e-300)
        seen, top = u @ d.T, offset(cell, weight, slope, bend)[1]
        s.grad, q.grad = seen - top, seen.square() - top.square()
        adam.step()
    return (s * scale).nan_to_num(0, 0, 0), (q * scale).nan_to_num(0, 0, 0)
