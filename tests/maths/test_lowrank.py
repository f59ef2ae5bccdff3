"""Covariances of few samples: every answer is that of the matrix written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import energy, error, normal, optimal, seeded

from coreprune.maths import kernel
from coreprune.maths.gram import Moments
from coreprune.maths.layer import Coreset, changed
from coreprune.maths.lowrank import LowRank, about_zero, forward, replacement, residual
from coreprune.maths.propagate import Law
from coreprune.maths.readers import choose, pooled_energy
from coreprune.maths.reading import Reading
from coreprune.maths.reweight import replacement as dense_replacement
from coreprune.maths.select import forward as dense_forward
from coreprune.maths.shrink import shrunk


def made(n=40, rank=3, seed=0, least=0.1):
    return LowRank(normal(n, rank, seed=seed), torch.rand(n, generator=seeded(seed + 1)).double() + least)


def dense(one: Reading) -> Reading:
    return Reading(one.outgoing, one.mean, one.moments.covariance, one.block, one.constant)


def test_it_is_the_matrix():
    G, W, scale = made(), normal(5, 40, seed=2), normal(40, seed=3)
    whole = G.factor @ G.factor.T + torch.diag(G.rest)
    assert torch.allclose(G.dense(), whole) and torch.allclose(G.diagonal(), whole.diagonal())
    assert torch.allclose(G.scaled(scale).dense(), whole * scale * scale[:, None])
    assert G.energy(W) == pytest.approx(float((W @ whole @ W.T).trace()), rel=1e-12)
    mean = normal(40, seed=4)
    assert torch.allclose(about_zero(G, mean).dense(), about_zero(whole, mean))
    assert G.to(torch.float32).dense().dtype == torch.float32


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_greedy_is_that_of_the_matrix(seed, k):
    G, W = made(seed=seed), normal(6, 40, seed=seed + 9)
    mine, theirs = forward(G, W, k), dense_forward(G.dense(), W @ G.dense(), k)
    assert mine.order.tolist() == theirs.order.tolist()
    assert torch.allclose(mine.energy, theirs.energy, rtol=1e-9)


def test_blocks_cost_little():
    G, W = made(300, 5), normal(20, 300, seed=9)
    one, many = (residual(G, W, S, replacement(G, S, 0.0)) for S in (forward(G, W, 100, block=b).kept for b in (1, 16)))
    assert one < many < 1.05 * one


@pytest.mark.parametrize("rank, block", [(20, 4), (4, 20)])
def test_blocks_of_many_and_of_few_units_are_swept_alike(rank, block):
    """A block with fewer units than there are samples changes W P; otherwise it is computed anew."""
    G, W = made(120, rank), normal(9, 120, seed=5)
    mine, theirs = forward(G, W, 60, block=block), dense_forward(G.dense(), W @ G.dense(), 60, block=block)
    assert mine.order.tolist() == theirs.order.tolist()
    assert torch.allclose(mine.energy, theirs.energy, rtol=1e-9)


@pytest.mark.parametrize("optimal", [True, False])
def test_the_residual_of_thin_weights_is_that_of_the_matrix(optimal):
    G, W, kept = made(120, 3), normal(9, 120, seed=2), torch.arange(0, 120, 2)
    T = replacement(G, kept)
    if not optimal:
        T = replace(T, right=T.right + 1e-3 * normal(3, 60, seed=3))
    E = torch.eye(120).double()
    E[:, kept] -= T.dense()
    assert residual(G, W, kept, T) == pytest.approx(float((W @ E @ G.dense() @ E.T @ W.T).trace()), rel=1e-6)


def test_units_that_no_output_sees_come_last():
    G, W = made(10), normal(3, 10)
    W[:, 4:] = 0
    path = forward(G, W, 7)
    assert set(path.order[:4].tolist()) == {0, 1, 2, 3} or float(path.energy[4:].max()) < float(path.energy[:4].min())
    assert sorted(path.kept.tolist()) == path.kept.tolist() and len(set(path.kept.tolist())) == 7
    assert len(forward(G, torch.zeros(3, 10).double(), 4).kept) == 4


@pytest.mark.parametrize("ridge", [0.0, None, 1e-3])
def test_the_replacement_is_that_of_the_matrix(ridge):
    G, kept = made(), torch.tensor([1, 5, 6, 30])
    theirs = dense_replacement(
        Law(Moments(torch.zeros(40).double(), G.dense())), Coreset(kept, torch.ones(4)), ridge=ridge
    )
    mine = replacement(G, kept, ridge).dense()
    assert torch.allclose(mine, theirs.mix, rtol=1e-9, atol=1e-11)
    assert torch.equal(mine[kept], torch.eye(4).double())


@pytest.mark.parametrize("kind", ["best", "any", "all but one"])
def test_the_residual_is_that_of_the_matrix(kind):
    G, W, kept = made(12), normal(5, 12, seed=2), torch.tensor([1, 5, 6, 10])
    T = replacement(G, kept).dense()
    if kind == "any":
        T = normal(12, 4, seed=3)
    elif kind == "all but one":
        T[5] = torch.tensor([0.0, 0.5, 0, 0])
    E = torch.eye(12).double()
    E[:, kept] -= T
    assert residual(G, W, kept, T) == pytest.approx(float((W @ E @ G.dense() @ E.T @ W.T).trace()), rel=1e-10)


def test_what_stands_for_itself_is_told():
    T = torch.zeros(5, 3)
    T[[0, 2, 4], [0, 1, 2]] = torch.tensor([1.0, 1.0, 2.0])
    T[2, 0] = 1e-9
    assert changed(T, torch.tensor([0, 2, 4])).tolist() == [1, 2, 3, 4]


# ---------------------------------------------------------------- shrinkage


def sampled(n, count, seed=0):
    x = normal(count, n, seed=seed) * (1 + torch.arange(n)) / n
    return LowRank((x - x.mean(0)).T / count**0.5, torch.zeros(n).double())


@pytest.mark.parametrize("count", [5, 40])
def test_shrinkage_is_that_of_the_matrix(count):
    G = sampled(300, count)
    G.factor[7] = 0
    mine = shrunk(G, count)
    assert isinstance(mine, LowRank)
    assert torch.allclose(mine.dense(), shrunk(G.dense(), count), rtol=1e-9, atol=1e-12)


def test_copies_are_kept_as_a_matrix():
    G = sampled(300, 40)
    G.factor[290] = -3 * G.factor[4]
    mine = shrunk(G, 40)
    assert isinstance(mine, torch.Tensor) and torch.equal(mine, shrunk(G.dense(), 40))
    assert float(mine[4, 290]) == pytest.approx(-float((mine[4, 4] * mine[290, 290]) ** 0.5))
    assert isinstance(shrunk(sampled(300, 40), 40), LowRank)


# ---------------------------------------------------------------- readers


def some(readers, constant=True, n=60, count=6):
    result = []
    for r in range(readers):
        G = shrunk(sampled(n, count, seed=r), count)
        mean = normal(n, seed=r + 20) if constant else torch.zeros(n).double()
        G = G if constant else about_zero(G, normal(n, seed=r + 20))
        result.append(Reading(normal(4, n, seed=r + 9) * 10.0**r, mean, G, 1, constant))
    return result


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("constant", [True, False])
def test_readings_of_low_rank_say_what_the_matrices_say(readers, constant, monkeypatch):
    monkeypatch.setattr(kernel, "SMALL", 0)  # both go forward
    thin = some(readers, constant)
    full = [dense(one) for one in thin]
    assert pooled_energy(thin) == pytest.approx(pooled_energy(full), rel=1e-9)
    kept = choose(thin, 60, 20).kept
    for a, b in zip(thin, full, strict=True):
        mine, theirs = optimal(a, kept), optimal(b, kept)
        assert energy(a) == pytest.approx(energy(b), rel=1e-9)
        assert torch.allclose(mine.matrix(60), theirs.mix, atol=1e-8)
        assert (mine.offset is None) == (theirs.offset is None) == (not constant)
        assert error(a, mine) == pytest.approx(error(b, mine), rel=1e-8)
        assert error(a, theirs) == pytest.approx(error(a, mine), rel=1e-6)
    mine, theirs = (sum(error(b, optimal(b, S)) / energy(b) for b in full) for S in (kept, choose(full, 60, 20).kept))
    assert mine == pytest.approx(theirs, rel=1e-3)


def test_units_that_do_not_vary_go_first():
    (one,) = some(1, n=30)
    G = LowRank(one.covariance.factor.clone(), one.covariance.rest.clone())
    for j in (3, 11):
        G.factor[j], G.rest[j] = 0, 0
    one = Reading(one.outgoing, one.mean, G)
    assert not {3, 11} & set(choose([one], 30, 28).kept.tolist())
    assert set(choose([one], 30, 29).kept.tolist()) > set(range(30)) - {3, 11}
    found = optimal(one, choose([one], 30, 20).kept)
    T = found.matrix(30)
    assert torch.isfinite(T).all() and not T[[3, 11]].any()
    assert torch.allclose(found.offset[[3, 11]], one.mean[[3, 11]])
