"""From a network to the tensors that baselines see, and from their choices back, by coreprune's own surgery.

A choice that keeps units as they are becomes a `coreprune.Plan` and goes through `coreprune.apply` with its float64
comparison. A choice that merges units before the activation, or that puts a constant behind a convolution that pads
(where it is inexact at the border), is carried out by the same list of edits but without that comparison, as the cut
network is then not what `apply` could compare it with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import coreprune as cp
from baselines.units import Choice, Norm, Seen, Units
from coreprune.engine.local import generator_for
from coreprune.engine.observe import moments
from coreprune.engine.probes import fitting
from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Coreset
from coreprune.model.site import Inspection, Location, Maker, Reader, Site
from coreprune.model.tensors import tensors_of
from coreprune.plan import Cut, Plan
from coreprune.surgery.apply import install, size, spared_copy
from coreprune.surgery.attributes import follow
from coreprune.surgery.edits import Add, Edit, Mix, Take, edited

__all__ = ["Carried", "carried_out", "chosen", "see", "units_of"]

Choose = Callable[[Units, int, torch.Generator], Choice]


@dataclass(frozen=True)
class Carried:
    """A cut network.

    Attributes:
        small: the network with its plan.
        compared: whether it passed coreprune's comparison with the dense network.
    """

    small: cp.Pruned
    compared: bool


# ---------------------------------------------------------------------------------------------- what baselines see


def see(
    model: nn.Module, found: Inspection, sites: Iterable[Site], loader: list[Tensor]
) -> dict[str, tuple[Seen, ...]]:
    """Moments of the units as each reader gets them, in the dense network, on the inputs given.

    Args:
        model: the network. found: its inspection. sites: those in question.
        loader: batches of inputs.
    """
    sites, tensors = tuple(sites), tensors_of(model)
    if not found.graphs:
        laws = cp.Data(loader).laws(model, sites, tensors)
        count = sum(x.flatten(0, -2).shape[0] for x in loader)
        return {
            site.name: (Seen(laws[site.name].moments.mean, laws[site.name].moments.covariance, count),)
            for site in sites
        }
    calls = [part for call in cp.Data(loader).calls() for part in fitting(found.graphs[0], call)]
    every = [taps for site in sites for taps in found.taps[site.name]]
    seen = iter(moments(found.graphs, tensors, every, calls))
    result = {}
    for site in sites:
        observed = [next(seen) for _ in site.readers]
        result[site.name] = tuple(Seen(one.mean, _dense(one.covariance), one.count) for one in observed)
    return result


def _dense(covariance: Any) -> Tensor:
    """A covariance written out, where the observer holds it in factors."""
    written: Tensor = covariance if isinstance(covariance, Tensor) else covariance.dense()
    return written.double()


def units_of(site: Site, found: Inspection, tensors: Mapping[str, Tensor], seen: tuple[Seen, ...] = ()) -> Units:
    """The tensors of one site as baselines take them.

    Args:
        site: the site, one number for each unit (no heads).
        found: tells what computes the units. tensors: of the network.
        seen: moments at the readers.

    Raises:
        InvalidInputError: its units are blocks of several numbers, or several writers have a BatchNorm of their own.
    """
    makers = makers_of(site, found)
    if any(reader.block != 1 for reader in site.readers) or any(maker.weight.span != 1 for maker in makers):
        raise InvalidInputError(
            f"{site.name} ({site.kind}) has units of several numbers, of which baselines know nothing: leave it whole"
        )
    norms = [maker.norm for maker in makers if maker.norm is not None]
    if norms and len(makers) > 1:
        raise InvalidInputError(
            f"{site.name} ({site.kind}) is written by {len(makers)} maps with BatchNorms of their own, which no baseline "
            "speaks of: leave it whole"
        )
    rows = torch.cat([_of_units(tensors[maker.weight.tensor], maker.weight, site.units) for maker in makers], 1)
    bias = torch.stack([_vector(maker.bias, maker.weight, site.units, tensors) for maker in makers], 1)
    readers = tuple(_columns(tensors[reader.weight.tensor], reader, site.units) for reader in site.readers)
    norm = None
    if norms:
        numbers = [_vector(name, makers[0].weight, site.units, tensors) for name in norms[0][:4]]
        norm = Norm(numbers[0], numbers[1], numbers[2], numbers[3], norms[0][4])
    return Units(rows, bias, readers, norm, seen, gated=site.kind == "gated" and len(makers) == 2)


def makers_of(site: Site, found: Inspection) -> tuple[Maker, ...]:
    """What computes the units; of a stack's site, its own Linear layer."""
    return found.makers.get(site.name) or (Maker(site.incoming, site.bias.tensor),)


def _of_units(tensor: Tensor, at: Location, units: int) -> Tensor:
    """All entries of each unit, (n, …) flattened, float64."""
    rows = tensor.detach().cpu().movedim(at.axis, 0).index_select(0, at.entries(units).flatten())
    return rows.reshape(units, -1).double()


def _columns(tensor: Tensor, reader: Reader, units: int) -> Tensor:
    """W, (outputs · positions, n)."""
    return _of_units(tensor, reader.weight, units).T.contiguous()


def _vector(name: str, at: Location, units: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """The units' entries of a bias or of a BatchNorm; zeros where there is none."""
    if name not in tensors:
        return torch.zeros(units, dtype=torch.float64)
    return tensors[name].detach().cpu().double()[at.entries(units)[:, 0]]


# ---------------------------------------------------------------------------------------------- what becomes of them


def chosen(
    choose: Choose,
    found: Inspection,
    tensors: Mapping[str, Tensor],
    widths: Mapping[str, int],
    *,
    seen: Mapping[str, tuple[Seen, ...]] | None = None,
    seed: int = 0,
) -> dict[str, Choice]:
    """A baseline's choice for every site that gets narrower.

    Args:
        choose: the baseline. found: the network's sites. tensors: of the network.
        widths: units to keep, by site. seen: moments, by site. seed: with the site's name, of every draw.
    """
    return {
        site.name: choose(
            units_of(site, found, tensors, (seen or {}).get(site.name, ())),
            widths[site.name],
            generator_for(seed, site.name),
        )
        for site in found.sites
        if widths.get(site.name, site.units) < site.units
    }


def carried_out(
    model: nn.Module, found: Inspection, choices: Mapping[str, Choice], example_inputs: Any, recipe: Mapping[str, Any]
) -> Carried:
    """The cut network.

    Args:
        model: not changed. found: its sites. choices: by site. example_inputs: for the comparison.
        recipe: what the plan says of how it came about.
    """
    tensors = tensors_of(model)
    sites = {site.name: site for site in found.sites}
    cuts, approximate = [], False
    for name, choice in choices.items():
        site, moved = _with_places(sites[name], choice, found, model)
        approximate |= moved
        cuts.append(Cut(site, _coresets(choice)))
    plan = Plan(tuple(cuts), {"inputs": None, "capture": "auto", **recipe}, found.shapes)
    if not approximate and all(choice.merge is None for choice in choices.values()):
        return Carried(cp.apply(model, plan, example_inputs), bool(found.graphs))
    edits: list[Edit] = [edit for cut in cuts for edit in cut.reading(tensors)]
    made = {edit.tensor for edit in edits if isinstance(edit, Add)}
    written: dict[str, Tensor] = {}
    for cut in cuts:
        choice = choices[cut.site.name]
        if choice.merge is None:
            edits += cut.owning(tensors, made)
        else:
            edits += _merging(cut.site, choice, found, tensors, written)
    changed = edited(edits, tensors)
    changed |= {name: value.to(changed[name].dtype) for name, value in written.items()}
    attributes = tuple(follow(model, cuts))
    small = spared_copy(model, changed)
    install(small, changed, attributes)
    return Carried(cp.Pruned(small, plan, *size(model), attributes), compared=False)


def _coresets(choice: Choice) -> tuple[Coreset, ...]:
    return tuple(Coreset(choice.kept, mix, offset) for mix, offset in zip(choice.mixes, choice.offsets, strict=True))


def _with_places(site: Site, choice: Choice, found: Inspection, model: nn.Module) -> tuple[Site, bool]:
    """The site with a bias named for every reader that is to take a constant, and whether one is not coreprune's own.

    That is the running mean of the BatchNorm behind the reader, or its bias, which a Linear layer gets if it has none.
    """
    readers, moved = [], False
    for reader, offset in zip(site.readers, choice.offsets, strict=True):
        new = reader
        if offset is not None and bool(offset.any()) and not reader.bias:
            new, moved = _with_place(site, reader, found, model), True
        readers.append(new)
    return replace(site, readers=tuple(readers)), moved


def _with_place(site: Site, reader: Reader, found: Inspection, model: nn.Module) -> Reader:
    weight = reader.weight.tensor
    makers = (maker for makers in found.makers.values() for maker in makers if maker.weight.tensor == weight)
    norm = next((maker.norm for maker in makers if maker.norm is not None), None)
    if norm is not None:
        return replace(reader, bias=norm[2], sign=-1.0)
    module = model.get_submodule(weight.rpartition(".")[0])
    if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise InvalidInputError(
            f"{site.name} is read by {weight}, which is part of a {type(module).__name__} and has no place for a constant: "
            "use a method without"
        )
    return replace(reader, bias=weight.removesuffix("weight") + "bias")


def _merging(
    site: Site, choice: Choice, found: Inspection, tensors: Mapping[str, Tensor], written: dict[str, Tensor]
) -> list[Edit]:
    """Edits of what makes the units when they are merged; the BatchNorm's new numbers go into `written`."""
    merge = choice.merge
    assert merge is not None
    makers = makers_of(site, found)
    norm = makers[0].norm
    own = dict.fromkeys([site.incoming, site.bias, *site.others])
    known = {maker.weight.tensor for maker in makers} | {maker.bias for maker in makers}
    known |= set(norm[:4]) if norm is not None else set()
    strange = [at.tensor for at in own if at.tensor in tensors and at.tensor not in known]
    if strange or (norm is None) != (merge.norm is None):
        raise InvalidInputError(
            f"{site.name} ({site.kind}) was to be merged, but {', '.join(strange) or 'its BatchNorm'} is in between: use "
            "a method that keeps units as they are"
        )
    edits: list[Edit] = []
    for at in own:
        if at.tensor not in tensors:
            continue
        if norm is not None and at.tensor in norm[:4]:
            edits.append(Take(at, choice.kept, site.units))
        else:
            edits.append(Mix(at, merge.rows, choice.kept, site.units))
    if norm is not None and merge.norm is not None:
        if tensors[norm[2]].numel() != site.units:
            raise InvalidInputError(f"{site.name} shares its BatchNorm with other units: use another method")
        new = (merge.norm.gamma, merge.norm.beta, merge.norm.mean, merge.norm.variance)
        written |= dict(zip(norm[:4], new, strict=True))
    return edits
