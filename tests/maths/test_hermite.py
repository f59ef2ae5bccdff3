"""Coefficients, tails and second moments against their definitions, by integration that shares no code with them."""

from __future__ import annotations

import math
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from helpers import CASES, Case
from scipy.special import eval_hermitenorm
from torch import Tensor

from coreprune.maths.activation import activation
from coreprune.maths.hermite import derivative, expand, second_moments

each = pytest.mark.parametrize("case", CASES, ids=str)
smooth = pytest.mark.parametrize("case", [c for c in CASES if c.phi.spline is None], ids=str)
splines = pytest.mark.parametrize("case", [c for c in CASES if c.phi.spline is not None], ids=str)
TERMS = 24
PLACES = list(product([-30.0, -3.0, 0.0, 0.4, 30.0], [1e-6, 0.1, 1.0, 10.0, 100.0]))
MEAN = torch.tensor([m for m, _ in PLACES], dtype=torch.float64)
STD = torch.tensor([s for _, s in PLACES], dtype=torch.float64)


def nodes(case: Case, mean: float, std: float, count: int = 20) -> tuple[Tensor, Tensor]:
    """z and weights for E f(z), f made of φ(μ + s z): panels graded geometrically towards every knot and 0."""
    ends = {-13.0, 13.0} | {float(v) for v in np.linspace(-13, 13, 14)}
    for point in {0.0, *case.phi.knots, *case.phi.extrema}:
        at = (point - mean) / std
        near = [at] + [at + sign * case.phi.scale / std * 2.0**j for j in range(-3, 8) for sign in (-1, 1)]
        ends |= {v for v in near if -13 < v < 13}
    grid = np.array(sorted(ends))
    x, w = np.polynomial.legendre.leggauss(count)
    half = np.diff(grid) / 2
    z = ((grid[1:] + grid[:-1]) / 2)[:, None] + half[:, None] * x
    weight = half[:, None] * w * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return torch.from_numpy(z.ravel()), torch.from_numpy(weight.ravel())


def he(k: int, z: Tensor) -> Tensor:
    return torch.from_numpy(eval_hermitenorm(k, z.numpy())) / math.sqrt(math.factorial(k))


def by_definition(case: Case, mean: float, std: float) -> tuple[Tensor, float]:
    """c_0 … c_K and Var φ(μ + s z)."""
    z, weight = nodes(case, mean, std)
    h = case.reference(mean + std * z)
    centre = (h * weight).sum()
    c = torch.stack([(he(k, z) * (h - (centre if k else 0)) * weight).sum() for k in range(TERMS + 1)])
    return c, float(((h - centre).square() * weight).sum())


@each
def test_coefficients_and_variance_are_their_definitions(case):
    """Also where s is a millionth of μ and where φ is a step to it; relative to the unit's own spread."""
    found = expand(case.phi, MEAN, STD, TERMS)
    for i, (mean, std) in enumerate(PLACES):
        if case.phi.name == "binary_step" and abs(mean) > 0 and std < 1e-2:
            continue  # constant: below
        c, variance = by_definition(case, mean, std)
        size = abs(float(c[0]))
        slack = 1e-9 * math.sqrt(variance) + 1e-13 * size + 1e-15
        assert float((found.coefficients[i] - c).abs().max()) <= slack, (mean, std)
        assert abs(float(found.variance[i]) - variance) <= 1e-8 * variance + (1e-13 * size) ** 2 + 1e-26, (mean, std)


@each
def test_tail_is_what_the_terms_leave_out(case):
    mean, std = (
        torch.tensor([-1.0, 0.0, 0.3, 2.0], dtype=torch.float64),
        torch.tensor([0.5, 1.0, 4.0, 1.0], dtype=torch.float64),
    )
    for terms in (1, 2, 5, TERMS):
        found = expand(case.phi, mean, std, terms)
        assert found.coefficients.shape == (4, terms + 1)
        for i in range(4):
            c, variance = by_definition(case, float(mean[i]), float(std[i]))
            left = max(0.0, variance - float(c[1 : terms + 1].square().sum()))
            assert float(found.tail[i].square()) == pytest.approx(left, abs=3e-12 * variance)


@splines
def test_closed_form_agrees_with_the_quadrature(case):
    """The same function without its spline goes through the other branch."""
    bare = type(case.phi)(case.name, case.reference, 1.0, knots=case.phi.knots, scale=case.phi.scale)
    closed, summed = expand(case.phi, MEAN, STD), expand(bare, MEAN, STD)
    slack = 1e-9 * closed.variance.sqrt() + 1e-13 * closed.mean.abs() + 1e-15
    assert bool(((closed.coefficients - summed.coefficients).abs() <= slack[:, None]).all())


MPMATH = {
    "tanh": mpmath.tanh,
    "gelu": lambda a: a * mpmath.ncdf(a),
    "silu": lambda a: a / (1 + mpmath.exp(-a)),
    "mish": lambda a: a * mpmath.tanh(mpmath.log1p(mpmath.exp(a))),
}


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("tanh", 0.3, 1e-6), ("gelu", -30.0, 100.0), ("mish", -2.0, 1.0), ("silu", 0.0, 100.0),],
)  # fmt: skip
def test_smooth_quadrature_against_arbitrary_precision(name, mean, std):
    with mpmath.workdps(25):
        near = [(-mean + b) / std for b in (-20, -5, -2, 0, 2, 5, 20)]
        ends = sorted({-13.0, -6.0, 0.0, 6.0, 13.0, *(v for v in near if -13 < v < 13)})

        def moment(k):
            def density(z):
                polynomial = mpmath.hermite(k, z / mpmath.sqrt(2)) / mpmath.sqrt(
                    mpmath.mpf(2) ** k * mpmath.factorial(k)
                )
                return MPMATH[name](mean + std * z) * polynomial * mpmath.npdf(z)

            return float(mpmath.quad(density, ends, maxdegree=5))

        exact = {k: moment(k) for k in (0, 5)}
    found = expand(
        activation(name), torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64)
    )
    sigma = float(found.variance.sqrt())
    for k, value in exact.items():
        assert abs(float(found.coefficients[0, k]) - value) <= 1e-9 * sigma + 1e-14 * (1 + abs(exact[0])), k


@each
def test_a_constant_unit_is_its_value(case):
    mean = torch.tensor([-3.5, -1.0, 0.0, 0.7, 5.0], dtype=torch.float64)
    found = expand(case.phi, mean, torch.zeros(5))
    torch.testing.assert_close(found.mean, case.reference(mean), rtol=1e-12, atol=1e-14)
    assert float(found.variance.abs().max()) == 0
    assert bool(torch.isfinite(found.coefficients).all())


@each
def test_second_moments_are_their_definitions(case):
    moments = second_moments(case.phi, MEAN, STD)
    for i, (mean, std) in enumerate(PLACES):
        z, weight = nodes(case, mean, std)
        square = case.reference(mean + std * z).square() * weight
        size = float(square.sum()) + 1e-11
        for power, found in enumerate(moments):
            assert abs(float(found[i]) - float((square * z**power).sum())) <= 1e-11 * size, (
                mean,
                std,
                power,
            )  # φ near a knot is only known to 1e-16


@pytest.mark.parametrize("case", [c for c in CASES if math.isfinite(c.phi.lipschitz)], ids=str)
def test_derivative_is_the_slope_in_the_mean(case):
    """E φ'(a) = ∂μ E φ(a), and higher coefficients alike: compared with central differences of the expansion."""
    mean, std = torch.tensor([-1.0, 0.1, 2.0], dtype=torch.float64), torch.tensor([0.7, 1.0, 3.0], dtype=torch.float64)
    h = 1e-4
    found = derivative(expand(case.phi, mean, std).coefficients, std)
    slope = (expand(case.phi, mean + h, std).coefficients - expand(case.phi, mean - h, std).coefficients) / (2 * h)
    torch.testing.assert_close(found[:, :6], slope[:, :6], rtol=2e-7, atol=2e-7)


def test_relu_is_the_formula_of_the_note():
    """c_0 = μΦ(μ/s) + s·pdf(μ/s), c_1 = sΦ(μ/s), c_k = s·pdf(z₀)·He_{k−2}(z₀)/√k!, z₀ = −μ/s."""
    mean, std = (
        torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64),
        torch.tensor([1.0, 2.0, 0.1, 5.0], dtype=torch.float64),
    )
    z = -mean / std
    pdf, cdf = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi), 0.5 * torch.erfc(z / math.sqrt(2))
    columns = [mean * cdf + std * pdf, std * cdf]
    columns += [
        std * pdf * torch.from_numpy(eval_hermitenorm(k - 2, z.numpy())) / math.sqrt(math.factorial(k))
        for k in range(2, TERMS + 1)
    ]
    torch.testing.assert_close(
        expand(activation("relu"), mean, std, TERMS).coefficients, torch.stack(columns, 1), rtol=1e-10, atol=1e-14
    )


@each
def test_blocks_and_order_of_units_do_not_matter(case):
    """More units than are worked on at a time; each one as if it were alone."""
    g = torch.Generator().manual_seed(0)
    mean, std = torch.randn(700, generator=g).double(), torch.rand(700, generator=g).double() + 0.1
    whole = expand(case.phi, mean, std)
    picks = torch.tensor([0, 255, 256, 511, 512, 699])
    alone = expand(case.phi, mean[picks], std[picks])
    torch.testing.assert_close(whole.coefficients[picks], alone.coefficients, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(whole.tail[picks], alone.tail, rtol=1e-5, atol=1e-7)


@each
def test_gradient_in_mean_and_std_is_the_slope(case):
    """The descent of `refined` goes through the expansion."""
    if case.name == "binary_step":
        pytest.skip("its quadrature of the variance has no slope, and `refined` does not descend on it")
    mean = torch.tensor([-0.4, 0.9], dtype=torch.float64, requires_grad=True)
    std = torch.tensor([0.8, 1.7], dtype=torch.float64, requires_grad=True)
    expand(case.phi, mean, std, 6).coefficients.sum().backward()
    h = 1e-5
    with torch.no_grad():
        up, down = (expand(case.phi, mean + e, std, 6).coefficients.sum(1) for e in (h, -h))
        torch.testing.assert_close(mean.grad, (up - down) / (2 * h), rtol=1e-6, atol=1e-7)
        up, down = (expand(case.phi, mean, std + e, 6).coefficients.sum(1) for e in (h, -h))
        torch.testing.assert_close(std.grad, (up - down) / (2 * h), rtol=1e-6, atol=1e-7)
