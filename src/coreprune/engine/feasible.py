"""Heads that the code of a network lets go: tried on shapes alone, before anything is observed.

Attention whose code reads the number of heads from the module, or leaves it to a `view`, runs with fewer of them. Where
the code holds the number, a view fails. That is found out in one run of the module without values, in which half of all
heads are gone; and by one for each group of alike sites where that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from coreprune.engine.probes import misfit
from coreprune.maths.layer import Coreset
from coreprune.model.discover import discover
from coreprune.model.groups import alike
from coreprune.model.site import Inspection, Refusal, Site, shapes_after
from coreprune.model.tensors import tensors_of
from coreprune.model.untouched import evaluating
from coreprune.plan import Cut
from coreprune.surgery.apply import install, spared_copy, ties
from coreprune.surgery.attributes import follow

__all__ = ["discovered", "feasible"]


def discovered(model: nn.Module, example_inputs: Any = None, capture: str = "auto") -> Inspection:
    """`coreprune.model.discover.discover`, and the heads that the code fixes among what is refused."""
    return feasible(model, discover(model, example_inputs, capture))


def feasible(model: nn.Module, found: Inspection) -> Inspection:
    """What was found, without the heads whose number the code fixes: they are refused.

    Args:
        model: not changed. found: what was discovered in it.
    """
    heads = [site for site in found.sites if site.kind == "heads" and site.units > 1]
    if not heads or not found.graphs:
        return found
    if _misfit(model, found, heads) is None or _misfit(model, found, []) is not None:  # the whole cannot be tried
        return found
    by_name = {site.name: site for site in heads}
    refused: dict[str, str] = {}
    for group in _alike(model, heads):
        why = _misfit(model, found, [by_name[name] for name in group])
        if why is not None:
            refused |= dict.fromkeys(group, why)
    advice = "write view(batch, length, -1, size of a head) there"
    return replace(
        found,
        sites=tuple(site for site in found.sites if site.name not in refused),
        refused=(
            *found.refused,
            *(Refusal(name, f"its code fixes the number of heads ({why}): {advice}") for name, why in refused.items()),
        ),
    )


def _alike(model: nn.Module, heads: Sequence[Site]) -> list[list[str]]:
    """Sites whose names are equal up to block numbers, and which lie in modules of one class: code that is the same."""
    classes = {path: type(module) for path, module in model.named_modules()}
    groups: dict[tuple[int, type | None], list[str]] = {}
    for i, group in enumerate(alike(heads)):
        for name in group:
            groups.setdefault((i, classes.get(name.rpartition(".")[0])), []).append(name)
    return list(groups.values())


def _misfit(model: nn.Module, found: Inspection, sites: Sequence[Site]) -> str | None:
    """Why the module does not run with half of the units of some sites; None if it does."""
    try:
        small = _outline(model, sites)
        with evaluating(small), torch.no_grad():
            whys = (misfit(small.get_submodule(captured.path), captured) for captured in found.graphs)
            return next((why for why in whys if why is not None), None)
    except Exception as error:  # a copy that cannot be made says nothing of the heads
        return str(error)


def _outline(model: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """A copy with half of the units of some sites, whose tensors share memory with those of the model or have none."""
    own, half = tensors_of(model), {site.name: -(-site.units // 2) for site in sites}
    again = {name for others in ties(model).values() for name in others}
    before = {name: tuple(tensor.shape) for name, tensor in own.items() if name not in again}
    after = shapes_after(before, sites, half)
    changed = {
        name: own[name].new_zeros(()).expand(after[name]) for name in before if tuple(after[name]) != before[name]
    }
    kept = [torch.arange(half[site.name]) for site in sites]
    coresets = [Coreset(units, torch.ones(len(units))) for units in kept]
    cuts = [Cut(site, (one,) * len(site.readers)) for site, one in zip(sites, coresets, strict=True)]
    small = spared_copy(model, own)
    install(small, changed, follow(model, cuts))
    return small
