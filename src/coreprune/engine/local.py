"""Decide the cut of every site on this machine, first to last."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.clock import Clock
from coreprune.engine.norms import Norms
from coreprune.errors import InvalidInputError
from coreprune.maths.bounds import error_of_draws, total_sensitivity
from coreprune.maths.certificate import chebyshev, relative_error
from coreprune.maths.kernel import completed, select
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.methods import Method
from coreprune.maths.propagate import Law, difference_energy
from coreprune.maths.reweight import replacement, residual_energy
from coreprune.maths.sampling import coreset_of_layer, draws_for_units, sensitivity
from coreprune.model.site import Inspection, Site
from coreprune.plan import Cut
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian, Propagation
from coreprune.surgery.edits import edited

__all__ = ["Progress", "Request", "curves", "decide", "generator_for", "image_radius", "layer_at", "readers_at"]

#: called with (sites done, sites in all, name of the site at work)
Progress = Callable[[int, int, str], None]

DELTA = 0.05  # probability with which the printed statements may fail
DOUBLE = 2**24  # entries of P up to which everything is computed in float64


@dataclass(frozen=True)
class Request:
    """How to decide.

    Attributes:
        method: how units are chosen.
        prior: where the law of the units comes from.
        radius: β, norm of the network's largest input.
        seed: decides every random choice, for each site by (seed, site name).
        reweight: replace the method's weights by the least-squares ones on the units it chose.
        draws: draws with replacement, by site, in place of a width; only for the paper's sampling.
        progress: called before each site.
        costs: whether units are chosen by what they cost the whole network, and not their readers alone.
        typical: whether error curves are of clipped samples, see `coreprune.engine.observe.clipped`.
        norms: takes in what the dense network's BatchNorms get when it is observed.
        clock: takes the time of observing.
    """

    method: Method
    prior: Gaussian | Data
    radius: float
    seed: int
    reweight: bool = False
    draws: Mapping[str, int] = field(default_factory=dict)
    progress: Progress | None = None
    costs: bool = False
    typical: bool = False
    norms: Norms | None = None
    clock: Clock = field(default_factory=Clock, compare=False)


def decide(
    model: nn.Module, found: Inspection, tensors: Mapping[str, Tensor], widths: Mapping[str, int], request: Request
) -> tuple[Cut, ...]:
    """One cut for each site named in `widths` (or `request.draws`), each seeing the network as the cuts before left it.

    Args:
        model: the network, for priors that run it; not changed.
        found: its sites.
        tensors: its tensors by name; not changed.
        widths: units to keep, by site.
        request: how.
    """
    now = dict(tensors)
    measure = _measurer(request.prior, model, found, tensors)
    cuts: list[Cut] = []
    walk, radius = _start(request.prior, found.features, request.radius), request.radius
    names, assumed = {site.name for site in found.sites}, False
    for i, site in enumerate(found.chain):
        if site is None:
            walk, radius = _afresh(request.prior, found, tensors, i)
            assumed = True
            continue
        if request.progress:
            request.progress(i, len(found.chain), site.name)
        dense = layer_at(site, tensors, radius)
        layer = layer_at(site, now, radius) if cuts else dense
        after, beyond = layer, None
        if site.name in names and (site.name in request.draws or widths.get(site.name, site.units) < site.units):
            law = None
            if walk is None:
                law = measure(site, now)
            elif request.method.law or request.reweight:
                law = walk.law(dense, layer)
            coreset = _coreset(replace(layer, law=law), site, widths, request)
            cut = Cut(site, tuple(coreset for _ in site.readers))
            now |= edited(cut.edits(now), now)
            after = layer_at(site, now, radius)
            known: dict[str, Any] = {"domain": "unknown: what comes before is not followed", "radius": None}
            if not assumed:
                known = _theorem(layer, coreset, request.draws.get(site.name), request.method.name)
            if walk:
                beyond = walk.beyond(dense, after)
                outputs = beyond.inputs.linear(*readers_at(site, tensors), *readers_at(site, now))
                known |= {"truncation": beyond.inputs.truncation}
                errors = difference_energy(outputs), outputs.overall()[1].diagonal()[: outputs.split]
            else:
                assert law is not None
                errors = residual_energy(dense.outgoing, law, coreset)
            known |= _mean_square(*errors)
            cuts.append(replace(cut, evidence=known))
        walk = beyond or (walk.beyond(dense, after) if walk else None)
        radius = max(image_radius(layer), image_radius(after))
    if request.progress:
        request.progress(len(found.chain), len(found.chain), "")
    return tuple(cuts)


def curves(model: nn.Module, found: Inspection, tensors: Mapping[str, Tensor], request: Request) -> dict[str, Tensor]:
    """err(k), k = 0 … n, of every site on its own: the share of its readers' variance that k units cannot explain."""
    walk, radius = _start(request.prior, found.features, request.radius), request.radius
    measure = _measurer(request.prior, model, found, tensors)
    result: dict[str, Tensor] = {}
    names = {site.name for site in found.sites}
    for i, site in enumerate(found.chain):
        if site is None:
            walk, radius = _afresh(request.prior, found, tensors, i)
            continue
        layer = layer_at(site, tensors, radius)
        if site.name in names:
            law = walk.law(layer, layer) if walk else measure(site, tensors)
            own = law.moments.covariance if law.own is None else law.own
            total = float(((layer.outgoing @ own) * layer.outgoing).sum())
            if not total > 0:
                raise InvalidInputError(
                    f"what is read from {site.name} does not vary under the prior or data given, so no budget can be "
                    "shared out by error: give a prior with a spread, more data, or units="
                )
            path = completed(select(replace(layer, law=law), 1), law.moments, total)
            result[site.name] = path.curve(site.units, total) / total
        walk = walk.beyond(layer, layer) if walk else None
        radius = image_radius(layer)
    return result


def _start(prior: Gaussian | Data, features: int, radius: float) -> Propagation | None:
    return Propagation(prior.inputs(features, radius)) if isinstance(prior, Gaussian) else None


def _afresh(
    prior: Gaussian | Data, found: Inspection, tensors: Mapping[str, Tensor], i: int
) -> tuple[Propagation | None, float]:
    """Behind something unknown, what the next layer reads is taken for a standard Gaussian, like a normalised input."""
    later = next((site for site in found.chain[i + 1 :] if site is not None), None)
    features = 1 if later is None else tensors[later.incoming.tensor].shape[1]
    return _start(Gaussian() if isinstance(prior, Gaussian) else prior, features, math.sqrt(features)), math.sqrt(
        features
    )


def _measurer(
    prior: Gaussian | Data, model: nn.Module, found: Inspection, dense: Mapping[str, Tensor]
) -> Callable[[Site, Mapping[str, Tensor]], Law]:
    """Gives the measured law of a site's units: with its own pass over the data, or out of one pass for all."""
    laws: dict[str, Law] = {}

    def measure(site: Site, now: Mapping[str, Tensor]) -> Law:
        assert isinstance(prior, Data)
        if prior.sequential:
            return prior.law(model, site, dense, now)
        if not laws:
            laws.update(prior.laws(model, found.sites, dense))
        return laws[site.name]

    return measure


def _coreset(layer: Layer, site: Site, widths: Mapping[str, int], request: Request) -> Coreset:
    generator = generator_for(request.seed, site.name)
    if site.name in request.draws:
        coreset = coreset_of_layer(layer, draws=request.draws[site.name], generator=generator)
    else:
        coreset = request.method.select(layer, widths[site.name], generator)
    if not request.reweight or request.method.law:
        return coreset
    law = layer.law
    assert law is not None
    return replacement(law, coreset)


def generator_for(seed: int, name: str) -> torch.Generator:
    """The generator of one site: the same for the same (seed, name), whatever the order or number of workers."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def layer_at(site: Site, tensors: Mapping[str, Tensor], radius: float) -> Layer:
    """The site as a mathematical layer: P, b, and all readers stacked in W; float64 unless it is very large."""
    incoming = tensors[site.incoming.tensor].detach().cpu()
    kind = torch.float64 if incoming.numel() <= DOUBLE else torch.float32
    bias = tensors[site.bias.tensor].detach().cpu() if site.bias.tensor in tensors else torch.zeros(len(incoming))
    return Layer(incoming.to(kind), bias.to(kind), readers_at(site, tensors)[0].to(kind), site.phi, radius)


def readers_at(site: Site, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """W (p, n) and c (p,) of all readers, stacked, in float64."""
    weights = [tensors[reader.weight.tensor].detach().cpu().double() for reader in site.readers]
    constants = [
        tensors[reader.bias].detach().cpu().double() if reader.bias in tensors else torch.zeros(len(W)).double()
        for reader, W in zip(site.readers, weights, strict=True)
    ]
    return torch.cat(weights), torch.cat(constants)


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


def _mean_square(difference: Tensor, variance: Tensor) -> dict[str, Any]:
    """The error of the readers' outputs under the prior, and Chebyshev's statement about the worst of them."""
    worst = float(difference.max())
    return {
        "relative_error": relative_error(difference, variance),
        "mean_square": float(difference.sum()),
        "output_variance": float(variance.sum()),
        "chebyshev_delta": DELTA,
        "chebyshev_error": chebyshev(worst, DELTA),
    }


def _theorem(layer: Layer, coreset: Coreset, draws: int | None, method: str) -> dict[str, Any]:
    """The domain, and for the paper's sampling what the theorem promises for draws of this size."""
    known: dict[str, Any] = {"domain": f"ball of radius {layer.radius:.4g}", "radius": layer.radius}
    s = sensitivity(layer)
    if method != "sampling" or math.isinf(layer.activation.lipschitz) or not bool(s.any()):
        return known
    m = draws if draws is not None else draws_for_units(s, coreset.units)
    total = total_sensitivity(layer, s / s.sum())
    return known | {
        "theorem_draws": m,
        "theorem_delta": DELTA,
        "theorem_error": error_of_draws(total, m, DELTA, layer.outgoing.shape[0]),
        "total_sensitivity": total,
    }
