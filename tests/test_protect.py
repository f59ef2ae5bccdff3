"""Sites that may not lose more than a share: kept to, and otherwise the best there is."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers import lenet_like
from test_allocate import FOUND, cost, curves

import coreprune as cp
from coreprune.allocation import allocate
from coreprune.budget import widths
from coreprune.errors import InvalidInputError, UnknownNameError
from coreprune.model.groups import floors


def test_shares_and_widths_as_floors():
    assert floors(FOUND, {"*": 0.25}) == {"0": 12, "2": 9}
    assert floors(FOUND, {"*": 0.1}) == {"0": 15, "2": 11}  # at most so much goes: rounded to more units
    assert floors(FOUND, {"0": 0, "2": 0.0}) == {"0": 16, "2": 12}
    assert floors(FOUND, {"2": 0.5, "*": 0.25}) == {"0": 12, "2": 6}
    assert floors(FOUND, {"0": 5}) == floors(FOUND, {"0": 5.0}) == {"0": 5}
    assert floors(FOUND, None) == {}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("protect", [{"0": 0.25}, {"2": 9}, {"*": 0.5}])
@pytest.mark.parametrize("kind", ["params", "flops", "bytes"])
def test_a_budget_keeps_to_it_and_is_near_the_best(seed, protect, kind):
    errors, least = curves(seed), floors(FOUND, protect)
    limit = round(0.7 * cost({}, kind))
    kept = allocate(FOUND, errors, {kind: limit}, protect=protect)
    assert all(kept[name] >= k for name, k in least.items())
    assert cost(kept, kind) <= limit

    def lost(w):
        return sum(float(errors[name][k]) for name, k in w.items())

    all_of = (dict(zip(("0", "2"), w, strict=True)) for w in product(range(1, 17), range(1, 13)))
    fits = [w for w in all_of if cost(w, kind) <= limit and all(w[n] >= k for n, k in least.items())]
    assert lost(kept) <= min(map(lost, fits)) * 1.1 + 1e-12


def test_without_need_nothing_changes():
    errors = curves(1)
    free = allocate(FOUND, errors, {"params": "60%"})
    assert allocate(FOUND, errors, {"params": "60%"}, protect=dict(free)) == free


@pytest.mark.parametrize("method", ["kernel", "magnitude"])
def test_plans_keep_to_it_and_write_it_down(method):
    net = lenet_like()
    free = cp.plan(net, remove=0.4, method=method)
    plan = cp.plan(net, remove=0.4, method=method, protect={"2": 0.1})
    assert free.kept["2"] < 11 <= plan.kept.get("2", 12)
    assert plan.kept["0"] < free.kept["0"]
    assert plan.recipe["protect"] == {"2": 0.1}
    assert cp.apply(net, plan).parameters <= 0.6 * cp.apply(net, free).dense_parameters


def test_multiples_are_rounded_up_to_it():
    assert widths(FOUND, remove=0.1, round_to=4, protect={"0": 13})["0"] == 16
    assert allocate(FOUND, curves(0), {"params": "70%"}, round_to=4, protect={"0": 10})["0"] in {12, 16}


def test_sites_of_one_width_keep_what_any_of_them_must():
    net = torch.nn.Sequential(*(m for _ in range(3) for m in (torch.nn.Linear(10, 10), torch.nn.ReLU())), torch.nn.Linear(10, 2))  # fmt: skip
    plan = cp.plan(net, remove=0.15, uniform=True, protect={"2": 9})
    assert set(plan.kept.values()) == {9}


@pytest.mark.parametrize("value", [1.5, -0.1, True, "much", None, 17])
def test_what_cannot_be_meant_is_refused(value):
    with pytest.raises(InvalidInputError, match="protect="):
        cp.plan(lenet_like(), remove=0.3, protect={"0": value})


def test_it_is_refused_with_exact_widths_and_unknown_names():
    with pytest.raises(InvalidInputError, match="with one fraction, or a budget"):
        cp.plan(lenet_like(), units={"0": 3}, protect={"0": 0.1})
    with pytest.raises(InvalidInputError, match="with one fraction, or a budget"):
        cp.plan(lenet_like(), remove={"0": 0.5}, protect={"0": 0.1})
    with pytest.raises(UnknownNameError, match="no site matches"):
        cp.plan(lenet_like(), remove=0.3, protect={"9": 0.1})


def test_what_is_too_much_is_refused_with_the_reason():
    for method in ("kernel", "magnitude"):
        with pytest.raises(InvalidInputError, match="protected"):
            cp.plan(lenet_like(), remove=0.5, method=method, protect={"*": 0.1})


def test_what_stays_whole_anyway_cannot_be_protected():
    """It would have no effect, and whoever asks for it expects one; a pattern that means others too is fine."""
    net, x = lenet_like(), torch.zeros(2, 6)
    with pytest.raises(InvalidInputError, match="which ignore= or kinds= leave whole: leave one of them out"):
        cp.plan(net, x, remove=0.3, protect={"0": 0.25}, ignore=["0"])
    with pytest.raises(InvalidInputError, match="leave one of them out"):
        cp.plan(net, x, budget={"params": "70%"}, protect={"0": 0.25}, ignore=["0"])
    assert cp.plan(net, x, budget={"params": "90%"}, protect={"*": 0.9}, ignore=["0"]).kept
