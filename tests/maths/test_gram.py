"""Means and covariances of Gaussian units against closed kernels, quadrature by conditioning and Monte Carlo."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from helpers import CASES, Case, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.activation import Activation, activation
from coreprune.maths.gram import correlation, cross_covariance, gaussian_moments
from coreprune.maths.hermite import Expansion, expand

each = pytest.mark.parametrize("case", CASES, ids=str)
smooth = pytest.mark.parametrize("case", [c for c in CASES if not c.phi.knots], ids=str)
PAIRS = 1000
REACH = 9.0  # P(|z| > 9) < 3e-19


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def random_covariance(n: int, rank: int, seed: int = 0) -> Tensor:
    A = normal(seed, n, rank)
    return A @ A.T


# --- 1,000 random pairs of every activation against two-dimensional quadrature ---------------------------------------


def pairs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """μ (2, N), s (2, N), ρ (N,): correlations up to ±0.9999, widths from a twentieth to three of φ's lengths."""
    g = seeded(5)
    mean = 6 * torch.rand(2, PAIRS, generator=g, dtype=torch.float64) - 3
    std = 0.05 * 60 ** torch.rand(2, PAIRS, generator=g, dtype=torch.float64)
    gap = 10 ** (-4 * torch.rand(PAIRS, generator=g, dtype=torch.float64))
    sign = 1 - 2.0 * torch.randint(2, (PAIRS,), generator=g)
    return case.phi.scale * mean, case.phi.scale * std, sign * (1 - gap)


def panels(ends: Tensor, count: int = 10) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes between sorted ends, (N, nodes), with weights that hold the normal density."""
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(count))
    half, middle = ends.diff(dim=1) / 2, (ends[:, 1:] + ends[:, :-1]) / 2
    z = (middle[..., None] + half[..., None] * x).flatten(1)
    return z, (half[..., None] * w).flatten(1) * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


def knotted(phi: Activation, mean: Tensor, std: Tensor) -> list[Tensor]:
    return [((t - mean) / std).clamp(-REACH, REACH) for t in phi.knots]


def grid(rows: int) -> list[Tensor]:
    return [torch.full((rows,), float(v), dtype=torch.float64) for v in np.linspace(-REACH, REACH, 8)]


def trapezoid(rows: int, count: int = 111) -> tuple[Tensor, Tensor]:
    """Equidistant nodes: for analytic φ the error falls exponentially with their distance."""
    z = torch.linspace(-REACH, REACH, count, dtype=torch.float64)
    w = torch.exp(-z.square() / 2)
    return z.expand(rows, -1), (w / w.sum()).expand(rows, -1)


def alone(case: Case, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """E h and Var h of single units."""
    if case.phi.knots:
        z, w = panels(torch.stack([*grid(len(mean)), *knotted(case.phi, mean, std)], 1).sort(1).values)
    else:
        z, w = trapezoid(len(mean))
    h = case.reference(mean[:, None] + std[:, None] * z)
    centre = (w * h).sum(1)
    return centre, (w * (h - centre[:, None]).square()).sum(1)


def by_conditioning(case: Case, mean: Tensor, std: Tensor, rho: Tensor) -> Tensor:
    """Cov(φ(a_0), φ(a_1)) = E[(φ(a_0) − E h_0) E[φ(a_1) − E h_1 | a_0]], both integrals cut at the knots.

    The inner one bends over a width √(1 − ρ²)/|ρ| around a knot of the second unit: panels are graded there.
    """
    phi, narrow = case.phi, (1 - rho.square()).sqrt()
    centres = [alone(case, mean[i], std[i])[0] for i in (0, 1)]
    found = []
    for rows in torch.arange(len(rho)).split(25):
        (m0, m1), (s0, s1), r, width = mean[:, rows], std[:, rows], rho[rows], narrow[rows]
        if phi.knots:
            ends = [*grid(len(rows)), *knotted(phi, m0, s0)]
            for t in phi.knots:
                at = (t - m1) / (s1 * r)
                ends += [(at + sign * b * width / r).clamp(-REACH, REACH) for b in (0, 3, 7) for sign in (-1, 1)]
            z, w = panels(torch.stack(ends, 1).sort(1).values)
        else:
            z, w = trapezoid(len(rows))
        inner_mean = m1[:, None] + (s1 * r)[:, None] * z
        inner_std = (s1 * width)[:, None].expand_as(z)
        flat_mean, flat_std = inner_mean.flatten(), inner_std.flatten()
        if phi.knots:
            own = torch.stack([*grid(flat_mean.numel()), *knotted(phi, flat_mean, flat_std)], 1).sort(1).values
            y, v = panels(own)
        else:
            y, v = trapezoid(flat_mean.numel())
        inner = (v * case.reference(flat_mean[:, None] + flat_std[:, None] * y)).sum(1).reshape(z.shape)
        outer = case.reference(m0[:, None] + s0[:, None] * z) - centres[0][rows, None]
        found.append((w * outer * (inner - centres[1][rows, None])).sum(1))
    return torch.cat(found)


@cache
def found_and_true(name: str):
    """The library's moments of 2,000 units in independent pairs, and the truth of them."""
    case = next(c for c in CASES if str(c) == name)
    mean, std, rho = pairs(case)
    C = torch.diag(std.square().T.flatten())
    even = torch.arange(0, 2 * PAIRS, 2)
    C[even, even + 1] = C[even + 1, even] = rho * std[0] * std[1]
    moments = gaussian_moments(case.phi, mean.T.flatten(), C, 24)
    exact = [alone(case, mean[i], std[i]) for i in (0, 1)]
    return moments, exact, by_conditioning(case, mean, std, rho)


@each
def test_thousand_random_pairs_against_quadrature(case):
    """Within 1e-6 of the standard deviations, or within the truncation bound of the pair: 2 τ_i τ_j |ρ|^{K+1}."""
    mean, std, rho = pairs(case)
    moments, exact, covariance = found_and_true(str(case))
    sigma = [variance.sqrt() for _, variance in exact]
    size = [m.abs() + 1e-3 * case.phi.scale for m, _ in exact]
    for i, (true_mean, true_variance) in enumerate(exact):
        assert bool(((moments.mean[i::2] - true_mean).abs() <= 1e-7 * sigma[i] + 1e-12 * size[i]).all())
        off = (moments.covariance.diagonal()[i::2] - true_variance).abs()
        assert bool((off <= 1e-6 * true_variance + 1e-12 * size[i].square()).all())
    off = (moments.covariance.diagonal(1)[::2] - covariance).abs()
    tau = [expand(case.phi, mean[i], std[i], 24).tail for i in (0, 1)]
    bound = 2 * tau[0] * tau[1] * rho.abs() ** 25
    assert bool((off <= torch.maximum(1e-6 * sigma[0] * sigma[1], bound) + 1e-12 * size[0] * size[1]).all())
    told = moments.covariance.diagonal().sqrt()  # relative to these the truncation is reported
    reported = (moments.truncation + 1e-6) * told[::2] * told[1::2]
    assert bool((off <= reported + 1e-12 * size[0] * size[1]).all())


@each
def test_independent_units_stay_independent(case):
    moments, _, _ = found_and_true(str(case))
    off = moments.covariance - torch.diag(moments.covariance.diagonal())
    off.diagonal(1)[::2] = 0
    off.diagonal(-1)[::2] = 0
    assert float(off.abs().max()) == 0


@pytest.mark.parametrize("case", [c for c in CASES if c.phi.spline is None and not c.phi.knots], ids=str)
def test_smooth_activations_lose_little(case):
    """Half as wide as φ bends: 24 terms are all there is, for every correlation."""
    s = torch.full((40,), 0.5 * case.phi.scale, dtype=torch.float64)
    found = expand(case.phi, torch.linspace(-3, 3, 40, dtype=torch.float64) * case.phi.scale, s)
    assert float((found.tail / found.variance.sqrt()).max()) < 1e-5


# --- closed kernels --------------------------------------------------------------------------------------------------


def pair_of(phi: Activation, s: tuple[float, float], rho: float):
    C = torch.tensor([[s[0] ** 2, rho * s[0] * s[1]], [rho * s[0] * s[1], s[1] ** 2]], dtype=torch.float64)
    moments = gaussian_moments(phi, torch.zeros(2, dtype=torch.float64), C)
    return float(moments.covariance[0, 1] + moments.mean[0] * moments.mean[1]), moments


RHOS = [-1.0, -0.9, -0.5, -0.1, 0.0, 0.3, 0.7, 0.95, 1.0]


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("s", [(1.0, 1.0), (0.01, 30.0)], ids=str)
def test_relu_is_the_arc_cosine_kernel(rho, s):
    """E (u)₊(v)₊ = s_u s_v (sin θ + (π − θ) cos θ)/(2π) [Cho & Saul]."""
    found, moments = pair_of(activation("relu"), s, rho)
    theta = math.acos(rho)
    exact = s[0] * s[1] * (math.sin(theta) + (math.pi - theta) * rho) / (2 * math.pi)
    sigma = math.sqrt(float(moments.covariance.diagonal().prod()))
    assert abs(found - exact) <= (1e-6 + moments.truncation) * sigma


@pytest.mark.parametrize("rho", RHOS)
def test_step_is_the_arc_sine_law(rho):
    """P(u > 0, v > 0) = 1/4 + arcsin ρ/(2π) (Sheppard)."""
    found, moments = pair_of(activation("binary_step"), (1.0, 3.0), rho)
    assert abs(found - (0.25 + math.asin(rho) / (2 * math.pi))) <= (1e-6 + moments.truncation) * 0.25


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("s", [(0.2, 0.7), (1.0, 2.0)], ids=str)
def test_erf_is_the_arc_sine_kernel(rho, s):
    """E erf(u) erf(v) = 2/π arcsin(2C_uv / √((1 + 2C_uu)(1 + 2C_vv))) [Williams]; erf is put in as a new activation."""
    phi = Activation("erf", torch.erf, lipschitz=2 / math.sqrt(math.pi))
    found, moments = pair_of(phi, s, rho)
    inside = 2 * rho * s[0] * s[1] / math.sqrt((1 + 2 * s[0] ** 2) * (1 + 2 * s[1] ** 2))
    exact = 2 / math.pi * math.asin(inside)
    assert abs(found - exact) <= 1e-6 * math.sqrt(float(moments.covariance.diagonal().prod())) + moments.truncation


@pytest.mark.parametrize("rho", RHOS)
def test_gaussian_bump_has_a_closed_kernel(rho):
    """E exp(−u² − v²) = det(I + 2C)^{−1/2}."""
    C = torch.tensor([[0.25, 0.35 * rho], [0.35 * rho, 0.49]], dtype=torch.float64)
    found, moments = pair_of(activation("gaussian"), (0.5, 0.7), rho)
    exact = float(torch.linalg.det(torch.eye(2) + 2 * C) ** -0.5)
    assert abs(found - exact) <= 1e-6 * float(moments.covariance[0, 0]) + moments.truncation


def test_linear_units_keep_their_law():
    mean, C = normal(0, 7), random_covariance(7, 3)
    moments = gaussian_moments(activation("identity"), mean, C)
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.covariance, C, rtol=1e-12, atol=1e-12)
    assert moments.truncation == 0


# --- whole layers ----------------------------------------------------------------------------------------------------


@each
def test_whole_layer_against_monte_carlo(case):
    """50,000 samples, 12 units: 90 statistics; 6 σ each is a false alarm in 10⁷ runs, were they Gaussian."""
    mean, C = 0.5 * normal(1, 12), random_covariance(12, 5, 2) / 5
    moments = gaussian_moments(case.phi, mean, C)
    L = torch.linalg.cholesky(C + 1e-12 * torch.eye(12))
    count = 50_000
    h = case.reference(mean + normal(3, count, 12) @ L.T)
    spread = h.var(0).sqrt()
    assert bool(((h.mean(0) - moments.mean).abs() <= 6 * spread / count**0.5 + 1e-9).all())
    centred = h - moments.mean
    found = centred.T @ centred / count
    noise = ((centred.square().T @ centred.square()) / count - found.square()).clamp(min=0).sqrt() / count**0.5
    allowed = 6 * noise + moments.truncation * torch.outer(spread, spread) + 1e-9
    assert bool(((found - moments.covariance).abs() <= allowed).all())


@each
@pytest.mark.parametrize("rank", [2, 30])
def test_positive_semi_definite_with_exact_diagonal(case, rank):
    """Also where a handful of features make all correlations large, and the series is cut after four terms."""
    mean, C = normal(1, 30), random_covariance(30, rank, 2) / rank
    for terms in (4, 24):
        G = gaussian_moments(case.phi, mean, C, terms).covariance
        torch.testing.assert_close(G, G.T, rtol=1e-13, atol=1e-15)
        assert float(torch.linalg.eigvalsh(G)[0]) >= -1e-12 * float(G.diagonal().max())
        exact = expand(case.phi, mean, C.diagonal().sqrt()).variance
        torch.testing.assert_close(G.diagonal(), exact, rtol=1e-9, atol=1e-14)


@each
def test_permuting_the_units_permutes_the_moments(case):
    mean, C = normal(1, 150), random_covariance(150, 20, 2) / 20  # more than a block
    order = torch.randperm(150, generator=seeded(3))
    whole = gaussian_moments(case.phi, mean, C)
    shuffled = gaussian_moments(case.phi, mean[order], C[order][:, order])
    torch.testing.assert_close(shuffled.mean, whole.mean[order], rtol=1e-12, atol=1e-14)
    size = float(whole.covariance.diagonal().max())
    torch.testing.assert_close(shuffled.covariance, whole.covariance[order][:, order], rtol=1e-9, atol=1e-10 * size)


@pytest.mark.parametrize("case", [c for c in CASES if c.phi.homogeneous], ids=str)
@settings(max_examples=25)
@given(scale=st.floats(1e-6, 1e6))
def test_scaling_a_homogeneous_layer_scales_its_moments(case, scale):
    mean, C = normal(1, 6), random_covariance(6, 3, 2)
    plain, scaled = (gaussian_moments(case.phi, c * mean, c * c * C) for c in (1.0, scale))
    torch.testing.assert_close(scaled.mean / scale, plain.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scaled.covariance / scale**2, plain.covariance, rtol=1e-7, atol=1e-9)


@each
def test_rectangles_agree_with_the_square(case):
    mean, C = normal(1, 20), random_covariance(20, 6, 2) / 6
    std = C.diagonal().sqrt()
    whole, rho = expand(case.phi, mean, std), correlation(C, std, std)
    square, _ = cross_covariance(whole, whole, rho.clone(), symmetric=True)
    left = Expansion(whole.coefficients[:7], whole.tail[:7])
    right = Expansion(whole.coefficients[7:], whole.tail[7:])
    part, _ = cross_covariance(left, right, rho[:7, 7:].clone(), block=3)
    torch.testing.assert_close(part, square[:7, 7:], rtol=1e-12, atol=1e-14)


# --- special units ---------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_perfectly_correlated_units(case, sign):
    """A copy has the unit's own variance; and a mirrored pair the covariance of φ(z) with φ(−z)."""
    v = torch.tensor([1.0, sign], dtype=torch.float64)
    mean = torch.zeros(2, dtype=torch.float64)
    moments = gaussian_moments(case.phi, mean, torch.outer(v, v))
    z, w = panels(torch.tensor([sorted({*np.linspace(-9, 9, 37).tolist(), *case.phi.knots})], dtype=torch.float64), 20)
    left, right = case.reference(z) - moments.mean[0], case.reference(sign * z) - moments.mean[1]
    exact = float((w * left * right).sum())
    slack = (1e-6 + moments.truncation) * float(moments.covariance.diagonal().max())
    assert abs(float(moments.covariance[0, 1]) - exact) <= slack
    if sign > 0:
        torch.testing.assert_close(moments.covariance[0, 1], moments.covariance[0, 0], rtol=1e-6, atol=1e-12)


@each
def test_constant_units_have_no_covariance_with_anything(case):
    mean = torch.tensor([0.3, 1.7, -0.8], dtype=torch.float64)
    C = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.5, 0.0, 2.0]], dtype=torch.float64)
    moments = gaussian_moments(case.phi, mean, C)
    assert float(moments.covariance[1].abs().max()) == 0
    assert float(moments.covariance[:, 1].abs().max()) == 0
    torch.testing.assert_close(moments.mean[1], case.reference(mean[1:2])[0], rtol=1e-12, atol=1e-14)


def test_dead_units_are_zero():
    mean = torch.tensor([-60.0, 0.5], dtype=torch.float64)
    moments = gaussian_moments(activation("relu"), mean, torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64))
    assert float(moments.mean[0].abs()) <= 1e-300
    assert float(moments.covariance[0].abs().max()) <= 1e-150
    assert math.isfinite(moments.truncation)


def test_correlations_a_rounding_above_one_are_taken_for_one():
    """As P Σ Pᵀ has them when it is computed in float32."""
    P = torch.randn(60, 3, generator=seeded(0))
    P[30:] = P[:30] * 1.37
    C = P @ P.T
    G = gaussian_moments(activation("relu"), torch.zeros(60), C).covariance
    assert bool(torch.isfinite(G).all())
    assert float(torch.linalg.eigvalsh(G)[0]) >= -1e-5 * float(G.diagonal().max())


# --- precision, refusals ---------------------------------------------------------------------------------------------


@each
def test_float32_agrees_with_float64_and_stays_float32(case):
    mean, C = normal(1, 40), random_covariance(40, 20, 2) / 20
    double = gaussian_moments(case.phi, mean, C, 24)
    size = float(double.covariance.diagonal().max())
    single = gaussian_moments(case.phi, mean.float(), C.float(), 24)
    torch.testing.assert_close(single.covariance.double(), double.covariance, rtol=1e-4, atol=2e-6 * max(1.0, size))
    single = gaussian_moments(case.phi, mean.float(), C.float())  # with as many terms as it finds enough
    assert single.mean.dtype == single.covariance.dtype == torch.float32
    assert double.mean.dtype == double.covariance.dtype == torch.float64
    assert single.covariance.device == C.device
    torch.testing.assert_close(single.mean.double(), double.mean, rtol=1e-5, atol=1e-6)
    spread = double.covariance.diagonal().sqrt()
    off = (single.covariance.double() - double.covariance).abs()
    slack = single.truncation + double.truncation + 1e-5
    assert bool((off <= slack * torch.outer(spread, spread) + 2e-6 * max(1.0, size)).all())


def test_arguments_are_left_alone():
    mean, C = normal(1, 5), random_covariance(5, 3)
    twins = mean.clone(), C.clone()
    gaussian_moments(activation("relu"), mean, C)
    assert torch.equal(mean, twins[0])
    assert torch.equal(C, twins[1])


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], "correlation is 2"),
        ([0.0, 0.0], [[1.0, -1.5], [-1.5, 1.0]], "correlation is 1.5"),
        ([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]], "variance is -1"),
        ([0.0, math.nan], [[1.0, 0.0], [0.0, 1.0]], "NaN or infinite"),
        ([0.0, 0.0], [[1.0, math.nan], [math.nan, 1.0]], "NaN or infinite"),
        ([0.0, 0.0], [[math.inf, 0.0], [0.0, 1.0]], "NaN or infinite"),
        ([0.0, -math.inf], [[1.0, 0.0], [0.0, 1.0]], "NaN or infinite"),
        ([0.0, 0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], r"\(2, 2\) for 3 means"),
        ([0.0, 0.0], [[1.0, 0.0]], r"\(1, 2\) for 2 means"),
    ],
)
def test_what_is_no_covariance_is_refused(mean, covariance, message):
    with pytest.raises(InvalidInputError, match=message):
        gaussian_moments(activation("relu"), torch.tensor(mean).double(), torch.tensor(covariance).double())


def test_covariance_of_a_constant_with_something_is_refused():
    C = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="not positive semi-definite"):
        gaussian_moments(activation("relu"), torch.zeros(2).double(), C)


def test_no_units_at_all():
    moments = gaussian_moments(activation("tanh"), torch.zeros(0), torch.zeros(0, 0))
    assert moments.covariance.shape == (0, 0)
