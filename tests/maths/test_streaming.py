from __future__ import annotations

import math

import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st

from coreprune.errors import InvalidInputError
from coreprune.maths.streaming import WIDE, Stream, add_squared, finite, mirrored, squared


def sample(count: int, n: int = 4, seed: int = 0) -> torch.Tensor:
    x = torch.randn(count, n, generator=seeded(seed), dtype=torch.float64)
    return x @ torch.randn(n, n, generator=seeded(seed + 1), dtype=torch.float64) + 5


def moments(batches, n: int = 4):
    stream = Stream(n)
    for batch in batches:
        stream.add(batch)
    return stream.moments()


def one_shot(x: torch.Tensor):
    c = x - x.mean(0)
    return x.mean(0), c.T @ c / len(x)


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any), seed=st.integers(0, 1000))
def test_batches_equal_one_shot(sizes, seed):
    x = sample(sum(sizes), seed=seed)
    for found, exact in zip(moments(x.split(sizes)), one_shot(x), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)


@given(order=st.permutations(range(8)))
def test_order_of_the_batches_does_not_matter_but_for_rounding(order):
    batches = sample(200).split([1, 50, 3, 70, 6, 20, 49, 1])
    for found, exact in zip(moments([batches[i] for i in order]), moments(batches), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


def test_a_large_mean_costs_no_digits():
    """Sums of squares would lose all of them: the mean is 10⁸ times the spread."""
    x = sample(1000) + 1e8
    torch.testing.assert_close(moments(x.split(10))[1], one_shot(x - 1e8)[1], rtol=1e-6, atol=1e-6)


def test_covariance_is_symmetric_and_positive_semi_definite():
    _, C = moments(sample(6, 20).split(2), 20)
    torch.testing.assert_close(C, C.T, rtol=0, atol=1e-12)
    assert float(torch.linalg.eigvalsh(C)[0]) >= -1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_added_up_in_float64(dtype):
    x = torch.ones(3000, 2, dtype=dtype)
    x[::2] = -1
    mean, C = moments(x.split(1), 2)
    assert mean.dtype == C.dtype == torch.float64
    assert mean.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert C.tolist() == [pytest.approx([1, 1])] * 2


def test_batches_are_left_alone_and_not_held():
    x = sample(10)
    twin = x.clone()
    stream = Stream(4)
    stream.add(x.requires_grad_())
    mean, _ = stream.moments()
    assert torch.equal(x.detach(), twin)
    assert not mean.requires_grad
    mean.zero_()
    assert float(stream.moments()[0].abs().min()) > 0


def test_memory_does_not_grow():
    stream = Stream(4)
    for batch in sample(100).split(1):
        stream.add(batch)
    assert stream.count == 100
    assert sum(v.numel() for v in vars(stream).values() if isinstance(v, torch.Tensor)) == 4 + 16


def test_nothing_seen_is_refused():
    with pytest.raises(InvalidInputError, match="no inputs"):
        Stream(3).moments()
    stream = Stream(3)
    stream.add(torch.zeros(0, 3))
    with pytest.raises(InvalidInputError, match="no inputs"):
        stream.moments()


@pytest.mark.parametrize("features", [WIDE - 1, WIDE, 2 * WIDE + 3])
def test_squares_are_summed_up_in_strips(features):
    """In place, strip by strip, what is below the diagonal left alone until all is mirrored."""
    parts = [torch.randn(7, features, generator=seeded(s), dtype=torch.float64) for s in range(2)]
    total = torch.full((features, features), math.nan, dtype=torch.float64)
    for beta, part in enumerate(parts):
        add_squared(total, part, beta=beta)
    assert torch.equal(mirrored(total), total.T)
    torch.testing.assert_close(total, sum(part.T @ part for part in parts))
    assert bool(total.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_batches_of_many_features(dtype):
    """More batches than features: the rank-one terms that the scatter lacks are added on the way, and all at the end."""
    stream, x = Stream(WIDE), torch.randn(3 * (WIDE + 5), WIDE, generator=seeded(1), dtype=torch.float64) + 3
    for batch in x.to(dtype).split(3):
        mean = batch.mean(0)
        stream._take(batch - mean, mean.double())
    mean, covariance = stream.moments()
    assert covariance.dtype == dtype and mean.dtype == torch.float64
    slack = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(mean, x.mean(0), rtol=slack, atol=slack)
    exact = torch.cov(x.T, correction=0).to(dtype)
    torch.testing.assert_close(covariance, exact, rtol=0, atol=slack * float(exact.max()))
    again = stream.moments()[1]
    assert torch.equal(again, covariance) and torch.equal(covariance, covariance.T)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad):
    x = sample(10)
    x[3, 2] = bad
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        moments(x.split(5))


@pytest.mark.parametrize("n", [1, 511, 512, 1027])
def test_a_square_in_halves_is_the_product(n):
    A = torch.randn(5, n, generator=seeded(n), dtype=torch.float64)
    found = squared(A)
    torch.testing.assert_close(found, A.T @ A, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, found.T)


def test_a_scatter_about_a_place_beside_the_mean_counts_all_the_same():
    """Centred in low precision, a batch's scatter is about its mean less a little: by the definition, sum by sum."""
    x = sample(40) + 5
    stream = Stream(x.shape[1])
    for batch in x.split(16):
        mean, off = batch.mean(0), 0.1 * torch.randn(x.shape[1], generator=seeded(3), dtype=torch.float64)
        from_near = batch - (mean - off)
        stream._take(from_near, mean, off)
    mean = x.mean(0)
    torch.testing.assert_close(stream.moments()[0], mean)
    torch.testing.assert_close(stream.moments()[1], (x - mean).T @ (x - mean) / len(x))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_whatever_else_is_there(bad):
    finite(torch.tensor([1.0, -1.0]))
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        finite(torch.tensor([1.0, bad, 2.0]))


def test_several_streams_beside_each_other_are_each_as_alone():
    x = sample(60, 6).unflatten(1, (2, 3)).transpose(0, 1)  # two of three features
    together = Stream(3, 2)
    for batch in x.split([1, 40, 19], 1):
        together.add(batch)
    mean, covariance = together.moments()
    for i in range(2):
        alone = moments(x[i].split([1, 40, 19]), 3)
        torch.testing.assert_close((mean[i], covariance[i]), alone, rtol=1e-12, atol=1e-12)
