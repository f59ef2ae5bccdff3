"""The blocked greedy against plain loops and against all subsets; its curve against least squares solved afresh."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from helpers import random_layer, seeded
from torch import Tensor

from coreprune.maths.activation import activation
from coreprune.maths.gram import Moments, gaussian_moments
from coreprune.maths.kernel import select
from coreprune.maths.layer import Layer
from coreprune.maths.propagate import Law
from coreprune.maths.select import Path, backward, forward, pivot


def problem(n: int = 9, p: int = 3, seed: int = 0, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """G of random units, readers W, and Y = W G."""
    A = torch.randn(n, rank or n + 3, generator=seeded(seed), dtype=torch.float64)
    A *= 10 ** torch.randn(n, 1, generator=seeded(seed + 100), dtype=torch.float64)  # units of very different size
    W = torch.randn(p, n, generator=seeded(seed + 200), dtype=torch.float64) / A.norm(dim=1)
    G = A @ A.T
    return G, W, W @ G


def error(G: Tensor, W: Tensor, kept: list[int]) -> float:
    """min over W' of E‖W h − W' h_S‖², by an eigenvalue decomposition of G and a least-squares solver."""
    values, vectors = torch.linalg.eigh(G)
    root = vectors * values.clamp(min=0).sqrt()  # G = root rootᵀ
    target = root.T @ W.T
    if not kept:
        return float(target.square().sum())
    X = root[kept].T
    fit = torch.linalg.lstsq(X / X.norm(dim=0), target, driver="gelsd").solution
    return float((target - X / X.norm(dim=0) @ fit).square().sum())


def greedy_forward(G: Tensor, W: Tensor, k: int) -> list[int]:
    kept: list[int] = []
    for _ in range(k):
        kept.append(min((j for j in range(len(G)) if j not in kept), key=lambda j: error(G, W, [*kept, j])))
    return kept


def greedy_backward(G: Tensor, W: Tensor, k: int) -> list[int]:
    kept, dropped = list(range(len(G))), []
    while len(kept) > k:
        worst = min(kept, key=lambda j: error(G, W, [i for i in kept if i != j]))
        kept.remove(worst)
        dropped.append(worst)
    return dropped


def direct_curve(G: Tensor, W: Tensor, path: Path) -> list[float]:
    """err(k) of the path's own sets, each solved afresh."""
    n, order = len(G), path.order.tolist()
    sets = [order[:k] if path.added else [j for j in range(n) if j not in order[: n - k]] for k in range(n + 1)]
    return [error(G, W, kept) for kept in sets]


seeds = pytest.mark.parametrize("seed", range(6))


@seeds
def test_forward_one_by_one_is_the_plain_loop(seed):
    G, W, Y = problem(seed=seed)
    path = forward(G, Y, 9, block=1)
    assert path.order.tolist() == greedy_forward(G, W, 9)
    assert path.added


@seeds
def test_backward_one_by_one_is_the_plain_loop(seed):
    G, W, Y = problem(seed=seed)
    path = backward(G, Y, 1, block=1)
    assert path.order.tolist() == greedy_backward(G, W, 1)
    assert not path.added


@seeds
def test_small_layers_fit_one_block_where_the_greedy_is_exact(seed):
    G, W, Y = problem(seed=seed)
    assert forward(G, Y, 9).order.tolist() == greedy_forward(G, W, 9)
    assert backward(G, Y, 1).order.tolist() == greedy_backward(G, W, 1)


@seeds
def test_against_all_subsets(seed):
    """One unit to add or to drop is the best of all; in between the greedy lies within (k + 1) times the optimum."""
    G, W, Y = problem(n=8, seed=seed)
    total = error(G, W, [])
    for k in range(1, 8):
        best = min(error(G, W, list(kept)) for kept in combinations(range(8), k))
        up, down = (error(G, W, run(G, Y, k).kept.tolist()) for run in (forward, backward))
        assert min(up, down) >= best - 1e-9 * total
        assert min(up, down) <= (k + 1) * best + 1e-9 * total
        if k == 1:
            assert up == pytest.approx(best, abs=1e-9 * total)
        if k == 7:
            assert down == pytest.approx(best, abs=1e-9 * total)


@seeds
@pytest.mark.parametrize("run", [forward, backward])
@pytest.mark.parametrize("block", [1, 3, 64])
def test_the_curve_is_least_squares_solved_afresh(run, block, seed):
    G, W, Y = problem(n=12, seed=seed)
    total = error(G, W, [])
    path = run(G, Y, 12 if run is forward else 1, block=block)
    found = path.curve(12, total).tolist()
    exact = direct_curve(G, W, path)
    assert found[0] == pytest.approx(total)
    assert found[12] == pytest.approx(0, abs=1e-9 * total)
    for k in range(1, 12):
        assert found[k] == pytest.approx(exact[k], rel=1e-6, abs=1e-9 * total), k


@seeds
@pytest.mark.parametrize("run", [forward, backward])
@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize("k", [1, 2, 5, 11, 12])
def test_kept_and_order_and_energy_tell_the_same(run, block, k, seed):
    G, W, Y = problem(n=12, seed=seed)
    path = run(G, Y, k, block=block)
    kept, order = path.kept.tolist(), path.order.tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == k
    if path.added:
        assert sorted(order) == kept
        explained = error(G, W, []) - error(G, W, kept)
    else:
        assert sorted([*order, *kept]) == list(range(12))
        explained = error(G, W, kept)
    assert float(path.energy.sum()) == pytest.approx(explained, rel=1e-6, abs=1e-9 * error(G, W, []))


@pytest.mark.parametrize("run", [forward, backward])
@pytest.mark.parametrize("k", [20, 60, 100])
def test_blocks_cost_next_to_nothing(run, k):
    """120 ReLU units: sixteen at a time end within 5 % of one by one."""
    layer = random_layer(120, 30, 10)
    G = gaussian_moments(layer.activation, layer.bias, layer.incoming @ layer.incoming.T).covariance
    W = layer.outgoing
    slow, fast = (error(G, W, run(G, W @ G, k, block=block).kept.tolist()) for block in (1, 16))
    assert fast <= 1.05 * slow


@pytest.mark.parametrize("k", [10, 30, 60])
def test_forward_and_backward_are_of_one_quality(k):
    layer = random_layer(80, 30, 10)
    G = gaussian_moments(layer.activation, layer.bias, layer.incoming @ layer.incoming.T).covariance
    W = layer.outgoing
    up, down = (error(G, W, run(G, W @ G, k).kept.tolist()) for run in (forward, backward))
    by_chance = sum(error(G, W, torch.randperm(80, generator=seeded(s))[:k].tolist()) for s in range(20)) / 20
    assert max(up, down) <= 1.3 * min(up, down)
    assert max(up, down) < 0.9 * by_chance


def test_curve_never_rises_and_ends_where_it_should():
    G, W, Y = problem(30, seed=1)
    total = error(G, W, [])
    for path in (forward(G, Y, 12), backward(G, Y, 12), forward(G, Y, 30), backward(G, Y, 30)):
        curve = path.curve(30, total)
        assert curve.shape == (31,)
        assert float(curve[0]) == pytest.approx(total)
        assert bool((curve.diff() <= 1e-12 * total).all())
        assert bool((curve >= 0).all())


def test_arguments_are_left_alone():
    G, _, Y = problem()
    twins = G.clone(), Y.clone()
    forward(G, Y, 4)
    backward(G, Y, 4)
    assert torch.equal(G, twins[0])
    assert torch.equal(Y, twins[1])


def test_permuting_the_units_permutes_the_choice():
    G, _, Y = problem(20, seed=3)
    p = torch.randperm(20, generator=seeded(0))
    for run in (forward, backward):
        kept, moved = run(G, Y, 7).kept, run(G[p][:, p], Y[:, p], 7).kept
        assert sorted(p[moved].tolist()) == kept.tolist()


def test_scaling_units_and_target_does_not_change_the_choice():
    G, _, Y = problem(20, seed=4)
    c = 10 ** (4 * torch.rand(20, generator=seeded(0), dtype=torch.float64) - 2)
    for run in (forward, backward):
        assert torch.equal(run(G, Y, 7).kept, run(G * c[:, None] * c, 1e3 * Y * c, 7).kept)


# --- rank-deficient --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 5, 8, 12])
@pytest.mark.parametrize("block", [1, 4, 64])
def test_forward_stops_gaining_at_the_rank(k, block):
    G, W, Y = problem(12, seed=2, rank=3)
    path = forward(G, Y, k, block=block)
    assert len(path.kept) == k == len(path.order) == len(path.energy)
    assert len(set(path.kept.tolist())) == k
    assert float(path.energy[3:].sum()) <= 1e-8 * float(path.energy.sum())
    if k >= 3:
        assert error(G, W, path.order[:3].tolist()) <= 1e-9 * error(G, W, [])


def test_forward_with_nothing_to_explain():
    G = torch.zeros(5, 5, dtype=torch.float64)
    path = forward(G, torch.zeros(2, 5, dtype=torch.float64), 3)
    assert path.kept.tolist() == [0, 1, 2]
    assert path.curve(5, 0.0).tolist() == [0.0] * 6


def layer_of(G: Tensor, mean: Tensor | None = None, p: int = 3) -> Layer:
    n = len(G)
    W = torch.randn(p, n, generator=seeded(9), dtype=torch.float64).to(G.dtype)
    mean = torch.zeros(n, dtype=G.dtype) if mean is None else mean
    blank = torch.zeros(n, 2, dtype=G.dtype)
    return Layer(blank, blank[:, 0], W, activation("relu"), 1.0, Law(Moments(mean, G)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 4, 6, 7, 11, 16, 19, 20])
def test_duplicates_dead_and_constant_units_never_crash(dtype, k):
    """Six units, six copies at other scales, four dead, four constant; copies are not kept while others are missing."""
    A = torch.randn(6, 9, generator=seeded(0), dtype=torch.float64)
    rows = torch.cat([A, 3 * A, torch.zeros(8, 9, dtype=torch.float64)])
    G = (rows @ rows.T).to(dtype)
    mean = torch.cat([torch.zeros(16), torch.full((4,), 7.0)]).to(dtype)
    layer = layer_of(G, mean)
    path = select(layer, k)
    kept = path.kept.tolist()
    assert len(set(kept)) == k
    assert kept == sorted(kept)
    if k <= 6:
        assert len({j % 6 for j in kept if j < 12}) == k
    if k >= 6:
        assert {j % 6 for j in kept if j < 12} == set(range(6))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_selection_through_the_kernel_survives_any_rank(rank):
    A = torch.randn(40, rank, generator=seeded(rank), dtype=torch.float64)
    layer = layer_of(A @ A.T)
    total = float(((layer.outgoing @ A).square()).sum())
    for k in (1, rank, rank + 1, 20, 39):
        kept = select(layer, k).kept.tolist()
        assert len(kept) == k
        if k >= rank:
            assert error(A @ A.T, layer.outgoing, kept) <= 1e-8 * total


def test_float32_with_nearly_equal_units():
    A = torch.randn(100, 40, generator=seeded(1))
    A[50:] = A[:50] + 1e-4 * torch.randn(50, 40, generator=seeded(2))
    layer = layer_of(A @ A.T)
    for k in (1, 40, 50, 60, 99):
        assert len(select(layer, k).kept) == k
    assert {j % 50 for j in select(layer, 60).kept.tolist()} >= set(range(45)) or len(
        {j % 50 for j in select(layer, 60).kept.tolist()}
    ) >= 40


def test_a_block_that_rounding_left_indefinite_still_has_a_factor():
    x = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    G = (x.T @ x / 40).double()  # rank 40 of 60
    bent = G - 1e-7 * torch.eye(60, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        torch.linalg.cholesky(bent)
    L = pivot(bent)
    torch.testing.assert_close(L @ L.T, bent, atol=1e-4, rtol=1e-4)
