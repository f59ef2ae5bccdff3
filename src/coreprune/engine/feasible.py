"""Heads that the code of a network lets go: tried on shapes alone, before anything is observed.

Attention whose code reads the number of heads from the module, or leaves it to a `view`, runs with fewer of them. Where
the code holds the number, a view fails, or makes smaller heads, as many as before, if it is the size of a head that is
left to it. That is found out in one run of the module without values, in which half of all heads are gone; and by one
for each group of alike sites where something is amiss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
    every = _tried(model, found, heads)
    if every.why is None and not every.smaller(heads):
        return found
    whole = _tried(model, found, [])
    if whole.why is not None:  # it cannot be tried
        return found
    by_name = {site.name: site for site in heads}
    refused: dict[str, str] = {}
    for group in _alike(model, heads):
        sites = [by_name[name] for name in group]
        why = _misfit(_tried(model, found, sites), whole, sites)
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


class _Trial(NamedTuple):
    """Why a module does not run with half of the units of some sites, if so, and the shapes that its views made."""

    why: str | None
    views: Sequence[torch.Size]

    def smaller(self, sites: Sequence[Site]) -> bool:
        """Whether some view made heads of such a size that all of them would be left, but smaller."""
        halves = {(size * _half(site), site.units) for site in sites for size in _sizes(site)}
        return any(len(view) > 3 and any(view[-1] * n == size for size, n in halves) for view in self.views)


class _Views(TorchFunctionMode):
    """Writes down the shapes that views make."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One function of PyTorch."""
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in {"view", "reshape", "unflatten"} and isinstance(result, Tensor):
            self.shapes.append(result.shape)
        return result


def _sizes(site: Site) -> set[int]:
    """What a head may have of entries: of keys and values, and of the queries that belong to them."""
    return {at.span for at in site.locations} | {reader.block for reader in site.readers}


def _half(site: Site) -> int:
    """How many of a site's units are left when they are tried."""
    return -(-site.units // 2)


def _tried(model: nn.Module, found: Inspection, sites: Sequence[Site]) -> _Trial:
    """A run of the module with half of the units of some sites."""
    views = _Views()
    try:
        small = _outline(model, sites)
        with evaluating(small), torch.no_grad(), views:
            whys = (misfit(small.get_submodule(captured.path), captured) for captured in found.graphs)
            return _Trial(next((why for why in whys if why is not None), None), views.shapes)
    except Exception as error:  # a copy that cannot be made says nothing of the heads
        return _Trial(str(error), views.shapes)


def _misfit(trial: _Trial, whole: _Trial, sites: Sequence[Site]) -> str | None:
    """Why a trial says that the number of heads is fixed; None if it is not."""
    if trial.why is not None or len(trial.views) != len(whole.views):
        return trial.why
    sizes = {size for site in sites for size in _sizes(site)}
    for a, b in zip(whole.views, trial.views, strict=True):
        if len(a) > 3 and a[:-1] == b[:-1] and a[-1] in sizes and b[-1] < a[-1]:
            return f"a view to {tuple(a)} makes {tuple(b)} of half of them"
    return None


def _outline(model: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """A copy with half of the units of some sites, whose tensors share memory with those of the model or have none."""
    own, half = tensors_of(model), {site.name: _half(site) for site in sites}
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
