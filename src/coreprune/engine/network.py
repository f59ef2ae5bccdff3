"""Decide the cuts of any network: each site on its own, from what its readers are seen to get.

Moments are measured where each reader reads, in the dense network, on inputs that are drawn (white noise,
random tokens) or given. `cut_site` is a function of one site's tensors and moments and of nothing else, so sites
can be decided in any order and anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from coreprune.engine.inputs import forced, inputs
from coreprune.engine.local import Request, generator_for
from coreprune.engine.norms import normed
from coreprune.engine.observe import Observed, moments
from coreprune.engine.precision import reduced
from coreprune.engine.probes import by_shape, token_tables
from coreprune.engine.sensitivity import sensitivities
from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.lowrank import LowRank, about_zero
from coreprune.maths.outliers import brought, first_of, massive
from coreprune.maths.readers import (
    choose,
    errors,
    kept_of,
    pooled_energy,
    replace_for,
    spread,
)
from coreprune.maths.reading import Reading, beside, in_parts, squares, stacked, weighed
from coreprune.maths.select import Path
from coreprune.maths.shrink import shrunk
from coreprune.model.capture import Arguments, first_line
from coreprune.model.site import Inspection, Location, Maker, Reader, Site, Tap
from coreprune.plan import Cut
from coreprune.priors.gaussian import Gaussian

__all__ = ["Survey", "cut_site", "decide_network", "spaced", "surveyed"]

#: tokens, or numbers, that gradients are taken of
SENSED = 8192

_DOUBLE = 256  # entries of a site up to which everything is computed in float64


@dataclass(frozen=True)
class Survey:
    """What one observation of all sites says, before it is known how much is cut.

    Attributes:
        seen: moments of the units as each reader gets them, by site.
        paths: the greedy path of every site through all numbers of units.
        curves: err(k), k = 0 … n, of every site on its own: the share of its readers' energy that k units leave; where
            costs were observed, what that costs the whole network.
        above: how many times their spread the energy of a site's readers is, 1 where all have a place for a constant.
    """

    seen: Mapping[str, tuple[Observed, ...]]
    paths: Mapping[str, Path]
    curves: Mapping[str, Tensor]
    above: Mapping[str, float] = field(default_factory=dict)


def decide_network(
    found: Inspection,
    tensors: Mapping[str, Tensor],
    widths: Mapping[str, int],
    request: Request,
    survey: Survey | None = None,
) -> tuple[Cut, ...]:
    """One cut for each site named in `widths`.

    Args:
        found: sites with their captured graphs.
        tensors: parameters and buffers by name; not changed.
        widths: units to keep, by site.
        request: how.
        survey: of the same network under the same request, so that nothing is observed twice.
    """
    sites = [site for site in found.sites if widths.get(site.name, site.units) < site.units]
    seen = dict(_observe(found, sites, tensors, request) if survey is None else survey.seen)
    paths = {} if survey is None else survey.paths
    cuts = []
    for i, site in enumerate(sites):
        if request.progress:
            request.progress(i, len(sites), site.name)
        makers, own = found.makers[site.name], paths.get(site.name)
        cuts.append(cut_site(site, makers, tensors, seen.pop(site.name), widths[site.name], request, own))
    if request.progress:
        request.progress(len(sites), len(sites), "")
    return tuple(cuts)


def surveyed(found: Inspection, tensors: Mapping[str, Tensor], request: Request) -> Survey:
    """Observe every site and rank its units."""
    seen = _observe(found, found.sites, tensors, request)
    paths, curves, above = {}, {}, {}
    for i, site in enumerate(found.sites):
        if request.progress:
            request.progress(i, len(found.sites), site.name)
        readings = _chosen_by(_readings(site, tensors, seen[site.name]), seen[site.name])
        path = choose(readings, site.units)
        paths[site.name] = replace(path, factor=None)  # as large as a covariance
        usual = tuple(one.typical for one in seen[site.name] if one.typical is not None)
        if usual:
            readings = _chosen_by(_readings(site, tensors, usual), seen[site.name])
            path = choose(readings, site.units)
            seen[site.name] = tuple(replace(one, typical=None) for one in seen[site.name])
        total = pooled_energy(readings)
        curves[site.name] = (path.curve(site.units, total) / (1.0 if readings[0].cost else total)).double()
        above[site.name] = sum(one.energy / max(one.spread, 1e-30) for one in readings) / len(readings)
    return Survey(seen, paths, curves, above)


def cut_site(
    site: Site,
    makers: tuple[Maker, ...],
    tensors: Mapping[str, Tensor],
    seen: tuple[Observed, ...],
    keep: int,
    request: Request,
    ranked: Path | None = None,
) -> Cut:
    """The cut of one site.

    Args:
        site: the site. makers: what computes its units.
        tensors: at least those that site and makers name.
        seen: moments of the units as each reader gets them.
        keep: units to keep.
        request: how.
        ranked: a path through all numbers of units, from the same moments.
    """
    readings = _readings(site, tensors, seen)
    energy = brought(readings, site.units)
    first = massive(energy)
    if request.method.name == "kernel" or request.method.turns:  # from there `coreprune.engine.turning` goes on
        kept, path = _kept(_chosen_by(readings, seen), site.units, keep, ranked, first)
        coresets = tuple(replace_for(readings, kept, path))
    else:
        layer = _layer(site, makers, tensors, request.radius)
        chosen = request.method.select(layer, keep, generator_for(request.seed, site.name))
        if chosen.incoming is not None:
            raise InvalidInputError(
                f"method={request.method.name!r} merges units, which {site.name} ({site.kind}) does not allow: "
                "use method='kernel'"
            )
        if request.reweight:
            coresets = tuple(replace_for(readings, chosen.indices))
        else:
            coresets = tuple(spread(chosen, reading.block) for reading in readings)
    return Cut(site, coresets, _evidence(readings, coresets) | _outliers(energy, first, coresets[0].indices))


def _kept(by: list[Reading], units: int, keep: int, ranked: Path | None, first: Tensor) -> tuple[Tensor, Path | None]:
    """The units that stay, massive ones before all others, and the path that led to them for one reader alone."""
    path = choose(by, units, keep) if ranked is None else ranked
    kept = path.kept if ranked is None else kept_of(path, units, keep)
    if bool(torch.isin(first[:keep], kept).all()):  # they carry so much that a path hardly ever leaves them out
        return kept, path if len(by) == 1 and ranked is None else None
    whole = path if path.added or ranked is not None else choose(by, units)
    return first_of(whole, units, keep, first), None


def _outliers(energy: Tensor, first: Tensor, kept: Tensor) -> dict[str, Any]:
    """The massive units, the share of all that is brought to the readers that is theirs, and those that went."""
    if not len(first):
        return {}
    gone = first[~torch.isin(first, kept.cpu())]
    share = float(energy[first].sum() / energy.sum())
    return {"massive": {"units": first.tolist(), "share": share, "removed": gone.tolist()}}


def _evidence(readings: list[Reading], coresets: tuple[Coreset, ...]) -> dict[str, Any]:
    """The error of the readers' outputs under what was observed, as a share of their spread."""
    left, totals = errors(readings, coresets), [reading.spread for reading in readings]
    share = [e / total if total > 0 else 0.0 for e, total in zip(left, totals, strict=True)]
    return {
        "relative_error": (sum(share) / max(len(share), 1)) ** 0.5,
        "mean_square": sum(left),
        "output_variance": sum(totals),
        "domain": "inputs as observed",
        "radius": None,
    }


def _observe(
    found: Inspection, sites: Any, tensors: Mapping[str, Tensor], request: Request
) -> dict[str, tuple[Observed, ...]]:
    """Moments at every reader of the sites, in one pass."""
    taps = [taps for site in sites for taps in found.taps[site.name]]
    energies = (
        [_energies(tensors, reader, site) for site in sites for reader in site.readers] if request.typical else None
    )
    batches = list(inputs(found.graphs[0], request.prior, request.seed))
    try:
        with request.clock.stage("observing"):
            found_moments = _seen(found, tensors, taps, batches, request, energies)
    except (RuntimeError, IndexError, TypeError) as error:
        if isinstance(request.prior, Gaussian):
            raise
        raise InvalidInputError(
            f"the data do not fit the network as it was captured ({first_line(error)}): give batches in the shape "
            "of example_inputs"
        ) from error
    seen = iter(found_moments)
    return {site.name: tuple(next(seen) for _ in found.taps[site.name]) for site in sites}


def _seen(
    found: Inspection,
    tensors: Mapping[str, Tensor],
    taps: Sequence[tuple[Tap, ...]],
    batches: Sequence[Arguments],
    request: Request,
    energies: Sequence[Tensor] | None,
) -> list[Observed]:
    """Moments of every reader, with what errors cost the network where that is asked for."""
    first, own = found.graphs[0], forced(request.prior)
    text = bool(token_tables(first))
    held = tensors
    if not first.path and (text or (isinstance(request.prior, Gaussian) and by_shape(first) and not normed(first))):
        held = reduced(first, tensors, images=not text)
    result = moments(
        found.graphs, held, taps, batches, batch_statistics=own, norms=request.norms, every=text, energies=energies
    )
    if request.costs and not first.path:
        few = spaced(batches, SENSED)
        costs = sensitivities(first, held, taps, few, seed=request.seed, batch_statistics=own)
        result = [replace(one, cost=M) for one, M in zip(result, costs, strict=True)]
    return result


def _readings(site: Site, tensors: Mapping[str, Tensor], seen: tuple[Observed, ...]) -> list[Reading]:
    """Each reader's weights and moments."""
    result = []
    for reader, observed, own in zip(site.readers, seen, _spreads(seen), strict=True):
        mean = observed.mean.to(torch.float64 if observed.mean.numel() <= _DOUBLE else torch.float32)
        constant, G, about = bool(reader.bias), own, None
        if not constant:
            about = mean, own
            G, mean = about_zero(own, mean), torch.zeros_like(mean)
        weight = _outgoing(tensors[reader.weight.tensor], reader, site.units)
        result.append(Reading(weight, mean, G, reader.block, constant, about=about))
    return beside(result)


def _spreads(seen: Sequence[Observed]) -> list[Tensor | LowRank]:
    """The covariances as they are used: shrunk, those of small sites of one size together."""
    found = [one.covariance for one in seen]
    dense = [G for G in found if isinstance(G, Tensor) and len(G) <= _DOUBLE]
    if len(dense) == len(found) and len({G.shape for G in dense}) == 1:
        size = len(dense[0])
        parts = zip(in_parts(dense, size), in_parts([one.count for one in seen], size), strict=True)
        together = (cast("Tensor", shrunk(stacked(some).double(), torch.tensor(many))) for some, many in parts)
        return [G for part in together for G in part]
    kinds = [torch.float64 if one.mean.numel() <= _DOUBLE else torch.float32 for one in seen]
    return [shrunk(one.covariance.to(kind), one.count) for one, kind in zip(seen, kinds, strict=True)]


def _chosen_by(readings: list[Reading], seen: Sequence[Observed]) -> list[Reading]:
    """What to choose the units by: what errors cost the whole network where that was observed of every reader."""
    costs = [one.cost for one in seen]
    if any(M is None or not float(M.trace()) > 0 for M in costs):
        return readings
    return [weighed(reading, M) for reading, M in zip(readings, costs, strict=True) if M is not None]


def spaced(batches: Sequence[Arguments], inputs: int) -> list[Arguments]:
    """Batches evenly from all of them, with about so many numbers or tokens."""
    each = max(sum(leaf.numel() for leaf in pytree.tree_leaves(batches[0]) if isinstance(leaf, Tensor)), 1)
    wanted = min(max(1, inputs // each), len(batches))
    return [batches[i] for i in torch.linspace(0, len(batches) - 1, wanted).long().tolist()]


def _outgoing(weight: Tensor, reader: Reader, units: int) -> Tensor:
    """W with the units' entries last, (…, n·b), behind outputs, kernel and shared positions; a view if it can be."""
    at, size = reader.weight, units * reader.block
    rows = weight.detach().movedim(at.axis, -1)
    if at.order:
        rows = rows.index_select(-1, at.entries(units).flatten().to(rows.device))
    else:
        rows = rows.narrow(-1, at.start, units * at.span)
    result: Tensor = rows if rows.shape[-1] == size else rows.unflatten(-1, (size, -1)).transpose(-1, -2)
    return result


def _energies(tensors: Mapping[str, Tensor], reader: Reader, site: Site) -> Tensor:
    """‖W_:j‖² of every entry of a reader, (n·b,)."""
    return squares(_outgoing(tensors[reader.weight.tensor], reader, site.units))


def _layer(site: Site, makers: tuple[Maker, ...], tensors: Mapping[str, Tensor], radius: float) -> Layer:
    """The units as points: all rows that make them, BatchNorm folded in, and what is read of them at most."""
    rows, biases = [], []
    for maker in makers:
        P, b = _rows(maker, site.units, tensors)
        rows.append(P)
        biases.append(b)
    if not rows:
        at = site.incoming
        rows.append(_of_units(tensors[at.tensor], at, site.units))
        biases.append(torch.zeros(site.units, dtype=torch.float64))
    most = torch.zeros(site.units, dtype=torch.float64)
    for reader in site.readers:
        W = _of_units(tensors[reader.weight.tensor], reader.weight, site.units)
        most = torch.maximum(most, W.abs().amax(1))
    bias = torch.stack(biases).square().sum(0).sqrt()
    return Layer(torch.cat(rows, 1), bias, most[None], site.phi, radius)


def _rows(maker: Maker, units: int, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    P = _of_units(tensors[maker.weight.tensor], maker.weight, units)
    flat = maker.weight.entries(units)
    b = torch.zeros(units, dtype=torch.float64)
    if maker.bias and maker.bias in tensors:
        b = tensors[maker.bias].detach().double().cpu()[flat].norm(dim=1) if flat.shape[1] > 1 else (
            tensors[maker.bias].detach().double().cpu()[flat[:, 0]])  # fmt: skip
    if maker.norm is not None and flat.shape[1] == 1:
        gamma, beta, mean, variance = (tensors[name].detach().double().cpu()[flat[:, 0]] for name in maker.norm[:4])
        scale = gamma * (variance + maker.norm[4]).rsqrt()
        P, b = P * scale[:, None], beta + (b - mean) * scale
    return P, b


def _of_units(tensor: Tensor, at: Location, units: int) -> Tensor:
    """All entries that each unit owns at a location, (n, …) flattened, float64."""
    rows = tensor.detach().cpu().movedim(at.axis, 0).index_select(0, at.entries(units).flatten())
    return rows.reshape(units, -1).double()
