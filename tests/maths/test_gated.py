"""Moments of φ(a)∘v against quadrature over a: given the gates, the values are Gaussian in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import seeded
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.activation import activation
from coreprune.maths.gated import gated_moments
from coreprune.maths.gram import gaussian_moments
from coreprune.maths.hermite import expand

GATES = {
    "silu": lambda z: z * torch.sigmoid(z),
    "gelu": torch.nn.functional.gelu,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda z: z,
}
gates = pytest.mark.parametrize("name", GATES)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


class Units:
    """n gated units of d features x ~ N(0, 1): a = A x + b, v = V x + e."""

    def __init__(self, n: int = 7, d: int = 4, seed: int = 0, bias: float = 1.0) -> None:
        self.A, self.V = normal(seed, n, d) / d**0.5, normal(seed + 1, n, d) / d**0.5
        self.b, self.e = bias * normal(seed + 2, n), bias * normal(seed + 3, n)

    @property
    def law(self) -> tuple[Tensor, ...]:
        return self.b, self.A @ self.A.T, self.e, self.V @ self.V.T, self.V @ self.A.T


def by_conditioning(name: str, units: Units, i: int, j: int) -> tuple[float, float, float]:
    """E h_i, E h_j and E h_i h_j = E[φ(a_i) φ(a_j) E[v_i v_j | a_i, a_j]].

    First over a_i, then over a_j given a_i, both cut at the kink of ReLU.
    """
    phi, both = GATES[name], [i, j]
    A, V = units.A[both], units.V[both]
    C, mean = A @ A.T, units.b[both]
    kinks = [0.0] if name == "relu" else []

    def line(m: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes a and weights of N(m, s²), cut at the kinks, (rows, nodes)."""
        x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(12))
        ends = [torch.full_like(m, float(v)) for v in np.linspace(-8.5, 8.5, 12)]
        ends += [((k - m) / s).clamp(-8.5, 8.5) for k in kinks]
        grid = torch.stack(ends, 1).sort(1).values
        half, middle = grid.diff(dim=1)[..., None] / 2, ((grid[:, 1:] + grid[:, :-1]) / 2)[..., None]
        z = (middle + half * x).flatten(1)
        return m[:, None] + s[:, None] * z, (half * w).flatten(1) * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)

    a0, w0 = line(mean[:1], C[0, 0].sqrt()[None])
    a0, w0 = a0[0], w0[0]
    slope = C[0, 1] / C[0, 0]
    left = (C[1, 1] - slope * C[0, 1]).sqrt()
    a1, w1 = line(mean[1] + slope * (a0 - mean[0]), left.expand_as(a0))
    gate = torch.stack([a0[:, None].expand_as(a1), a1], -1)
    K = V @ A.T @ torch.linalg.inv(C)
    values = units.e[both] + (gate - mean) @ K.T
    rest = V @ V.T - K @ (A @ V.T)
    weight = w0[:, None] * w1
    h = phi(gate) * values
    product = phi(gate[..., 0]) * phi(gate[..., 1]) * (values[..., 0] * values[..., 1] + rest[0, 1])
    return float((weight * h[..., 0]).sum()), float((weight * h[..., 1]).sum()), float((weight * product).sum())


def exact_variance(name: str, units: Units, j: int) -> float:
    """Var h_j = E φ(a)² E[v² | a] − (E h_j)² by a fine one-dimensional sum."""
    s, k = units.A[j].norm(), units.V[j] @ units.A[j]
    z = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    w = torch.exp(-z.square() / 2)
    w /= w.sum()
    v = units.e[j] + k / s * z
    gate = GATES[name](units.b[j] + s * z)
    mean = (w * gate * v).sum()
    return float((w * gate.square() * (v.square() + units.V[j].square().sum() - (k / s) ** 2)).sum() - mean.square())


@gates
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_all_pairs_against_quadrature(name, seed):
    """Off the diagonal the error is of the order of what the series leaves out, relative to both spreads."""
    units = Units(seed=seed)
    moments = gated_moments(activation(name), *units.law)
    sigma = moments.covariance.diagonal().sqrt()
    for i in range(7):
        for j in range(i):
            first, second, product = by_conditioning(name, units, i, j)
            assert abs(float(moments.mean[i]) - first) <= 1e-8 * float(sigma[i])
            assert abs(float(moments.mean[j]) - second) <= 1e-8 * float(sigma[j])
            off = abs(float(moments.covariance[i, j]) - (product - first * second))
            assert off <= (1e-6 + moments.truncation) * float(sigma[i] * sigma[j]), (i, j)


@gates
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_diagonal_is_exact(name, seed):
    units = Units(seed=seed)
    found = gated_moments(activation(name), *units.law).covariance.diagonal().tolist()
    assert found == pytest.approx([exact_variance(name, units, j) for j in range(7)], rel=1e-6)


@gates
def test_truncation_is_the_largest_share_left_out(name):
    """The series with all its terms on the diagonal, before what is missing was added."""
    units = Units()
    for terms in (3, 6, 24):
        told = gated_moments(activation(name), *units.law, terms).truncation
        assert 0 <= told < {3: 0.6, 6: 0.3, 24: 0.05}[terms]
    smooth = name != "relu"
    assert told < 1e-4 if smooth else told > 0


@gates
@pytest.mark.parametrize("rank", [2, 5, 40])
def test_positive_semi_definite(name, rank):
    for terms in (4, 24):
        G = gated_moments(activation(name), *Units(30, rank).law, terms).covariance
        assert torch.equal(G, G.T)
        assert float(torch.linalg.eigvalsh(G)[0]) >= -1e-12 * float(G.diagonal().max())


@gates
def test_layer_against_monte_carlo(name):
    """200,000 samples, 6 σ for each of 35 statistics: less than one false alarm in 10⁷ runs, were they Gaussian."""
    units, count = Units(seed=3), 200_000
    moments = gated_moments(activation(name), *units.law)
    x = normal(9, count, 4)
    h = GATES[name](x @ units.A.T + units.b) * (x @ units.V.T + units.e)
    assert bool(((h.mean(0) - moments.mean).abs() <= 6 * h.std(0) / count**0.5).all())
    c = h - moments.mean
    found = c.T @ c / count
    noise = (c.square().T @ c.square() / count - found.square()).clamp(min=0).sqrt() / count**0.5
    spread = torch.outer(h.std(0), h.std(0))
    assert bool(((found - moments.covariance).abs() <= 6 * noise + moments.truncation * spread + 1e-9).all())


@gates
def test_values_that_are_constant_leave_the_plain_activation(name):
    units = Units()
    none = torch.zeros(7, 7, dtype=torch.float64)
    moments = gated_moments(activation(name), units.b, units.law[1], units.e, none, none)
    plain = gaussian_moments(activation(name), units.b, units.law[1])
    torch.testing.assert_close(moments.mean, units.e * plain.mean)
    scaled = torch.outer(units.e, units.e) * plain.covariance
    torch.testing.assert_close(moments.covariance, scaled, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moments.covariance.diagonal(), scaled.diagonal(), rtol=1e-9, atol=1e-14)


@gates
def test_gates_that_are_constant_leave_the_values(name):
    units, none = Units(), torch.zeros(7, 7, dtype=torch.float64)
    moments = gated_moments(activation(name), units.b, none, units.e, units.law[3], none)
    gate = GATES[name](units.b)
    torch.testing.assert_close(moments.mean, gate * units.e)
    torch.testing.assert_close(moments.covariance, torch.outer(gate, gate) * units.law[3], rtol=1e-9, atol=1e-12)


@gates
def test_gates_and_values_that_know_nothing_of_each_other(name):
    """E h_i h_j = E φφ · E v_i v_j."""
    units, none = Units(), torch.zeros(7, 7, dtype=torch.float64)
    b, C, e, D, _ = units.law
    moments = gated_moments(activation(name), b, C, e, D, none)
    plain = gaussian_moments(activation(name), b, C)
    second = (plain.covariance + torch.outer(plain.mean, plain.mean)) * (D + torch.outer(e, e))
    exact = second - torch.outer(plain.mean * e, plain.mean * e)
    torch.testing.assert_close(
        moments.covariance, exact, rtol=1e-3 if name == "relu" else 1e-6, atol=1e-4 * float(exact.max())
    )
    torch.testing.assert_close(moments.covariance.diagonal(), exact.diagonal(), rtol=1e-9, atol=1e-12)


def test_gate_and_value_the_same_linear_map_is_a_square():
    """a² of a ~ N(b, C): variances 2C² + 4bCb, exactly, and covariances alike."""
    A, b = normal(0, 6, 3), normal(1, 6)
    C = A @ A.T
    moments = gated_moments(activation("identity"), b, C, b, C, C)
    torch.testing.assert_close(moments.mean, b.square() + C.diagonal())
    torch.testing.assert_close(moments.covariance, 2 * C.square() + 4 * torch.outer(b, b) * C)


@gates
def test_permuting_the_units_permutes_the_moments(name):
    b, C, e, D, X = Units(20, 6).law
    p = torch.randperm(20, generator=seeded(0))
    whole = gated_moments(activation(name), b, C, e, D, X)
    moved = gated_moments(activation(name), b[p], C[p][:, p], e[p], D[p][:, p], X[p][:, p])
    torch.testing.assert_close(moved.mean, whole.mean[p])
    torch.testing.assert_close(moved.covariance, whole.covariance[p][:, p], rtol=1e-8, atol=1e-10)


@gates
def test_scaling_the_values_scales_the_units(name):
    b, C, e, D, X = Units().law
    one = gated_moments(activation(name), b, C, e, D, X)
    big = gated_moments(activation(name), b, C, 1e4 * e, 1e8 * D, 1e4 * X)
    torch.testing.assert_close(big.mean / 1e4, one.mean)
    torch.testing.assert_close(big.covariance / 1e8, one.covariance)


@gates
def test_copies_are_copies(name):
    b, C, e, D, X = Units().law
    p = torch.tensor([0, 1, 1, 2])
    G = gated_moments(activation(name), b[p], C[p][:, p], e[p], D[p][:, p], X[p][:, p])
    assert float((G.covariance[1, 2] / G.covariance[1, 1] - 1).abs()) <= 1e-6 + 2 * G.truncation


@gates
def test_float32_is_kept_and_agrees(name):
    law = Units(20, 6).law
    double, single = gated_moments(activation(name), *law), gated_moments(activation(name), *(t.float() for t in law))
    assert single.covariance.dtype == single.mean.dtype == torch.float32
    size = float(double.covariance.diagonal().max())
    torch.testing.assert_close(single.mean.double(), double.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(single.covariance.double(), double.covariance, rtol=1e-3, atol=1e-5 * size)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_moments_that_are_not_finite_are_refused(which):
    law = [t.clone() for t in Units().law]
    law[which].view(-1)[0] = math.nan
    with pytest.raises(InvalidInputError, match="NaN"):
        gated_moments(activation("silu"), *law)


def test_a_cross_covariance_that_is_not_finite_is_refused():
    law = [t.clone() for t in Units().law]
    law[4].view(-1)[0] = math.nan
    with pytest.raises(InvalidInputError):
        gated_moments(activation("silu"), *law)


@pytest.mark.parametrize("which", [1, 3])
def test_what_is_no_covariance_is_refused(which):
    law = [t.clone() for t in Units().law]
    law[which][0, 0] = -1.0
    with pytest.raises(InvalidInputError, match="not positive semi-definite"):
        gated_moments(activation("silu"), *law)


def test_sizes_that_do_not_fit_are_refused():
    b, C, e, D, X = Units().law
    for law in [(b[:3], C, e, D, X), (b, C, e[:3], D, X), (b, C, e[:3], D[:3, :3], X[:3])]:
        with pytest.raises(InvalidInputError):
            gated_moments(activation("silu"), *law)


def test_coefficients_of_the_gate_are_those_of_the_expansion():
    """Uncorrelated gates: E h = v̄ E φ, and nothing is shared between units but their values."""
    n = 4
    eye, none = torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    b, e = normal(0, n), normal(1, n)
    moments = gated_moments(activation("silu"), b, eye, e, eye, none)
    torch.testing.assert_close(moments.mean, e * expand(activation("silu"), b, torch.ones(n).double()).mean)
    assert float((moments.covariance - torch.diag(moments.covariance.diagonal())).abs().max()) <= 1e-15
