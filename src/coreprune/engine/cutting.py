"""The cuts of sites: a function of their tensors and moments and of nothing else, so sites can be cut in any order and
anywhere.

Small sites of one width are worked on beside each other, as there calls take longer than what they compute. Each is cut
as it would be alone, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from coreprune.engine.local import Request, generator_for
from coreprune.engine.observe import Observed
from coreprune.errors import InvalidInputError
from coreprune.maths.beside import BESIDE, in_parts, stacked
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.lowrank import LowRank, about_zero
from coreprune.maths.outliers import brought, first_of, massive
from coreprune.maths.readers import choose, choose_beside, errors, kept_of, replace_for, spread
from coreprune.maths.reading import Reading, beside, weighed
from coreprune.maths.select import Path
from coreprune.maths.shrink import shrunk
from coreprune.model.site import Location, Maker, Reader, Site
from coreprune.plan import Cut

__all__ = ["Job", "cut_sites", "in_groups", "outgoing", "read_by"]

_DOUBLE = 256  # entries of a site up to which everything is computed in float64


class Job(NamedTuple):
    """A site that is to be cut.

    Attributes:
        site: the site. makers: what computes its units.
        seen: moments of the units as each reader gets them.
        keep: units to keep.
        ranked: a path through all numbers of units, from the same moments.
    """

    site: Site
    makers: tuple[Maker, ...]
    seen: tuple[Observed, ...]
    keep: int
    ranked: Path | None = None


def cut_sites(jobs: Sequence[Job], tensors: Mapping[str, Tensor], request: Request) -> list[Cut]:
    """The cuts of some sites, each decided on its own.

    Args:
        jobs: one site, or several of one width, which are worked on beside each other.
        tensors: at least those that sites and makers name.
        request: how.
    """
    each = _readings([(job.site, job.seen) for job in jobs], tensors)
    every = [reading for readings in each for reading in readings]
    energies = [brought(readings, job.site.units) for readings, job in zip(each, jobs, strict=True)]
    first = [massive(energy) for energy in energies]
    if _least(request):
        kept, path = _kept(jobs, [_chosen_by(own, job.seen) for job, own in zip(jobs, each, strict=True)], first)
        coresets = replace_for(every, [S for S, own in zip(kept, each, strict=True) for _ in own], path)
    else:
        coresets = [one for job, own in zip(jobs, each, strict=True) for one in _by_method(job, own, tensors, request)]
    left, rest, cuts = iter(errors(every, coresets)), iter(coresets), []
    for job, readings, energy, outliers in zip(jobs, each, energies, first, strict=True):
        own = tuple(islice(rest, len(readings)))
        evidence = _evidence(readings, list(islice(left, len(readings))))
        cuts.append(Cut(job.site, own, evidence | _outliers(energy, outliers, own[0].indices)))
    return cuts


def in_groups(sites: Sequence[Site], widths: Mapping[str, int], request: Request) -> Iterator[Sequence[Site]]:
    """Sites by themselves, and small ones of one width in groups that `cut_sites` can work on.

    Args:
        sites: all of them. widths: units to keep, by site. request: how.
    """
    alike: dict[object, list[Site]] = {}
    for i, site in enumerate(sites):
        small = site.units <= _DOUBLE and all(reader.block == 1 for reader in site.readers)
        kind = (site.units, widths[site.name]) if small and _least(request) else i
        alike.setdefault(kind, []).append(site)
    for group in alike.values():
        part, entries = list[Site](), 0
        for site in group:
            part.append(site)
            entries += len(site.readers) * site.units**2
            if entries >= BESIDE:
                yield part
                part, entries = [], 0
        if part:
            yield part


def read_by(
    site: Site, tensors: Mapping[str, Tensor], seen: Sequence[Observed], costs: Sequence[Observed]
) -> list[Reading]:
    """What the units of a site are chosen by.

    Args:
        site: the site. tensors: at least those that it names.
        seen: moments of the units as each reader gets them. costs: what errors there cost, if that was observed.
    """
    (readings,) = _readings([(site, seen)], tensors)
    return _chosen_by(readings, costs)


def _least(request: Request) -> bool:
    """Whether units are chosen by the least error of their readers, from which `coreprune.engine.turning` goes on."""
    return request.method.name == "kernel" or request.method.turns


def _by_method(job: Job, readings: list[Reading], tensors: Mapping[str, Tensor], request: Request) -> Sequence[Coreset]:
    """What another method chooses, for each reader."""
    site = job.site
    layer = _layer(site, job.makers, tensors, request.radius)
    chosen = request.method.select(layer, job.keep, generator_for(request.seed, site.name))
    if chosen.incoming is not None:
        raise InvalidInputError(
            f"method={request.method.name!r} merges units, which {site.name} ({site.kind}) does not allow: "
            "use method='kernel'"
        )
    if request.reweight:
        return replace_for(readings, chosen.indices)
    return [spread(chosen, reading.block) for reading in readings]


def _kept(
    jobs: Sequence[Job], by: Sequence[list[Reading]], first: Sequence[Tensor]
) -> tuple[list[Tensor], Path | None]:
    """The units that stay, massive ones before all others, and the path that led to them for one reader alone."""
    ranked = [job.ranked for job in jobs if job.ranked is not None]
    units, keep = jobs[0].site.units, jobs[0].keep
    paths = ranked or choose_beside(by, units, keep)
    kept, path = list[Tensor](), paths[0] if len(jobs) == len(by[0]) == 1 and not ranked else None
    for readings, own, most in zip(by, paths, first, strict=True):
        kept.append(kept_of(own, units, keep) if ranked else own.kept)
        if not bool(torch.isin(most[:keep], kept[-1]).all()):  # they carry so much that a path hardly ever leaves them
            whole = own if own.added or ranked else choose(readings, units)
            kept[-1], path = first_of(whole, units, keep, most), None
    return kept, path


def _outliers(energy: Tensor, first: Tensor, kept: Tensor) -> dict[str, Any]:
    """The massive units, the share of all that is brought to the readers that is theirs, and those that went."""
    if not len(first):
        return {}
    gone = first[~torch.isin(first, kept.cpu())]
    share = float(energy[first].sum() / energy.sum())
    return {"massive": {"units": first.tolist(), "share": share, "removed": gone.tolist()}}


def _evidence(readings: Sequence[Reading], left: Sequence[float]) -> dict[str, Any]:
    """The errors of the readers' outputs under what was observed, and their share of the spread."""
    totals = [reading.spread for reading in readings]
    share = [e / total if total > 0 else 0.0 for e, total in zip(left, totals, strict=True)]
    return {
        "relative_error": (sum(share) / max(len(share), 1)) ** 0.5,
        "mean_square": sum(left),
        "output_variance": sum(totals),
        "domain": "inputs as observed",
        "radius": None,
    }


def _readings(sites: Sequence[tuple[Site, Sequence[Observed]]], tensors: Mapping[str, Tensor]) -> list[list[Reading]]:
    """Each reader's weights and moments, by site."""
    result = []
    spreads = iter(_spreads([one for _, seen in sites for one in seen]))
    for site, seen in sites:
        for reader, observed in zip(site.readers, seen, strict=True):
            mean = observed.mean.to(torch.float64 if observed.mean.numel() <= _DOUBLE else torch.float32)
            constant, G, about = bool(reader.bias), next(spreads), None
            if not constant:
                about = mean, G
                G, mean = about_zero(G, mean), torch.zeros_like(mean)
            weight = outgoing(tensors[reader.weight.tensor], reader, site.units)
            result.append(Reading(weight, mean, G, reader.block, constant, about=about))
    every = iter(beside(result))
    return [[next(every) for _ in seen] for _, seen in sites]


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


def outgoing(weight: Tensor, reader: Reader, units: int) -> Tensor:
    """W with the units' entries last, (…, n·b), behind outputs, kernel and shared positions; a view if it can be."""
    at, size = reader.weight, units * reader.block
    rows = weight.detach().movedim(at.axis, -1)
    if at.order:
        rows = rows.index_select(-1, at.entries(units).flatten().to(rows.device))
    else:
        rows = rows.narrow(-1, at.start, units * at.span)
    result: Tensor = rows if rows.shape[-1] == size else rows.unflatten(-1, (size, -1)).transpose(-1, -2)
    return result


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
