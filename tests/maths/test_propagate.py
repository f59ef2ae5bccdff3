"""The law carried through layers: linear maps exactly, units by their moments, two networks side by side."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded
from torch import Tensor

from coreprune.maths.activation import activation
from coreprune.maths.gram import gaussian_moments
from coreprune.maths.propagate import Component, Pair, difference_energy, law_of

F64 = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def mixture(d: int = 4) -> Pair:
    """Three Gaussians of unequal weights that do not add up to one, with different means."""
    parts = []
    for i, weight in enumerate((0.5, 1.0, 2.5)):
        A = normal(i, d, d)
        parts.append(Component(weight, normal(10 + i, d), A @ A.T / d))
    return Pair(tuple(parts))


def sample(pair: Pair, count: int, seed: int = 0) -> Tensor:
    total = sum(c.weight for c in pair.components)
    rows = []
    for i, c in enumerate(pair.components):
        spread = torch.diag(c.covariance) if c.covariance.dim() == 1 else c.covariance
        L = torch.linalg.cholesky(spread + 1e-13 * torch.eye(len(spread), dtype=F64))
        share = round(count * c.weight / total)  # exact shares: no noise of their own
        rows.append(c.mean + normal(seed + 7 * i, share, len(c.mean)) @ L.T)
    return torch.cat(rows)


def assert_moments(x: Tensor, mean: Tensor, spread: Tensor, slack: float = 0.0) -> None:
    """Within 6 σ for every entry."""
    n = len(x)
    assert bool(((x.mean(0) - mean).abs() <= 6 * x.std(0) / n**0.5 + slack).all())
    c = x - mean
    found = c.T @ c / n
    noise = (c.square().T @ c.square() / n - found.square()).clamp(min=0).sqrt() / n**0.5
    assert bool(((found - spread).abs() <= 6 * noise + slack).all())


def test_linear_maps_are_exact():
    P, b, pair = normal(0, 3, 4), normal(1, 3), mixture()
    for before, after in zip(pair.components, pair.linear(P, b).components, strict=True):
        torch.testing.assert_close(after.mean, P @ before.mean + b)
        torch.testing.assert_close(after.covariance, P @ before.covariance @ P.T)
        assert after.weight == before.weight


def test_independent_features_are_a_diagonal_covariance():
    P, b, variance = normal(0, 3, 4), normal(1, 3), torch.rand(4, generator=seeded(2), dtype=F64)
    vector, matrix = (Component(1.0, normal(3, 4), C).linear(P, b) for C in (variance, torch.diag(variance)))
    torch.testing.assert_close(vector.covariance, matrix.covariance)


def test_overall_moments_of_a_mixture():
    pair = mixture()
    mean, spread = pair.overall()
    weights = [c.weight / 4 for c in pair.components]
    exact = sum(w * c.mean for w, c in zip(weights, pair.components, strict=True))
    second = sum(
        w * (c.covariance + torch.outer(c.mean, c.mean)) for w, c in zip(weights, pair.components, strict=True)
    )
    torch.testing.assert_close(mean, exact)
    torch.testing.assert_close(spread, second - torch.outer(exact, exact))
    assert_moments(sample(pair, 100_000), mean, spread)


def test_a_mixture_of_equal_parts_is_the_part():
    c = mixture().components[0]
    one, three = Pair((c,)).overall(), Pair((c, c, c)).overall()
    torch.testing.assert_close(one, three)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_units_of_a_mixture_against_monte_carlo(name):
    """100,000 samples; entries of six units, 6 σ each."""
    P, b, phi = normal(5, 6, 4), normal(6, 6), activation(name)
    mean, spread = mixture().linear(P, b).units(phi).overall()
    assert_moments(phi(sample(mixture(), 100_000) @ P.T + b), mean, spread, 1e-5)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "sigmoid"])
def test_two_layers_of_which_the_first_is_exact(name):
    """A linear first layer leaves Gaussians: everything up to the second layer's outputs is then exact."""
    phi = activation(name)
    P, b, U, e, W = normal(0, 7, 4), normal(1, 7), 0.5 * normal(2, 6, 7), normal(3, 6), normal(4, 3, 6)
    start = Component(1.0, normal(5, 4), torch.rand(4, generator=seeded(6), dtype=F64))
    law = (
        Pair((start,))
        .linear(P, b)
        .units(activation("identity"))
        .linear(U, e)
        .units(phi)
        .linear(W, torch.ones(3, dtype=F64))
    )
    x = sample(Pair((start,)), 100_000)
    y = phi((x @ P.T + b) @ U.T + e) @ W.T + 1
    assert_moments(y, *law.overall(), slack=1e-5 * float(law.overall()[1].diagonal().max()))


def test_two_nonlinear_layers_are_a_closure_not_an_identity():
    """Means and variances behind two ReLU layers: close, for many inputs per unit, and not claimed to be exact."""
    phi = activation("relu")
    P, U = normal(0, 60, 30) / 30**0.5, normal(1, 40, 60) / 60**0.5
    none = torch.zeros(60, dtype=F64)
    pair = Pair((Component(1.0, torch.zeros(30, dtype=F64), torch.ones(30, dtype=F64)),))
    mean, spread = pair.linear(P, none).units(phi).linear(U, none[:40]).units(phi).overall()
    h = phi(phi(normal(2, 100_000, 30) @ P.T) @ U.T)
    assert float((h.mean(0) - mean).norm() / h.mean(0).norm()) < 0.02
    assert float((torch.cov(h.T) - spread).norm() / spread.norm()) < 0.2


@pytest.mark.parametrize("name", ["relu", "tanh", "hardswish"])
def test_difference_of_two_networks_against_monte_carlo(name):
    phi = activation(name)
    P, b, W, c = normal(0, 8, 4), normal(1, 8), normal(2, 3, 8), normal(3, 3)
    P2, b2, W2, c2 = P[:5] + 0.2, b[:5] - 0.1, W[:, :5] * 1.5, c + 0.3
    for pair in (mixture(), Pair((Component(1.0, normal(4, 4), torch.ones(4, dtype=F64)),))):
        told = difference_energy(pair.linear(P, b, P2, b2).units(phi).linear(W, c, W2, c2))
        x = sample(pair, 100_000)
        square = (phi(x @ P.T + b) @ W.T + c - phi(x @ P2.T + b2) @ W2.T - c2).square()
        assert bool(((square.mean(0) - told).abs() <= 6 * square.std(0) / len(x) ** 0.5 + 1e-4 * told).all())


def test_difference_of_a_network_with_itself_is_nothing():
    phi = activation("relu")
    P, b, W, c = normal(0, 8, 4), normal(1, 8), normal(2, 3, 8), normal(3, 3)
    out = mixture().linear(P, b, P, b).units(phi).linear(W, c, W, c)
    assert out.split == 3
    size = float(out.overall()[1].diagonal().max())
    assert float(difference_energy(out).abs().max()) <= 1e-9 * size
    shifted = mixture().linear(P, b, P, b).units(phi).linear(W, c, W, c + 2)
    torch.testing.assert_close(difference_energy(shifted), torch.full((3,), 4.0, dtype=F64), rtol=1e-6, atol=1e-6)


def test_two_networks_after_the_first_layer_keep_their_own_maps():
    P, b, Q, e = normal(0, 5, 4), normal(1, 5), normal(2, 3, 4), normal(3, 3)
    U, u, V, v = normal(4, 2, 5), normal(5, 2), normal(6, 4, 3), normal(7, 4)
    pair = mixture().linear(P, b, Q, e).linear(U, u, V, v)
    assert pair.split == 2
    both, shift = torch.cat([U @ P, V @ Q]), torch.cat([U @ b + u, V @ e + v])
    for found, start in zip(pair.components, mixture().components, strict=True):
        torch.testing.assert_close(found.mean, both @ start.mean + shift)
        torch.testing.assert_close(found.covariance, both @ start.covariance @ both.T)


def test_law_of_one_network_is_its_moments():
    P, b, phi = normal(0, 6, 4), normal(1, 6), activation("gelu")
    start = mixture().components[0]
    pre = Pair((start,)).linear(P, b)
    law = law_of(pre, phi)
    exact = gaussian_moments(phi, pre.components[0].mean, pre.components[0].covariance)
    torch.testing.assert_close(law.moments.mean, exact.mean)
    torch.testing.assert_close(law.moments.covariance, exact.covariance)
    assert law.target is law.cross is law.own is None
    assert law.pair is pre


def test_law_of_two_networks_names_which_is_which():
    """Dense: target and own. Cut: moments. And X = Cov(dense, cut)."""
    P, b, Q, e, phi = normal(0, 3, 4), normal(1, 3), normal(2, 3, 4), normal(3, 3), activation("relu")
    law = law_of(mixture().linear(P, b, Q, e), phi)
    x = sample(mixture(), 100_000)
    h, g = phi(x @ P.T + b), phi(x @ Q.T + e)
    joint = torch.cat([torch.cat([law.own, law.cross], 1), torch.cat([law.cross.T, law.moments.covariance], 1)])
    assert_moments(torch.cat([h, g], 1), torch.cat([law.target, law.moments.mean]), joint, 1e-5)
