"""The descent: its gradient, its loss, and that it never ends above the closed form it starts from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import random_layer, seeded
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths import refine
from coreprune.maths.gram import Moments
from coreprune.maths.kernel import kernel
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.propagate import Component, Law, Pair, difference_energy, law_of
from coreprune.maths.refine import RIDGE, _Problem, refined

F64 = torch.float64
NAMES = ["relu", "tanh", "gelu", "leaky_relu", "sigmoid", "hardswish", "elu", "softplus"]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def inputs(d: int = 4, scales: tuple[float, ...] = (1.0,)) -> Pair:
    mean = torch.full((d,), 0.2, dtype=F64)
    return Pair(tuple(Component(1.0, mean, torch.full((d,), s * s, dtype=F64)) for s in scales))


def with_law(layer: Layer, scales: tuple[float, ...] = (1.0,)) -> Layer:
    x = inputs(layer.incoming.shape[1], scales)
    return replace(layer, law=law_of(x.linear(layer.incoming, layer.bias), layer.activation))


def energy(layer: Layer, coreset: Coreset, scales: tuple[float, ...] = (1.0,)) -> float:
    """E‖y − ŷ‖² by the law of the two networks side by side."""
    P, b, W = layer.incoming, layer.bias, layer.outgoing
    if coreset.incoming is None:
        Q, e = P[coreset.indices], b[coreset.indices]
    else:
        shift = 0.0 if coreset.shift is None else coreset.shift
        Q, e = coreset.incoming.T @ P, coreset.incoming.T @ b + shift
    units = inputs(P.shape[1], scales).linear(P, b, Q, e).units(layer.activation)
    none = torch.zeros(len(W), dtype=F64)
    return float(difference_energy(units.linear(W, none, coreset.outgoing(W), coreset.constant(W))).sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 2.0)], ids=str)
def test_gradient_is_the_slope(name, scales):
    problem = _Problem(with_law(random_layer(n=8, phi=name), scales))
    kept = torch.tensor([0, 3, 5])
    q = (problem.white[kept] + 0.05 * normal(1, 3, 8)).requires_grad_()
    b = (problem.bias[kept] + 0.05 * normal(2, 3)).requires_grad_()
    problem.loss(q, b).backward()
    h = 1e-5
    for seed in range(4):
        u, v = normal(10 + seed, 3, 8), normal(20 + seed, 3)
        with torch.no_grad():
            slope = (problem.loss(q + h * u, b + h * v) - problem.loss(q - h * u, b - h * v)) / (2 * h)
        told = float((q.grad * u).sum() + (b.grad * v).sum())
        assert told == pytest.approx(float(slope), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 2.0)], ids=str)
def test_loss_is_the_difference_energy(name, scales, monkeypatch):
    """With all terms, up to what the ridge allows; `propagate` knows nothing of the descent."""
    monkeypatch.setattr(refine, "TERMS", 24)
    layer = with_law(random_layer(n=8, phi=name), scales)
    problem, kept = _Problem(layer), torch.tensor([0, 3, 5])
    q, b = problem.white[kept] + 0.05 * normal(1, 3, 8), problem.bias[kept] + 0.05 * normal(2, 3)
    coreset = problem.coreset(kept, q, b)
    loss, exact = float(problem.loss(q, b) * problem.energy), energy(layer, coreset, scales)
    slack = RIDGE * float(
        (coreset.outgoing(layer.outgoing).square().sum(0) * problem.statistics(q, b, 24)[1].diagonal()).sum()
    )
    assert exact - 1e-6 * float(problem.energy) <= loss <= exact + slack + 1e-6 * float(problem.energy)


def test_energy_of_the_dense_units_is_that_of_the_law():
    layer = with_law(random_layer(n=8), (0.5, 2.0))
    G = layer.law.moments.covariance
    assert float(_Problem(layer).energy) == pytest.approx(
        float(((layer.outgoing @ G) * layer.outgoing).sum()), rel=1e-9
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [2, 6])
def test_never_worse_than_the_kernel(name, k):
    layer = with_law(random_layer(n=10, phi=name))
    start, end = energy(layer, kernel(layer, k)), energy(layer, refined(layer, k, steps=25))
    total = float(_Problem(layer).energy)
    assert end <= start * (1 + 1e-6) + 2e-5 * total


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 2.0)], ids=str)
def test_turning_pays(scales):
    """Twelve ReLU units by three: the units that nobody had are better by a good part."""
    layer = with_law(random_layer(n=12, d=3), scales)
    start, end = energy(layer, kernel(layer, 3), scales), energy(layer, refined(layer, 3), scales)
    assert end < 0.9 * start


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 2.0)], ids=str)
def test_error_against_monte_carlo(scales):
    layer, count = with_law(random_layer(n=12), scales), 200_000
    coreset = refined(layer, 5, steps=25)
    x = torch.cat([0.2 + s * normal(i, count, 4) for i, s in enumerate(scales)])
    square = (layer(x) - coreset.apply(layer, x)).square().sum(1)
    told = energy(layer, coreset, scales)
    assert abs(float(square.mean()) - told) <= 6 * float(square.std()) / count**0.5 + 1e-3 * told


@pytest.mark.parametrize("name", ["relu", "identity", "binary_step"])
def test_keeping_all_is_the_identity(name):
    coreset = refined(with_law(random_layer(phi=name)), 12)
    assert coreset.incoming is None
    assert torch.equal(coreset.matrix(12), torch.eye(12, dtype=F64))


@pytest.mark.parametrize("name", ["identity", "binary_step"])
def test_nothing_to_turn_is_the_kernel(name):
    layer = with_law(random_layer(phi=name))
    assert torch.equal(refined(layer, 4).mix, kernel(layer, 4).mix)


def test_the_start_is_the_kernel_up_to_the_ridge():
    layer = with_law(random_layer(n=10))
    start, problem = kernel(layer, 5), _Problem(layer)
    unturned = problem.coreset(start.indices, problem.white[start.indices], problem.bias[start.indices])
    assert energy(layer, unturned) == pytest.approx(energy(layer, start), rel=1e-2)


def test_nothing_is_random():
    layer = with_law(random_layer(n=10))
    one, two = (refined(layer, 4, seeded(s), steps=10) for s in (0, 1))
    assert torch.equal(one.mix, two.mix)
    assert torch.equal(one.incoming, two.incoming)


def test_dead_and_constant_and_copied_units():
    layer = random_layer(n=10)
    P, b = layer.incoming.clone(), layer.bias.clone()
    P[7:], b[7:9] = 0, torch.tensor([-2.0, 3.0], dtype=F64)
    P[6], b[6] = P[5], b[5]
    layer = with_law(replace(layer, incoming=P, bias=b))
    for k in (1, 4, 8, 9):
        coreset = refined(layer, k, steps=10)
        assert bool(torch.isfinite(coreset.mix).all())
        assert energy(layer, coreset) <= energy(layer, kernel(layer, k)) + 1e-4 * float(_Problem(layer).energy)


def test_moved_units():
    """Behind an earlier cut: the target is the dense network, the units turn in what they read now."""
    layer = random_layer(n=10)
    P, b = layer.incoming + 0.2 * normal(1, 10, 4), layer.bias + 0.2 * normal(2, 10)
    law = law_of(inputs().linear(layer.incoming, layer.bias, P, b), layer.activation)
    now = replace(layer, incoming=P, bias=b, law=law)
    x = 0.2 + normal(3, 100_000, 4)
    gaps = [(layer(x) - c.apply(now, x)).square().sum() for c in (kernel(now, 4), refined(now, 4, steps=25))]
    assert gaps[1] < gaps[0]


def test_a_measured_law_is_refused():
    layer = random_layer()
    law = law_of(inputs().linear(layer.incoming, layer.bias), layer.activation)
    with pytest.raises(InvalidInputError, match="Gaussian prior"):
        refined(replace(layer, law=Law(Moments(law.moments.mean, law.moments.covariance))), 4)
    with pytest.raises(InvalidInputError, match="prior"):
        refined(layer, 4)
