"""Dropping units of several entries: every cost is the loss of a least-squares problem that is solved afresh."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded

from coreprune.maths.blocks import backward_blocks
from coreprune.maths.select import backward


def problem(n, b, seed=0, rank=None):
    g = seeded(seed)
    size = n * b
    A = torch.randn(size, rank or 2 * size, generator=g, dtype=torch.float64)
    W = torch.randn(5, size, generator=g, dtype=torch.float64)
    return A @ A.T / A.shape[1], W.T @ W, W


def loss(G, M, units, b):
    """The least E‖W h − W' h_S‖²: tr M (G − G_:S G_SS⁻¹ G_S:)."""
    S = (torch.as_tensor(sorted(units))[:, None] * b + torch.arange(b)).flatten()
    left = G - G[:, S] @ torch.linalg.pinv(G[S][:, S], hermitian=True) @ G[S]
    return float((M * left).sum())


@pytest.mark.parametrize("n,b", [(6, 1), (5, 2), (4, 3)])
def test_every_step_drops_the_unit_whose_loss_is_least(n, b):
    G, M, _ = problem(n, b)
    path = backward_blocks(G, M, n, 1)
    left, before = list(range(n)), 0.0
    for unit, cost in zip(path.order.tolist(), path.energy.tolist(), strict=True):
        losses = {j: loss(G, M, set(left) - {j}, b) - before for j in left}
        assert unit == min(losses, key=losses.get)
        assert cost == pytest.approx(losses[unit], rel=1e-5)
        left.remove(unit)
        before += losses[unit]
    assert path.kept.tolist() == left and not path.added


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_units_of_many_entries_are_dropped_alike_on_any_number_of_threads(threads):
    """The first cost by the definition; batched LU factors of more than 150 columns are wrong on several threads."""
    G, M, _ = problem(3, 160)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        path = backward_blocks(G, M, 3, 1)
    finally:
        torch.set_num_threads(before)
    first, second = (loss(G, M, {0, 1, 2} - set(path.order[:k].tolist()), 160) for k in (1, 2))
    assert first == pytest.approx(min(loss(G, M, {0, 1, 2} - {j}, 160) for j in range(3)), rel=1e-6)
    assert path.energy.tolist() == pytest.approx([first, second - first], rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_units_of_one_entry_are_the_scalar_greedy(seed):
    G, M, W = problem(12, 1, seed)
    G = G / (d := G.diagonal().sqrt()) / d[:, None]
    mine, other = backward_blocks(G, M, 12, 3), backward(G, W @ G, 3)
    assert torch.equal(mine.order, other.order) and torch.equal(mine.kept, other.kept)
    assert torch.allclose(mine.energy, other.energy, rtol=1e-6)


def test_the_curve_ends_in_nothing_and_never_rises():
    G, M, _ = problem(6, 2)
    total = float((G * M).sum())
    curve = backward_blocks(G, M, 6, 1).curve(6, total)
    assert curve[6] == 0 and curve[0] == total and bool((curve.diff() <= 0).all())
    assert curve[1] < total


def test_all_units_can_stay():
    G, M, _ = problem(4, 2)
    path = backward_blocks(G, M, 4, 4)
    assert path.kept.tolist() == [0, 1, 2, 3] and path.order.numel() == path.energy.numel() == 0


def test_dead_and_repeated_units_go_first_and_cost_nothing():
    G, *_ = problem(5, 2)
    A = torch.zeros(14, 10, dtype=torch.float64)  # unit 5 is dead, unit 6 repeats unit 2 with its entries turned
    A[:10] = torch.eye(10)
    A[12:, 4:6] = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    G = A @ G @ A.T
    W = torch.randn(3, 14, generator=seeded(1), dtype=torch.float64)
    path = backward_blocks(G, W.T @ W, 7, 1)
    total = float((W.T @ W * G).sum())
    assert path.order[0] == 5 and path.order[1] in (2, 6)
    assert float(path.energy[:2].sum()) < 1e-6 * total < float(path.energy[2])
    assert torch.isfinite(path.energy).all()


def test_fewer_directions_than_entries_do_no_harm():
    G, M, _ = problem(6, 2, rank=4)
    path = backward_blocks(G, M, 6, 2)
    assert path.kept.numel() == 2 and torch.isfinite(path.energy).all()
    assert loss(G, M, path.kept.tolist(), 2) < 1e-6 * float((G * M).sum())


def test_it_does_not_depend_on_the_scale_of_entries():
    G, M, _ = problem(5, 2)
    d = torch.logspace(-4, 4, 10, dtype=torch.float64)
    scaled = backward_blocks(G * d * d[:, None], M / d / d[:, None], 5, 2)
    plain = backward_blocks(G, M, 5, 2)
    assert torch.equal(scaled.order, plain.order) and torch.allclose(scaled.energy, plain.energy, rtol=1e-6)
