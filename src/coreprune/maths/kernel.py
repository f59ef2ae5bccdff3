"""Kernel coresets: the best subset the greedy finds, with the optimal replacement, in closed form.

For a known law of the units this is least squares, and no random number is used. The target is
what the readers get, y = W h, all of them together. Keeping S costs

    tr W (G − X_S G̃_SS⁻¹ X_Sᵀ) Wᵀ,

so the selection sees the target W X, and the replacement is T* = X_S G̃_SS⁻¹.

Source: 01-maths §3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.beside import stacked
from coreprune.maths.gram import Moments
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.propagate import Law
from coreprune.maths.reweight import RIDGE, factored, replacement
from coreprune.maths.select import Path, at_once, dropped, dropped_beside, forward
from coreprune.maths.streaming import squared

__all__ = [
    "backwards",
    "backwards_beside",
    "completed",
    "goes_forward",
    "kernel",
    "law_needed",
    "replaced",
    "select",
    "varying",
]

#: up to this number of units the backward greedy runs, which is a little better; its n³ is nothing there
SMALL = 1024


def kernel(layer: Layer, units: int, generator: Generator | None = None) -> Coreset:
    """The kernel coreset of a layer whose law is known.

    Args:
        layer: with `law`.
        units: k, units to keep.
        generator: not used; there is nothing random.

    Returns:
        S, T* and t.

    Raises:
        InvalidInputError: the law is not known.
    """
    law = law_needed(layer)
    return replaced(law, select(layer, units))


def replaced(law: Law, path: Path) -> Coreset:
    """T* and t for the units that a path to k of them keeps, out of its factor if it left one."""
    if path.factor is None or law.cross is not None:
        return replacement(law, Coreset(path.kept, path.energy))
    # Tᵀ = G_SS⁻¹ G_S: = L_S⁻¹ L with L_S upper triangular, from the factor that the selection leaves behind
    n, k = law.moments.mean.numel(), path.kept.numel()
    gone = torch.ones(n, dtype=torch.bool, device=path.order.device)
    gone[path.kept] = False
    solved = torch.linalg.solve_triangular(path.factor[:, path.order], path.factor[:, gone], upper=True).T
    deviation = law.moments.covariance.diagonal().clamp(min=0).sqrt()
    T = solved.new_zeros(n, k)
    T[gone] = solved[:, path.order.argsort()] * deviation[gone, None] / deviation[path.kept]
    T[path.kept, torch.arange(k, device=T.device)] = 1
    return Coreset(path.kept, T, law.moments.mean - T @ law.moments.mean[path.kept])


def select(layer: Layer, units: int, through: Tensor | None = None) -> Path:
    """The greedy path to k units: backward where the layer is small, forward where it is large.

    The covariance is scaled to correlations and gets the ridge of `coreprune.maths.reweight`, so that
    duplicate, dead and constant units do no harm: they explain nothing and go first.

    Args:
        layer: with its law. units: k.
        through: Y = W X, (p, n), where it is known.
    """
    law = law_needed(layer)
    G = law.moments.covariance
    W = layer.outgoing.to(G.dtype)
    if not goes_forward(G.shape[0]):
        return backwards(law.moments, squared(W), units, law.cross)
    constant = ~varying(law.moments)
    if int((~constant).sum()) <= units:
        return _all_that_vary(constant, units, G.dtype)
    scale = torch.where(constant, 0.0, torch.where(constant, 1.0, G.diagonal()).rsqrt())
    Y = W @ (G if law.cross is None else law.cross) if through is None else through
    path = forward(G, Y, units, scale=scale, ridge=RIDGE[G.dtype])
    return path if not bool(constant.any()) else replace(path, factor=None)


def backwards(moments: Moments, M: Tensor, units: int, cross: Tensor | None = None) -> Path:
    """The backward path of `select`, for M = WᵀW of the readers.

    Args:
        moments: of the units. M: (n, n). units: k.
        cross: X, where the target is not W h but W h̃ with X = Cov(h, h̃). Without it the ridge, which is noise of each
            unit's own, is taken for a part of the unit, so that V = W.
    """
    G = moments.covariance
    constant = ~varying(moments)
    live = (~constant).nonzero()[:, 0]
    if live.numel() <= units:
        return _all_that_vary(constant, units, G.dtype)
    scale = G.diagonal()[live].rsqrt()
    R = _between(G, live).mul_(scale[:, None]).mul_(scale)
    H = torch.cholesky_inverse(factored(R, RIDGE[G.dtype]))
    if cross is None:
        E = _between(M, live).div_(scale[:, None]).div_(scale)
    else:
        V = cross[:, live] * scale @ H
        E = V.T @ M @ V
    path = dropped(H, E, units)
    return replace(path, kept=live[path.kept], order=live[path.order])


def backwards_beside(many: Sequence[Moments], Ms: Sequence[Tensor], units: int) -> list[Path]:
    """`backwards` for several of as many units, beside each other where they are small and every unit varies.

    Args:
        many: moments of the units of each. Ms: of each, (n, n). units: k of each.
    """
    n, paths = many[0].mean.numel(), dict[int, Path | None]()
    if len(many) > 1 and at_once(n, units):
        G, M = stacked([moments.covariance for moments in many]), stacked(Ms)
        lively = varying(Moments(stacked([moments.mean for moments in many]), G)).all(1)
        at = lively.nonzero()[:, 0]
        if at.numel() < len(many):
            G, M = G[at], M[at]
        scale = G.diagonal(dim1=1, dim2=2).rsqrt()
        both = scale[:, :, None] * scale[:, None]
        H = torch.cholesky_inverse(factored(G * both, RIDGE[G.dtype]))
        paths = dict(zip(at.tolist(), dropped_beside(H, M / both, units), strict=True))
    return [paths.get(i) or backwards(moments, Ms[i], units) for i, moments in enumerate(many)]


def _between(A: Tensor, live: Tensor) -> Tensor:
    """Rows and columns of some units, as a copy."""
    return A.clone() if live.numel() == len(A) else A[live][:, live]


def _all_that_vary(constant: Tensor, units: int, dtype: torch.dtype) -> Path:
    """All units that matter stay; the rest is filled up by index."""
    live, dead = (~constant).nonzero()[:, 0], constant.nonzero()[:, 0]
    kept = torch.cat([live, dead[: units - live.numel()]]).sort().values
    return Path(kept, kept, torch.zeros(0, dtype=dtype, device=kept.device))


def completed(path: Path, moments: Moments, total: float) -> Path:
    """The path with the units that do not vary, which it leaves out: they go first and cost nothing.

    Args:
        path: from `select`. moments: of the units. total: the error of keeping none.
    """
    if not path.added and path.kept.numel() + path.order.numel() == moments.mean.numel():
        return path  # all vary
    live = varying(moments)
    if path.added and path.energy.numel() < path.order.numel():  # all that vary stay, and explain everything
        order = torch.cat([path.order[live[path.order]], path.order[~live[path.order]]])
        energy = path.energy.new_zeros(order.numel())
        energy[max(int(live.sum()), 1) - 1] = total
        return replace(path, order=order, energy=energy)
    if path.added:
        return path
    known = torch.zeros_like(live)
    known[path.kept], known[path.order] = True, True
    dead = (~known).nonzero()[:, 0]
    energy = torch.cat([path.energy.new_zeros(dead.numel()), path.energy])
    return replace(path, order=torch.cat([dead, path.order]), energy=energy)


def law_needed(layer: Layer) -> Law:
    """The layer's law, or InvalidInputError if none was given."""
    if layer.law is None:
        raise InvalidInputError("this method needs the moments of the units: give a prior")
    return layer.law


def goes_forward(units: int) -> bool:
    """Whether `select` adds units, where they are many, or drops them."""
    return units > SMALL


def varying(moments: Moments) -> Tensor:
    """Units whose variance is more than rounding against their mean, (n,) bool."""
    variance = moments.covariance.diagonal(dim1=-2, dim2=-1)
    return variance > torch.finfo(variance.dtype).eps * moments.mean.square()
