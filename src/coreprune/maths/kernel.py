"""Kernel coresets: the best subset the greedy finds, with the optimal replacement, in closed form.

For a known law of the units this is least squares, and no random number is used. The target is
what the readers get, y = W h, all of them together. Keeping S costs

    tr W (G − X_S G̃_SS⁻¹ X_Sᵀ) Wᵀ,

so the selection sees the target W X, and the replacement is T* = X_S G̃_SS⁻¹.

Source: 01-maths §3.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator

from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.propagate import Law
from coreprune.maths.reweight import RIDGE, replacement
from coreprune.maths.select import Path, backward, forward

__all__ = ["kernel", "law_needed", "select"]

#: up to this number of units the backward greedy always runs: its n³ is nothing there
SMALL = 2048


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
    path = select(layer, units)
    return replacement(law, Coreset(path.kept, path.energy))


def select(layer: Layer, units: int) -> Path:
    """The greedy path to k units: backward where few go or the layer is small, forward where few stay.

    The covariance is scaled to correlations and gets the ridge of `coreprune.maths.reweight`, so that
    duplicate, dead and constant units do no harm: they explain nothing and go first.
    """
    law = law_needed(layer)
    G = law.moments.covariance
    Y = layer.outgoing.to(G.dtype)
    Y = Y @ (G if law.cross is None else law.cross)
    variance = G.diagonal()
    floor = torch.finfo(G.dtype).eps * law.moments.mean.square()
    live = (variance > floor).nonzero()[:, 0]
    if live.numel() <= units:  # all that matter stay; the rest is filled up by index
        dead = (variance <= floor).nonzero()[:, 0][: units - live.numel()]
        kept = torch.cat([live, dead]).sort().values
        return Path(kept, kept, torch.zeros(0, dtype=G.dtype, device=G.device))
    scale = variance[live].rsqrt()
    if live.numel() < variance.numel():
        G, Y = G[live][:, live], Y[:, live]
    R = G * scale[:, None]
    R *= scale
    R.diagonal().fill_(1 + RIDGE[G.dtype])
    Y = Y * scale
    few_go = units > live.numel() / 2
    path = backward(R, Y, units) if few_go or live.numel() <= SMALL else forward(R, Y, units)
    return replace(path, kept=live[path.kept], order=live[path.order])


def law_needed(layer: Layer) -> Law:
    """The layer's law, or InvalidInputError if none was given."""
    if layer.law is None:
        raise InvalidInputError("this method needs the moments of the units: give a prior")
    return layer.law
