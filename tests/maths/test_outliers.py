"""Which units are massive, against plain loops, and paths that keep some before all others."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st

from coreprune.maths.lowrank import LowRank
from coreprune.maths.outliers import FACTOR, TRIMMED, brought, first_of, massive
from coreprune.maths.readers import choose, kept_of
from coreprune.maths.reading import Reading
from coreprune.maths.select import Path


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def reading(units, block=1, seed=0, low=False):
    size = units * block
    W = normal(3, 2, size, seed=seed)  # outputs and kernel positions
    G = LowRank(normal(size, 2, seed=seed + 1), torch.full((size,), 0.1, dtype=torch.float64))
    return Reading(W, torch.zeros(size, dtype=torch.float64), G if low else G.dense(), block)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("blocks", [(1,), (3,), (1, 2), (2, 2, 1)])
def test_what_units_bring_is_summed_entry_by_entry(blocks, low):
    units = 5
    readings = [reading(units, b, seed=i, low=low) for i, b in enumerate(blocks)]
    expected = [0.0] * units
    for one in readings:
        G = one.moments.covariance
        own = [0.0] * units
        for j in range(units * one.block):
            for row in one.outgoing.reshape(-1, units * one.block):
                own[j // one.block] += float(G[j, j]) * float(row[j]) ** 2
        expected = [e + o / sum(own) for e, o in zip(expected, own, strict=True)]
    found = brought(readings, units)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert float(found.sum()) == pytest.approx(len(blocks))


def test_each_reader_counts_alike_and_scales_do_not():
    one, other = reading(6, seed=0), reading(6, seed=3)
    louder = Reading(1e3 * other.outgoing, other.mean, 1e4 * other.covariance)
    assert torch.allclose(brought([one, other], 6), brought([one, louder], 6))


def test_nothing_comes_of_units_that_nobody_reads():
    silent = Reading(torch.zeros(2, 4), torch.zeros(4), torch.eye(4))
    assert brought([silent], 4).tolist() == [0.0] * 4
    assert massive(brought([silent], 4)).tolist() == []


def test_the_factor_is_exact():
    """19 units that bring 1 each and one that brings F, or a little less."""
    energy = torch.ones(TRIMMED, dtype=torch.float64)
    energy[7] = FACTOR
    assert massive(energy).tolist() == [7]
    energy[7] = FACTOR * (1 - 1e-12)
    assert massive(energy).tolist() == []
    assert massive(2**-30 * torch.where(energy == 1, 1.0, FACTOR)).tolist() == [7]


def test_the_largest_come_first_and_they_are_few():
    energy = torch.ones(100, dtype=torch.float64)
    energy[[3, 50, 20]] = torch.tensor([2e3, 9e9, 5e5], dtype=torch.float64)
    assert massive(energy).tolist() == [50, 20, 3]
    energy[:10] = 1e9  # one in ten: what brings most is typical here
    assert massive(energy).tolist() == []


def test_where_most_units_are_dead_the_others_are_not_massive():
    """A median would be next to nothing, and every unit that lives would be a thousand times that."""
    energy = torch.full((64,), 1e-9, dtype=torch.float64)
    energy[:24] = 1 + torch.rand(24, generator=seeded(0)).double()
    assert float(energy[:24].min() / energy.median()) > FACTOR
    assert massive(energy).tolist() == []
    energy[30] = 1e4
    assert massive(energy).tolist() == [30]


@pytest.mark.parametrize("units", [0, 1, 2, 3])
def test_few_units_and_none(units):
    assert massive(torch.ones(units)).tolist() == []
    assert massive(torch.zeros(units)).tolist() == []
    if units > 1:
        assert massive(torch.tensor([1.0, 2 * FACTOR, 1.0])[:units]).tolist() == [1]


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=60),
    st.floats(1e-6, 1e6),
)
def test_massive_units_are_what_they_are_at_any_scale_and_in_any_order(values, scale):
    energy = torch.tensor(values, dtype=torch.float64)
    found = massive(energy).tolist()
    few = -(-len(values) // TRIMMED)
    typical = sum(sorted(values)[: len(values) - few]) / (len(values) - few)
    clear = all(abs(v / (FACTOR * typical) - 1) > 1e-9 for v in values)
    if clear:
        assert {values[j] for j in found} == {v for v in values if v >= FACTOR * typical}
        assert massive(scale * energy).tolist() == found
    assert len(found) <= few and all(v >= typical for v in (values[j] for j in found))
    assert [values[j] for j in found] == sorted((values[j] for j in found), reverse=True)


# ---------------------------------------------------------------- paths


def ranked(readings, units):
    return choose(readings, units)


@pytest.mark.parametrize(("units", "block"), [(12, 1), (6, 2), (1100, 1)])
def test_a_path_with_nothing_before_it_keeps_what_it_keeps(units, block):
    path = ranked([reading(units, block, low=units > 1000)], units)
    for keep in (1, 2, units // 2, units - 1):
        none = torch.zeros(0, dtype=torch.int64)
        kept = kept_of(path, units, keep)
        assert torch.equal(first_of(path, units, keep, none), kept)
        assert torch.equal(first_of(path, units, keep, kept.flip(0)), kept)


@pytest.mark.parametrize(("units", "block"), [(12, 1), (6, 2), (1100, 1)])
def test_what_comes_first_pushes_out_what_came_last(units, block):
    path = ranked([reading(units, block, low=units > 1000)], units)
    keep = units // 2
    kept = set(kept_of(path, units, keep).tolist())
    outside = torch.tensor(sorted(set(range(units)) - kept)[:2])
    found = set(first_of(path, units, keep, outside).tolist())
    assert len(found) == keep and set(outside.tolist()) <= found
    assert found - set(outside.tolist()) == set(kept_of(path, units, keep - 2).tolist())


@pytest.mark.parametrize("added", [True, False])
def test_more_that_come_first_than_there_is_room(added):
    order = torch.tensor([4, 2, 0, 1]) if added else torch.tensor([3, 1, 0, 2])
    path = Path(torch.tensor([4]), order, torch.zeros(4), added)
    assert first_of(path, 5, 2, torch.tensor([3, 0, 1])).tolist() == [0, 3]
    assert first_of(path, 5, 3, torch.tensor([3])).tolist() == [2, 3, 4]
    assert first_of(path, 5, 5, torch.tensor([3])).tolist() == [0, 1, 2, 3, 4]
