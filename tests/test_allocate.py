"""Budgets by error curves: met, monotone, no worse than uniform widths, and close to brute force on tiny networks."""

from __future__ import annotations

import math
import time
from itertools import pairwise, product

import pytest
import torch
from helpers import lenet_like, seeded
from test_budget import blocks
from torch import Tensor, nn

import coreprune as cp
from coreprune.allocation import allocate
from coreprune.budget import widths
from coreprune.errors import InvalidInputError, UnknownNameError
from coreprune.model.site import Inspection, parameters_after
from coreprune.model.stack import discover

FOUND = discover(lenet_like())  # sites "0" with 16 units and "2" with 12
DENSE = parameters_after(FOUND.shapes, [], {})
KINDS = {"params": 1, "bytes": 4, "flops": 2}


def curves(seed: int, found: Inspection = FOUND) -> dict[str, Tensor]:
    """Convex, falling, 1 at no unit and 0 at all of them."""
    result = {}
    for i, site in enumerate(found.sites):
        g = seeded(100 * seed + i)
        gains = torch.rand(site.units, generator=g, dtype=torch.float64) ** float(1 + 6 * torch.rand(1, generator=g))
        gains = gains.sort(descending=True).values + 1e-6
        curve = torch.cat([torch.zeros(1, dtype=torch.float64), gains.cumsum(0)])
        result[site.name] = 1 - curve / curve[-1]
    return result


def cost(kept: dict[str, int], kind: str = "params", found: Inspection = FOUND) -> int:
    """Left of the network, counted from the shapes one layer after the other."""
    sizes = [kept.get(site.name, site.units) for site in found.sites]
    ends = [found.features, *sizes, found.shapes[found.sites[-1].readers[0].bias][0]]
    matrices = sum(a * b for a, b in pairwise(ends))
    return KINDS[kind] * (matrices + (0 if kind == "flops" else sum(ends[1:])))


def error(kept: dict[str, int], by: dict[str, Tensor]) -> float:
    return sum(float(curve[kept.get(name, len(curve) - 1)]) for name, curve in by.items())


def full(kept: dict[str, int], found: Inspection = FOUND) -> dict[str, int]:
    return {site.name: kept.get(site.name, site.units) for site in found.sites}


def every(found: Inspection = FOUND):
    return (
        dict(zip((s.name for s in found.sites), ks, strict=True))
        for ks in product(*(range(1, s.units + 1) for s in found.sites))
    )


def test_the_cost_counted_here_is_that_of_the_library():
    assert cost({}) == DENSE
    assert cost({"0": 3, "2": 5}) == parameters_after(FOUND.shapes, FOUND.sites, {"0": 3, "2": 5})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [20, 35.5, 50, 75, 95])
@pytest.mark.parametrize("seed", range(4))
def test_budget_is_met_and_used(kind, percent, seed):
    """Not one more unit of either site would fit, unless it would not help."""
    by, dense = curves(seed), cost({}, kind)
    for asked in (f"{percent}%", percent / 100 * dense):
        kept = full(allocate(FOUND, by, {kind: asked}))
        assert cost(kept, kind) <= percent / 100 * dense
        assert all(1 <= kept[site.name] <= site.units for site in FOUND.sites)
        if percent < 90:
            assert cost(kept, kind) >= 0.6 * percent / 100 * dense


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_close_to_brute_force(kind, seed):
    """No allocation of at most 85 % of the budget is better: the Lagrangian leaves no more than that unspent."""
    by, dense = curves(seed), cost({}, kind)
    for percent in (25, 40, 60, 80):
        limit = percent / 100 * dense
        ours = error(full(allocate(FOUND, by, {kind: limit})), by)
        best = min(
            error(k, by)
            for k in every()
            if cost(k, kind) <= 0.85 * limit or cost(k, kind) == cost({"0": 1, "2": 1}, kind)
        )
        assert ours <= best + 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_no_worse_than_uniform_widths(seed):
    by = curves(seed)
    for remove in (0.2, 0.4, 0.6, 0.8):
        even = full(widths(FOUND, remove=remove))
        ours = full(allocate(FOUND, by, {"params": cost(even)}))
        assert error(ours, by) <= error(even, by) + 1e-12, remove


@pytest.mark.parametrize("seed", range(6))
def test_error_budget_is_met_by_a_small_network(seed):
    by = curves(seed)
    for asked in (0.02, 0.1, 0.3, 0.6, "25%"):
        limit = 0.25 if asked == "25%" else asked
        kept = full(allocate(FOUND, by, {"error": asked}))
        assert math.sqrt(error(kept, by)) <= limit * (1 + 1e-12)
        smallest = min(cost(k) for k in every() if math.sqrt(error(k, by)) <= limit)
        assert cost(kept) <= 1.35 * smallest


def test_error_budget_that_only_the_whole_network_meets():
    assert full(allocate(FOUND, curves(0), {"error": 1e-9})) == {"0": 16, "2": 12}


def test_error_budget_that_anything_meets():
    assert full(allocate(FOUND, curves(0), {"error": 10.0})) == {"0": 1, "2": 1}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", [*KINDS, "error"])
def test_monotone_in_the_budget(kind, seed):
    """More to spend never means a larger error; more error allowed never a larger network."""
    by = curves(seed)
    asked = [0.05, 0.1, 0.2, 0.4, 0.8] if kind == "error" else [f"{p}%" for p in (15, 25, 40, 55, 70, 85, 100)]
    found = [full(allocate(FOUND, by, {kind: a})) for a in asked]
    seen = [cost(k) if kind == "error" else error(k, by) for k in found]
    assert all(after <= before + 1e-12 for before, after in pairwise(seen))


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_budget_keeps_the_whole_network(kind):
    assert full(allocate(FOUND, curves(1), {kind: "100%"})) == {"0": 16, "2": 12}
    assert full(allocate(FOUND, curves(1), {kind: 1e9})) == {"0": 16, "2": 12}


def test_a_site_that_costs_nothing_to_cut_is_cut_first():
    by = curves(0)
    by["2"] = torch.zeros(13, dtype=torch.float64)
    by["2"][0] = 1
    kept = full(allocate(FOUND, by, {"params": "60%"}))
    assert error(kept, by) == min(error(k, by) for k in every() if cost(k) <= 0.6 * DENSE)
    assert kept["0"] > 8


def test_ignored_sites_stay_whole():
    kept = allocate(FOUND, curves(0), {"params": "60%"}, ignore=["2"])
    assert full(kept)["2"] == 12
    assert cost(kept) <= 0.6 * DENSE


def test_bytes_count_the_entries_of_the_network():
    by = curves(2)
    for item in (2, 4, 8):
        kept = allocate(FOUND, by, {"bytes": 0.5 * DENSE * item}, itemsize=item)
        assert full(kept) == full(allocate(FOUND, by, {"params": 0.5 * DENSE}))


def test_arguments_are_left_alone():
    by, budget = curves(0), {"params": "50%"}
    twins = {name: curve.clone() for name, curve in by.items()}
    allocate(FOUND, by, budget)
    assert budget == {"params": "50%"}
    assert all(torch.equal(by[name], twins[name]) for name in by)


def test_three_sites_against_brute_force():
    model = nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)
    )
    found = discover(model)
    for seed in range(4):
        by = curves(seed, found)
        for percent in (30, 50, 70):
            limit = percent / 100 * cost({}, found=found)
            kept = full(allocate(found, by, {"params": limit}), found)
            assert cost(kept, found=found) <= limit
            best = min(error(k, by) for k in every(found) if cost(k, found=found) <= 0.8 * limit)
            assert error(kept, by) <= best + 1e-12


@pytest.mark.parametrize("remove", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("method", ["kernel", "refined"])
def test_through_the_public_interface(remove, method):
    small = cp.prune(lenet_like(), remove=remove, method=method)
    left = sum(p.numel() for p in small.model.parameters())
    assert 0.6 * (1 - remove) * DENSE <= left <= (1 - remove) * DENSE


def test_error_budget_through_the_public_interface():
    small = cp.prune(lenet_like(dtype=torch.float64), budget={"error": 0.2})
    assert sum(p.numel() for p in small.model.parameters()) < DENSE
    for cut in small.plan.cuts:
        assert cut.evidence["relative_error"] <= 0.2 * 1.5  # earlier sites add to it


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "0 entries"),
        ({"params": 100, "flops": 100}, "2 entries"),
        ({"watts": 3}, "'watts' is not known"),
        ({"params": 0}, "positive"),
        ({"params": -5}, "positive"),
        ({"params": math.nan}, "positive"),
        ({"params": "0%"}, "params="),
        ({"params": "many"}, "not a number"),
        ({"params": "x%"}, "not a number"),
        ({"error": 0}, "positive"),
        ({"error": "-3%"}, "positive"),
        ({"params": 5}, "one unit left in every site still costs"),
        ({"params": "1%"}, "one unit left in every site still costs"),
        ({"flops": 3}, "one unit left in every site still costs"),
        ({"bytes": 10}, "one unit left in every site still costs"),
    ],
    ids=str,
)
def test_refusals(budget, message):
    with pytest.raises(InvalidInputError, match=message):
        allocate(FOUND, curves(0), budget)


@pytest.mark.parametrize("asked", [None, [3], True], ids=str)
def test_what_is_no_number_is_refused(asked):
    with pytest.raises(InvalidInputError):
        allocate(FOUND, curves(0), {"params": asked})


def test_unknown_sites_are_refused():
    with pytest.raises(UnknownNameError, match="'x'"):
        allocate(FOUND, curves(0), {"params": "50%"}, ignore=["x"])


NET = blocks(24, 24, 16, 24)
WHOLE = parameters_after(NET.shapes, [], {})


def left(kept: dict[str, int]) -> int:
    return parameters_after(NET.shapes, NET.sites, kept)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("percent", [60, 70, 90])
def test_uniform_widths_are_the_best_of_their_kind(seed, percent):
    """Alike blocks get one width; no other such network of 85 % of the budget is better."""
    by, limit = curves(seed, NET), percent / 100 * WHOLE
    kept = allocate(NET, by, {"params": limit}, uniform=True, ignore=["*.v"])
    assert set(kept) == {f"layer.{i}.up" for i in range(4)}
    assert kept["layer.0.up"] == kept["layer.1.up"] == kept["layer.3.up"]
    assert left(kept) <= limit

    def same(a: int, b: int) -> dict[str, int]:
        return {f"layer.{i}.up": b if i == 2 else a for i in range(4)}

    best = min(error(same(a, b), by) for a in range(1, 25) for b in range(1, 17) if left(same(a, b)) <= 0.85 * limit)
    assert error(kept, by) <= best + 1e-12
    freely = allocate(NET, by, {"params": limit}, ignore=["*.v"])
    assert len({freely[f"layer.{i}.up"] for i in (0, 1, 3)}) > 1  # what uniform= has changed


@pytest.mark.parametrize("round_to", [2, 5, 8])
@pytest.mark.parametrize("budget", [{"params": "70%"}, {"flops": "70%"}, {"error": 0.3}], ids=str)
def test_rounded_widths(round_to, budget):
    by = curves(0, NET)
    kept = allocate(NET, by, budget, round_to=round_to)
    for site in NET.sites:
        k = kept[site.name]
        assert k == site.units or (k % round_to == 0 and k >= round_to)
    assert any(kept[site.name] < site.units for site in NET.sites)
    if "params" in budget:
        assert 0.5 * WHOLE <= left(kept) <= 0.7 * WHOLE
    if "error" in budget:
        assert math.sqrt(error(kept, by)) <= 0.3
    uniform = allocate(NET, by, budget, round_to=round_to, uniform=True)
    assert len({uniform[f"layer.{i}.up"] for i in (0, 1, 3)}) == 1


def test_rounded_budget_that_cannot_be_met():
    with pytest.raises(InvalidInputError, match="8 units left in every site"):
        allocate(NET, curves(0, NET), {"params": "40%"}, round_to=8)


def test_kinds_that_are_not_named_stay_whole():
    kept = allocate(NET, curves(0, NET), {"params": "70%"}, kinds=["linear"])
    assert set(kept) == {f"layer.{i}.up" for i in range(4)}
    assert left(kept) <= 0.7 * WHOLE


def test_multiply_adds_do_not_count_the_biases_that_cuts_make():
    kept = allocate(NET, curves(3, NET), {"flops": "60%"})
    weights = {name: shape for name, shape in NET.shapes.items() if len(shape) == 2}
    after = parameters_after({**weights, **{f"layer.{i}.down.bias": () for i in range(4)}}, NET.sites, kept) - 4
    assert 0.57 * parameters_after(weights, [], {}) <= after <= 0.6 * parameters_after(weights, [], {})


def test_a_hundred_blocks_are_planned_in_seconds():
    found = blocks(*[512] * 100, width=256)
    start = time.perf_counter()
    kept = allocate(found, curves(0, found), {"params": "50%"})
    assert time.perf_counter() - start < 5
    dense = parameters_after(found.shapes, [], {})
    assert 0.499 * dense <= parameters_after(found.shapes, found.sites, kept) <= 0.5 * dense
