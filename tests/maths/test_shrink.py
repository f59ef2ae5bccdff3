"""The shrinkage against its formula, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import seeded

from coreprune.maths.shrink import shrunk


def samples(count, p, seed=0):
    g = seeded(seed)
    return torch.randn(count, p, generator=g, dtype=torch.float64) @ torch.randn(p, p, generator=g, dtype=torch.float64)


def covariance(x):
    return torch.cov(x.T, correction=0)


def by_formula(S, N):
    d = np.sqrt(np.diag(S))
    R = S / np.outer(d, d)
    p = len(R)
    square, trace = np.trace(R @ R), np.trace(R)
    rho = ((1 - 2 / p) * square + trace**2) / ((N + 1 - 2 / p) * (square - trace**2 / p))
    rho = min(rho, 1.0)
    return ((1 - rho) * R + rho * np.eye(p)) * np.outer(d, d)


@pytest.mark.parametrize("count,p", [(3, 5), (20, 5), (8, 30), (500, 2), (4, 3)])
def test_it_is_the_formula(count, p):
    S = covariance(samples(count, p))
    assert np.allclose(shrunk(S, count).numpy(), by_formula(S.numpy(), count), rtol=1e-12, atol=1e-12)


def test_many_samples_are_left_as_they_are():
    S = covariance(samples(50, 6))
    gaps = [float((shrunk(S, count) - S).abs().max()) for count in (10, 1000, 10**6, 10**9)]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 1e-3 and gaps[-1] < 1e-7


@pytest.mark.parametrize("count", [2, 3, 10])
def test_few_samples_give_a_definite_matrix_with_the_same_variances(count):
    S = covariance(samples(count, 20))
    assert float(torch.linalg.eigvalsh(S)[0]) < 1e-9
    result = shrunk(S, count)
    assert float(torch.linalg.eigvalsh(result)[0]) > 1e-3 and torch.equal(result.diagonal(), S.diagonal())


def test_it_does_not_depend_on_scales_and_changes_nothing_in_place():
    S = covariance(samples(9, 6))
    before, d = S.clone(), torch.tensor([1e-6, 1, 3, 1e5, 2, 0.1]).double()
    assert torch.allclose(shrunk(S * d * d[:, None], 9), shrunk(S, 9) * d * d[:, None], rtol=1e-10)
    assert torch.equal(S, before)


def test_it_is_nearer_to_the_truth_than_the_samples():
    before, after = 0.0, 0.0
    for seed in range(20):
        x = samples(1000, 12, seed)
        truth, few = covariance(x), covariance(x[:10])
        before += float((few - truth).norm())
        after += float((shrunk(few, 10) - truth).norm())
    assert after < 0.9 * before


def test_dead_entries_stay_dead_and_do_not_count():
    S = covariance(samples(9, 4))
    wide = torch.zeros(7, 7, dtype=torch.float64)
    wide[:4, :4] = S
    result = shrunk(wide, 9)
    assert torch.allclose(result[:4, :4], shrunk(S, 9), rtol=1e-12) and not result[4:].any() and not result[:, 4:].any()


@pytest.mark.parametrize(
    "S", [torch.zeros(3, 3), torch.eye(3), torch.ones(1, 1), torch.diag(torch.tensor([1.0, 0, 0]))], ids=range(4)
)
def test_where_there_is_no_correlation_there_is_nothing_to_shrink(S):
    assert torch.equal(shrunk(S, 2), S)
