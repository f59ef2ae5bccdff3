"""Several matrices beside each other: without a copy where they lie so, and never other values; each as it is alone."""

from __future__ import annotations

import pytest
import torch
from helpers import normal, seeded

from coreprune.maths.beside import columns_at, in_parts, rows_at, stacked
from coreprune.maths.gram import Moments
from coreprune.maths.kernel import backwards, backwards_beside
from coreprune.maths.layer import changed
from coreprune.maths.select import at_once, dropped, dropped_beside

WHOLE = torch.arange(4 * 3 * 3, dtype=torch.float64).reshape(4, 3, 3)


def test_what_lies_beside_each_other_is_not_copied():
    found = stacked(list(WHOLE.unbind()))
    assert torch.equal(found, WHOLE) and found.data_ptr() == WHOLE.data_ptr()
    inner = stacked(list(WHOLE[1:3].unbind()))
    assert torch.equal(inner, WHOLE[1:3]) and inner.data_ptr() == WHOLE[1].data_ptr()
    assert stacked([WHOLE[2]]).data_ptr() == WHOLE[2].data_ptr()


@pytest.mark.parametrize(
    "values",
    [
        [WHOLE[1], WHOLE[0]],  # in another order
        [WHOLE[0], WHOLE[2]],  # with something between
        [WHOLE[0].T, WHOLE[1].T],  # each across
        [WHOLE[0], WHOLE[1].clone()],  # elsewhere
        [WHOLE[0], WHOLE[1].T],
        [WHOLE[0], WHOLE[0]],
    ],
)
def test_all_else_is(values):
    assert torch.equal(stacked(values), torch.stack(values))


def test_parts_are_all_of_them_in_order():
    for size in (1, 200, 512, 5000):
        assert [one for part in in_parts(range(7), size) for one in part] == list(range(7))
    assert len(next(iter(in_parts(range(1000), 32)))) == 256


# ---------------------------------------------------------------- rows and columns


@pytest.mark.parametrize("at", [torch.tensor([2, 0]), torch.tensor([[2, 0], [1, 1], [0, 2], [3, 0]])])
def test_rows_and_columns_are_those_of_each(at):
    A = normal(4, 5, 6, seed=1)
    own = at if at.dim() > 1 else at.expand(4, -1)
    assert torch.equal(rows_at(A, at), torch.stack([one[i] for one, i in zip(A, own, strict=True)]))
    assert torch.equal(columns_at(A, at), torch.stack([one[:, i] for one, i in zip(A, own, strict=True)]))


def test_what_changes_is_told_of_each():
    """Where kept units differ: those that go, and all as soon as one kept unit does not stand for itself."""
    kept = torch.tensor([[0, 2, 4], [1, 2, 3]])
    T = normal(2, 5, 3, seed=2)
    for one, S in zip(T, kept, strict=True):
        one[S] = torch.eye(3).double()
    assert changed(T, kept).tolist() == [[1, 3], [0, 4]]
    T[1, 2, 0] = 1e-9
    assert changed(T, kept).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert changed(T, kept[0]).tolist() == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- the greedy


def problems(many: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """G, H = G⁻¹ and E = VᵀV of each, with units of different size."""
    A = normal(many, n, n + 3, seed=seed) * 10 ** (normal(many, n, 1, seed=seed + 1) / 2)
    G, W = A @ A.mT, normal(many, 3, n, seed=seed + 2)
    return G, torch.linalg.inv(G), W.mT @ W


@pytest.mark.parametrize("many,n,k", [(1, 6, 2), (5, 6, 1), (3, 24, 12), (4, 80, 16)])
def test_the_greedy_of_each_is_as_alone(many, n, k):
    _, H, E = problems(many, n, seed=n)
    before = H.clone(), E.clone()
    assert at_once(n, k)
    for b, path in enumerate(dropped_beside(H, E, k)):
        alone = dropped(H[b].clone(), E[b].clone(), k)
        assert torch.equal(path.kept, alone.kept) and torch.equal(path.order, alone.order) and not path.added
        assert torch.allclose(path.energy, alone.energy, rtol=1e-7)
    assert torch.equal(H, before[0]) and torch.equal(E, before[1])


@pytest.mark.parametrize("n,k", [(200, 100), (60, 50), (6, 6)])
def test_what_goes_in_blocks_or_has_candidates_does_not_go_at_once(n, k):
    assert not at_once(n, k)


def test_a_problem_that_lost_its_variance_is_left_to_the_greedy_that_knows_what_to_do():
    _, H, E = problems(3, 6)
    H[1] = torch.ones(6, 6)  # after the first unit nothing is left of the others
    paths = dropped_beside(H, E, 2)
    assert paths[1] is None and None not in (paths[0], paths[2])
    assert torch.equal(paths[2].order, dropped(H[2].clone(), E[2].clone(), 2).order)


@pytest.mark.parametrize("variance", [0, 1e-20])
@pytest.mark.parametrize("constant", [[], [1], [0, 1, 2]])
def test_paths_of_sites_are_as_alone_also_with_units_that_do_not_vary(constant, variance):
    G, _, M = problems(3, 8, seed=5)
    for site in constant:
        G[site, 3], G[site, :, 3], G[site, 3, 3] = 0, 0, variance
    order = torch.randperm(3, generator=seeded(0)).tolist()
    many = [Moments(torch.ones(8).double(), G[b]) for b in order]
    found = backwards_beside(many, [M[b] for b in order], 4)
    for moments, b, path in zip(many, order, found, strict=True):
        alone = backwards(moments, M[b], 4)
        assert torch.equal(path.kept, alone.kept) and torch.equal(path.order, alone.order)
        assert torch.allclose(path.energy, alone.energy, rtol=1e-7)
        assert (3 in path.kept.tolist()) <= (b not in constant)
