from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from coreprune.errors import InvalidInputError
from coreprune.maths.certificate import Spread, chebyshev, clopper_pearson, relative_error


@settings(max_examples=50)
@given(trials=st.integers(1, 300), share=st.floats(0, 1), delta=st.sampled_from([0.5, 0.05, 0.01, 1e-3, 1e-6]))
def test_clopper_pearson_is_the_quantile_of_the_beta_law(trials, share, delta):
    failures = min(trials, round(share * trials))
    exact = 1.0 if failures == trials else float(beta.ppf(1 - delta, failures + 1, trials - failures))
    assert clopper_pearson(failures, trials, delta) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("failures", [0, 1, 50])
def test_clopper_pearson_of_many_trials(failures):
    exact = float(beta.ppf(0.95, failures + 1, 100_000 - failures))
    assert clopper_pearson(failures, 100_000, 0.05) == pytest.approx(exact, rel=1e-7)


def test_clopper_pearson_covers_as_often_as_it_says():
    """Exact coverage, by adding up the binomial law: P(p ≤ bound) ≥ 1 − δ for every true p."""
    n, delta = 40, 0.1
    bounds = [clopper_pearson(k, n, delta) for k in range(n + 1)]
    assert bounds == sorted(bounds)
    for p in torch.linspace(0.001, 0.999, 200).tolist():
        covered = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if p <= bounds[k])
        assert covered >= 1 - delta - 1e-9


@pytest.mark.parametrize(("failures", "trials"), [(-1, 10), (11, 10), (0, 0), (1, 0)])
def test_counts_that_cannot_be_are_refused(failures, trials):
    with pytest.raises(InvalidInputError, match="count"):
        clopper_pearson(failures, trials, 0.05)


@pytest.mark.parametrize("delta", [0.0, -0.1, 1.5, math.nan], ids=str)
def test_a_confidence_that_is_none_is_refused(delta):
    """Never a probability without its δ: δ = 0 would be answered with a bound below 1, which is wrong."""
    with pytest.raises(InvalidInputError):
        clopper_pearson(3, 100, delta)


@given(mean_square=st.floats(0, 1e6), probability=st.floats(1e-9, 1))
def test_chebyshev_is_its_formula(mean_square, probability):
    epsilon = chebyshev(mean_square, probability)
    assert epsilon**2 * probability == pytest.approx(mean_square, rel=1e-9, abs=1e-300)


def test_chebyshev_is_reached_by_the_worst_law():
    """|error| = ε with probability δ and else 0: then P(|error| ≥ ε) = δ exactly."""
    assert chebyshev(0.25**2 * 0.1, 0.1) == pytest.approx(0.25)


@pytest.mark.parametrize("probability", [0.0, -0.5, 1.1, math.nan], ids=str)
def test_a_probability_that_is_none_is_refused(probability):
    with pytest.raises(InvalidInputError, match="probability"):
        chebyshev(1.0, probability)


def test_relative_error_is_the_root_of_the_sums():
    assert relative_error(torch.tensor([1.0, 3.0]), torch.tensor([60.0, 40.0])) == pytest.approx(0.2)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(2), torch.zeros(2)) == math.inf


def test_the_spread_of_batches_is_that_of_all_vectors():
    a, b = (torch.randn(40, p, dtype=torch.float64) + 1e6 for p in (3, 5))
    found = Spread()
    for part in (a[:1], b[:7], a[1:30], b[7:], a[30:], a[:0]):
        found.add(part)
    assert found.total == pytest.approx(sum(float(x.var(0, unbiased=False).sum()) * len(x) for x in (a, b)), rel=1e-9)


def test_clopper_pearson_leaves_delta_to_the_binomial_tail():
    for failures, trials, delta in ((0, 10, 0.05), (3, 40, 0.01), (17, 60, 0.2)):
        p = clopper_pearson(failures, trials, delta)
        tail = sum(math.comb(trials, i) * p**i * (1 - p) ** (trials - i) for i in range(failures + 1))
        assert tail == pytest.approx(delta, rel=1e-9)
