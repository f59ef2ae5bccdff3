"""Our methods pass the check that is shipped, and one that is wrong in any one way does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import coreprune as cp
from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Coreset
from coreprune.maths.methods import Method
from coreprune.testing import ConformanceError, check_method


@pytest.mark.parametrize("name", list(cp.METHODS))
def test_ours_pass(name):
    found = check_method(cp.METHODS[name])
    assert "the identity where all are kept" in found.checked
    free = "duplicate, dead and constant units cost nothing"
    assert (free in found.checked) == cp.METHODS[name].law


def first(layer, units, generator):
    return Coreset(torch.arange(units), torch.ones(units, dtype=layer.bias.dtype))


def drawn(layer, units, generator):
    kept = torch.randperm(layer.units, generator=generator)[:units].sort().values
    return Coreset(kept, torch.ones(units, dtype=layer.bias.dtype))


def changed(**values):
    """`first` with some of its values changed, by functions of (coreset, layer)."""

    def select(layer, units, generator):
        coreset = first(layer, units, generator)
        return replace(coreset, **{name: value(coreset, layer) for name, value in values.items()})

    return select


def spoils(layer, units, generator):
    layer.outgoing[:, 0] += 1
    return first(layer, units, generator)


def seeds(layer, units, generator):
    torch.manual_seed(0)
    return first(layer, units, generator)


def numpy_too(layer, units, generator):
    np.random.rand()  # noqa: NPY002
    return first(layer, units, generator)


STATE = iter(range(10**6))


def remembers(layer, units, generator):
    """Another result every time, from a state of its own."""
    if units == layer.units:
        return first(layer, units, generator)
    kept = (torch.arange(units) + next(STATE)) % layer.units
    return Coreset(kept.sort().values, torch.ones(units, dtype=layer.bias.dtype))


def law_blind(layer, units, generator):
    assert layer.law is not None
    return first(layer, units, generator)


def no_constants(layer, units, generator):
    """The optimal replacement without its constant."""
    best = cp.METHODS["kernel"].select(layer, units, generator)
    return replace(best, offset=None) if units < layer.units else best


def raises(layer, units, generator):
    raise ZeroDivisionError


def half(coreset, layer):
    return coreset.mix.half()


WRONG = {
    "too few units": (changed(indices=lambda c, _: c.indices[:-1], mix=lambda c, _: c.mix[:-1]), "it kept 0"),
    "one unit twice": (changed(indices=lambda c, _: c.indices.clamp(max=c.units - 2).clamp(min=0)), "distinct units"),
    "not ascending": (changed(indices=lambda c, _: c.indices.flip(0)), "ascending order"),
    "out of range": (changed(indices=lambda c, _: c.indices + 1), "distinct units"),
    "indices in another type": (changed(indices=lambda c, _: c.indices.int()), "torch.int32"),
    "a mask for indices": (changed(indices=lambda c, layer: torch.arange(layer.units) < c.units), "torch.bool"),
    "factors of another number": (changed(mix=lambda c, _: torch.cat([c.mix, c.mix])), "mix has shape"),
    "a matrix that is turned": (
        changed(mix=lambda c, layer: torch.eye(layer.units, dtype=c.mix.dtype)[: c.units]), "mix has shape"),
    "an offset for the kept alone": (changed(offset=lambda c, _: 0 * c.mix), "offset has shape"),
    "NaN": (changed(mix=lambda c, _: c.mix * torch.nan), "NaN or infinite"),
    "half precision": (changed(mix=half), "torch.float16"),
    "a gradient": (changed(mix=lambda c, _: c.mix.requires_grad_()), "requires a gradient"),
    "no identity": (changed(mix=lambda c, _: 1.01 * c.mix), "be the identity"),
    "an offset where all are kept": (
        changed(offset=lambda c, layer: torch.full_like(layer.bias, 0.1)), "be the identity"),
    "a layer that is changed": (spoils, "changed the layer"),
    "the global generator seeded": (seeds, "global random state"),
    "NumPy's global generator": (numpy_too, "global random state"),
    "a state of its own": (remembers, "two results"),
    "random and does not say so": (drawn, "random=False"),
    "no coreset": (lambda layer, units, generator: torch.arange(units), "returned a Tensor"),
    "an exception": (raises, "ZeroDivisionError"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_caught(name):
    select, message = WRONG[name]
    with pytest.raises(ConformanceError, match=message) as caught, torch.random.fork_rng(devices=[]):
        check_method(Method("own", select, "a method that is wrong"))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("method 'own': ")


def test_what_says_that_it_is_random_and_is_not_is_caught():
    with pytest.raises(ConformanceError, match="random=True"):
        check_method(Method("own", first, "the first units", random=True))


def test_what_draws_from_the_generator_and_says_so_passes():
    check_method(Method("own", drawn, "any units", random=True))


@pytest.mark.parametrize("select", [law_blind, no_constants])
def test_redundant_units_that_cost_something_are_caught(select):
    with pytest.raises(ConformanceError, match="two are duplicates, one is dead and one constant"):
        check_method(Method("own", select, "blind", law=True))


def test_a_law_that_is_asked_for_and_not_declared_is_said():
    with pytest.raises(InvalidInputError, match="give a prior"):
        check_method(replace(cp.METHODS["kernel"], law=False))


def test_a_method_without_a_line_about_it_is_caught():
    with pytest.raises(ConformanceError, match="no line about it"):
        check_method(Method("own", first, ""))
