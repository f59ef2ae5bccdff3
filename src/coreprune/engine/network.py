"""Decide the cuts of any network: each site on its own, from what its readers are seen to get.

Moments are measured where each reader reads, in the dense network, on inputs that are drawn (white noise,
random tokens) or given. What follows from them, `coreprune.engine.cutting` knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from coreprune.engine.cutting import Job, cut_sites, in_groups, outgoing, read_by
from coreprune.engine.inputs import forced, inputs
from coreprune.engine.local import Request
from coreprune.engine.norms import normed
from coreprune.engine.observe import Observed, moments
from coreprune.engine.precision import reduced
from coreprune.engine.probes import by_shape, token_tables
from coreprune.engine.sensitivity import sensitivities
from coreprune.errors import InvalidInputError
from coreprune.maths.readers import (
    choose,
    pooled_energy,
)
from coreprune.maths.reading import squares
from coreprune.maths.select import Path
from coreprune.model.capture import Arguments, first_line
from coreprune.model.site import Inspection, Reader, Site, Tap
from coreprune.plan import Cut
from coreprune.priors.gaussian import Gaussian

__all__ = ["Survey", "decide_network", "spaced", "surveyed"]

#: tokens, or numbers, that gradients are taken of
SENSED = 8192


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
    cuts: dict[str, Cut] = {}
    for group in in_groups(sites, widths, request):
        for i, site in enumerate(group, len(cuts)):
            if request.progress:
                request.progress(i, len(sites), site.name)
        jobs = [Job(s, found.makers[s.name], seen.pop(s.name), widths[s.name], paths.get(s.name)) for s in group]
        cuts |= {cut.site.name: cut for cut in cut_sites(jobs, tensors, request)}
    if request.progress:
        request.progress(len(sites), len(sites), "")
    return tuple(cuts[site.name] for site in sites)


def surveyed(found: Inspection, tensors: Mapping[str, Tensor], request: Request) -> Survey:
    """Observe every site and rank its units."""
    seen = _observe(found, found.sites, tensors, request)
    paths, curves, above = {}, {}, {}
    for i, site in enumerate(found.sites):
        if request.progress:
            request.progress(i, len(found.sites), site.name)
        readings = read_by(site, tensors, seen[site.name], seen[site.name])
        path = choose(readings, site.units)
        paths[site.name] = replace(path, factor=None)  # as large as a covariance
        usual = tuple(one.typical for one in seen[site.name] if one.typical is not None)
        if usual:
            readings = read_by(site, tensors, usual, seen[site.name])
            path = choose(readings, site.units)
            seen[site.name] = tuple(replace(one, typical=None) for one in seen[site.name])
        total = pooled_energy(readings)
        curves[site.name] = (path.curve(site.units, total) / (1.0 if readings[0].cost else total)).double()
        above[site.name] = sum(one.energy / max(one.spread, 1e-30) for one in readings) / len(readings)
    return Survey(seen, paths, curves, above)


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


def spaced(batches: Sequence[Arguments], inputs: int) -> list[Arguments]:
    """Batches evenly from all of them, with about so many numbers or tokens."""
    each = max(sum(leaf.numel() for leaf in pytree.tree_leaves(batches[0]) if isinstance(leaf, Tensor)), 1)
    wanted = min(max(1, inputs // each), len(batches))
    return [batches[i] for i in torch.linspace(0, len(batches) - 1, wanted).long().tolist()]


def _energies(tensors: Mapping[str, Tensor], reader: Reader, site: Site) -> Tensor:
    """‖W_:j‖² of every entry of a reader, (n·b,)."""
    return squares(outgoing(tensors[reader.weight.tensor], reader, site.units))
