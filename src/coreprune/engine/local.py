"""Decide the cut of every site on this machine, first to last."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from coreprune.maths.bounds import error_of_draws, total_sensitivity
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.methods import Method
from coreprune.maths.sampling import coreset_of_layer, draws_for_units, sensitivity
from coreprune.model.site import Site
from coreprune.plan import Cut
from coreprune.surgery.edits import edited

__all__ = ["Progress", "decide", "generator_for", "image_radius", "layer_at"]

#: called with (sites done, sites in all, name of the site at work)
Progress = Callable[[int, int, str], None]


def decide(
    sites: tuple[Site, ...],
    tensors: Mapping[str, Tensor],
    widths: Mapping[str, int],
    method: Method,
    *,
    radius: float,
    seed: int,
    draws: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> tuple[Cut, ...]:
    """One cut for each site named in `widths` (or `draws`), each seeing the network as the cuts before it left it.

    Args:
        sites: all sites, in forward order.
        tensors: the dense network's, by name; not changed.
        widths: units to keep, by site.
        method: how units are chosen.
        radius: β, norm of the network's largest input.
        seed: decides every random choice, for each site by (seed, site name).
        draws: draws with replacement, by site, in place of a width; only for the paper's sampling.
        progress: called before each site.
    """
    now = dict(tensors)
    cuts: list[Cut] = []
    for i, site in enumerate(sites):
        if progress:
            progress(i, len(sites), site.name)
        layer = layer_at(site, now, radius)
        radius = image_radius(layer)
        m = (draws or {}).get(site.name)
        if m is None and widths.get(site.name, site.units) == site.units:
            continue
        generator = generator_for(seed, site.name)
        if m is not None:
            coreset = coreset_of_layer(layer, draws=m, generator=generator)
        else:
            coreset = method.select(layer, widths[site.name], generator)
        cut = Cut(site, tuple(coreset for _ in site.readers), _evidence(layer, coreset, m))
        cuts.append(cut)
        now |= edited(cut.edits(now.__getitem__), now)
    if progress:
        progress(len(sites), len(sites), "")
    return tuple(cuts)


def generator_for(seed: int, name: str) -> torch.Generator:
    """The generator of one site: the same for the same (seed, name), whatever the order or number of workers."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def layer_at(site: Site, tensors: Mapping[str, Tensor], radius: float) -> Layer:
    """The site as a mathematical layer, in float64: P, b, and all readers stacked in W."""
    incoming = tensors[site.incoming.tensor].detach().double().cpu()
    bias = incoming.new_zeros(site.units) if site.bias is None else tensors[site.bias.tensor].detach().double().cpu()
    outgoing = torch.cat([tensors[r.weight.tensor].detach().double().cpu() for r in site.readers])
    return Layer(incoming, bias, outgoing, site.phi, radius)


def image_radius(layer: Layer) -> float:
    """A bound on ‖φ(P x + b)‖ over the ball: the radius of the next layer's inputs.

    The smaller of the norm of all units' largest values, and ‖φ(b)‖ + L‖P‖₂β, where the spectral
    norm is bounded by the Schatten norm ‖P‖₂ ≤ ‖(P Pᵀ)²‖_F^{1/4}.
    """
    each = float(layer.activation.supremum(*layer.intervals()).norm())
    if math.isinf(layer.activation.lipschitz):
        return each
    P = layer.incoming
    gram = P @ P.T if P.shape[0] <= P.shape[1] else P.T @ P
    spectral = math.sqrt(math.sqrt(float((gram @ gram).norm())))
    together = float(layer.activation(layer.bias).norm()) + layer.activation.lipschitz * spectral * layer.radius
    return min(each, together)


def _evidence(layer: Layer, coreset: Coreset, draws: int | None, delta: float = 0.05) -> dict[str, Any]:
    """What is known of the cut beforehand: the domain, and what the theorem promises for draws of this size."""
    known: dict[str, Any] = {"domain": f"ball of radius {layer.radius:.4g}", "radius": layer.radius}
    if math.isinf(layer.activation.lipschitz):
        return known
    s = sensitivity(layer)
    if not bool(s.any()):
        return known
    m = draws if draws is not None else draws_for_units(s, coreset.units)
    total = total_sensitivity(layer, s / s.sum())
    return known | {
        "theorem_draws": m,
        "theorem_delta": delta,
        "theorem_error": error_of_draws(total, m, delta, layer.outgoing.shape[0]),
        "total_sensitivity": total,
    }
