"""All methods that choose units, behind one signature, in one visible table.

A method gets a `Layer`, the number of units to keep and a generator, and returns a `Coreset`. It
is not trusted: every certificate is computed by other code, from the tensors alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from coreprune.errors import UnknownNameError
from coreprune.maths.kernel import kernel
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.merge import folding, neuron_merging
from coreprune.maths.refine import refined
from coreprune.maths.sampling import coreset_of_layer, sensitivity

__all__ = ["METHODS", "Method", "method"]

Select = Callable[[Layer, int, Generator], Coreset]


@dataclass(frozen=True)
class Method:
    """A named way to choose units.

    Attributes:
        name: the key in `METHODS`.
        select: (layer, units, generator) → coreset of exactly that many units.
        about: one line for help texts and reports.
        random: whether the generator is used.
        law: whether the law of the units is needed.
        turns: whether kept units turn. Where a network is no stack, `coreprune.engine.turning` does that.
        merges: whether units are mixed before their activation (`Coreset.incoming`), which stacks alone allow.

    Example:
        >>> import coreprune as cp
        >>> cp.METHODS["magnitude"].about
        'units of largest norm, as they are'
    """

    name: str
    select: Select
    about: str
    random: bool = False
    law: bool = False
    turns: bool = False
    merges: bool = False


def _sampling(layer: Layer, units: int, generator: Generator) -> Coreset:
    return coreset_of_layer(layer, units=units, generator=generator)


def _uniform(layer: Layer, units: int, generator: Generator) -> Coreset:
    """K units drawn evenly without replacement, each standing for n/k: unbiased, blind to the weights."""
    n = layer.units
    kept = torch.sort(torch.randperm(n, generator=generator, device=layer.bias.device)[:units]).values
    return Coreset(kept, layer.bias.new_full((units,), n / units))


def _top(score: Tensor, units: int) -> Coreset:
    kept = torch.sort(torch.argsort(score, descending=True, stable=True)[:units]).values
    return Coreset(kept, score.new_ones(units))


def _magnitude(layer: Layer, units: int, generator: Generator) -> Coreset:
    """The k largest ‖p_j‖, the paper's "percentile" baseline; nothing is reweighted."""
    return _top(layer.norms, units)


def _sensitivity(layer: Layer, units: int, generator: Generator) -> Coreset:
    """The k largest sensitivities, without sampling and without reweighting."""
    return _top(sensitivity(layer), units)


#: Every method by name. A new one is one function and one row.
METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "kernel", kernel, "the best subset and its optimal replacement under the prior, in closed form", law=True
        ),
        Method(
            "refined", refined, "the same, and the kept units turned to where the error is least", law=True, turns=True
        ),
        Method("sampling", _sampling, "the paper's coreset: units drawn by sensitivity, reweighted, unbiased", True),
        Method("uniform", _uniform, "units drawn evenly, reweighted, unbiased", True),
        Method("magnitude", _magnitude, "units of largest norm, as they are"),
        Method("sensitivity", _sensitivity, "units of largest sensitivity, as they are"),
        Method("folding", folding, "k-means over the units; centroids stay", True, merges=True),
        Method("merging", neuron_merging, "largest norms stay, each other unit joins the most similar one"),
    )
}


def method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in METHODS:
        raise UnknownNameError(f"unknown method {name!r}; known are {', '.join(METHODS)}: use one of these")
    return METHODS[name]
