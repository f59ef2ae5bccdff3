"""The estimators of the paper. Every statistical test states how rarely a right library would fail it."""

from __future__ import annotations

import time

import pytest
import torch
from helpers import CASES, in_ball, random_layer, seeded
from scipy import stats

from coreprune.errors import InvalidInputError
from coreprune.maths.activation import activation
from coreprune.maths.layer import Layer
from coreprune.maths.sampling import (
    coreset_of_layer,
    coreset_of_neuron,
    draws_for_units,
    expected_units,
    inclusion_probabilities,
    sensitivity,
)

SEMANTICS = [{"draws": 7}, {"units": 5}]
semantics = pytest.mark.parametrize("size", SEMANTICS, ids=str)
ALARM = 1e-6  #: probability that a statistical test fails though the library is right


def scales(layer: Layer, repeat: int, seed: int = 0, **size: int) -> torch.Tensor:
    """The factor on every unit's outgoing weights, 0 where it went, (repeat, n)."""
    g = seeded(seed)
    return torch.stack([coreset_of_layer(layer, **size, generator=g).matrix(layer.units).sum(1) for _ in range(repeat)])


def assert_mean(samples: torch.Tensor, expected: torch.Tensor) -> None:
    """A z-test of every column, Bonferroni-corrected: together they raise a false alarm with probability ALARM."""
    error = samples.std(0) / len(samples) ** 0.5
    limit = stats.norm.isf(ALARM / (2 * expected.numel()))
    assert bool(((samples.mean(0) - expected).abs() <= limit * error + 1e-12).all())


@semantics
@pytest.mark.parametrize("name", ["relu", "sigmoid", "gelu"])
def test_layer_estimator_is_unbiased(size, name):
    layer = random_layer(phi=name)
    found = scales(layer, 800, **size)
    assert_mean(found, torch.ones(12, dtype=torch.float64))
    x = in_ball(5, 4, layer.radius)
    outputs = torch.einsum("rn,bn,pn->rbp", found, layer.hidden(x), layer.outgoing)
    assert_mean(outputs.flatten(1), layer(x).flatten())


@semantics
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_neuron_estimator_is_unbiased_for_signed_weights(size, name):
    layer = random_layer(phi=name, p=1)
    points, w = torch.cat([layer.incoming, layer.bias[:, None]], 1), layer.outgoing[0]
    g = seeded(0)
    found = torch.stack([coreset_of_neuron(points, w, layer.activation, 1.5, **size, generator=g) for _ in range(800)])
    assert_mean(found, w)


def test_neuron_of_one_unit_is_unbiased_for_signed_weights():
    """Or refused: a coreset of one unit cannot stand for both signs unless it may draw either."""
    points, w = torch.ones(2, 2, dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    g = seeded(0)
    try:
        found = [coreset_of_neuron(points, w, activation("relu"), 1.0, units=1, generator=g) for _ in range(200)]
    except InvalidInputError:
        return
    assert_mean(torch.stack(found), w)


@pytest.mark.parametrize("k", range(1, 13))
def test_units_means_exactly_k_survivors(k):
    layer = random_layer()
    for seed in range(30):
        coreset = coreset_of_layer(layer, units=k, generator=seeded(seed))
        assert coreset.indices.unique().numel() == k == coreset.mix.numel()
        assert bool((coreset.mix > 0).all())


@pytest.mark.parametrize("m", [1, 7, 200])
def test_draws_leave_at_most_m_units(m):
    coreset = coreset_of_layer(random_layer(), draws=m, generator=seeded(0))
    assert 1 <= coreset.units <= m
    assert bool((coreset.indices.diff() > 0).all())


@pytest.mark.parametrize("k", [2, 3, 8, 20])
def test_neuron_gets_exactly_k_weights(k):
    layer = random_layer(n=20, p=1)
    points = torch.cat([layer.incoming, layer.bias[:, None]], 1)
    for seed in range(20):
        u = coreset_of_neuron(points, layer.outgoing[0], layer.activation, 1.0, units=k, generator=seeded(seed))
        assert int((u != 0).sum()) == k
        assert bool((u * layer.outgoing[0] >= 0).all())


def test_neuron_refuses_more_units_than_points():
    with pytest.raises(InvalidInputError):
        coreset_of_neuron(torch.ones(3, 2), torch.ones(3), activation("relu"), 1.0, units=4, generator=seeded(0))


def test_draws_follow_the_sensitivities():
    """χ² against pr = s / Σ s."""
    layer, m = random_layer(), 20_000
    scale = scales(layer, 1, draws=m)[0]
    pr = sensitivity(layer) / sensitivity(layer).sum()
    counts = torch.round(scale * m * pr)
    assert float(counts.sum()) == m
    assert stats.chisquare(counts.numpy(), (m * pr).numpy()).pvalue > ALARM


def test_units_follow_the_inclusion_probabilities():
    layer, k = random_layer(), 5
    kept = (scales(layer, 1000, units=k) > 0).double()
    pi = inclusion_probabilities(sensitivity(layer), k)
    assert_mean(kept, pi)


def test_variance_of_draws_is_as_large_as_theory_says():
    """2500 outcomes: their variance is within 25 % of the theory's (about 6 σ)."""
    layer, m = random_layer(), 7
    x = in_ball(3, 4, 1.5)
    found = torch.einsum("rn,bn,pn->rbp", scales(layer, 2500, draws=m), layer.hidden(x), layer.outgoing)
    pr = sensitivity(layer) / sensitivity(layer).sum()
    one = torch.einsum("bn,pn->bpn", layer.hidden(x), layer.outgoing)
    theory = ((one**2 / pr).sum(-1) - one.sum(-1) ** 2) / m
    assert float((found.var(0) / theory - 1).abs().max()) < 0.25


@pytest.mark.parametrize("c", [0.25, 8.0, 3.7])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "identity"])
def test_rescaling_units_changes_nothing_for_homogeneous_activations(c, name):
    layer = random_layer(phi=name)
    factor = torch.ones(12, dtype=torch.float64)
    factor[::3] = c
    scaled = Layer(
        layer.incoming * factor[:, None], layer.bias * factor, layer.outgoing / factor, layer.activation, layer.radius
    )
    torch.testing.assert_close(sensitivity(scaled), sensitivity(layer), rtol=1e-14, atol=0)
    for size in SEMANTICS:
        one, other = (coreset_of_layer(each, **size, generator=seeded(4)) for each in (layer, scaled))
        assert torch.equal(one.indices, other.indices)
        torch.testing.assert_close(one.mix, other.mix, rtol=1e-13, atol=0)


def test_radius_cancels_for_relu_without_dead_units():
    near, far = (random_layer(radius=r) for r in (3.0, 9.0))
    assert not near.dead().any()
    one, other = sensitivity(near), sensitivity(far)
    torch.testing.assert_close(one / one.sum(), other / other.sum(), rtol=1e-14, atol=0)


def test_permuting_units_permutes_the_probabilities():
    layer = random_layer()
    order = torch.randperm(12, generator=seeded(1))
    other = Layer(layer.incoming[order], layer.bias[order], layer.outgoing[:, order], layer.activation, layer.radius)
    assert torch.equal(sensitivity(other), sensitivity(layer)[order])
    torch.testing.assert_close(
        inclusion_probabilities(sensitivity(other), 5), inclusion_probabilities(sensitivity(layer), 5)[order]
    )


def test_permuting_outputs_or_flipping_their_signs_changes_nothing():
    layer = random_layer()
    other = Layer(layer.incoming, layer.bias, -layer.outgoing.flip(0), layer.activation, layer.radius)
    assert torch.equal(sensitivity(other), sensitivity(layer))


def with_useless_units() -> Layer:
    """Units 0 and 5 feed nothing, units 3 and 7 are dead on the ball."""
    layer = random_layer()
    layer.outgoing[:, [0, 5]] = 0
    layer.bias[[3, 7]] = -layer.radius * layer.incoming.norm(dim=1)[[3, 7]] - 0.1
    return layer


def test_useless_units_are_never_kept():
    layer = with_useless_units()
    assert sensitivity(layer)[[0, 3, 5, 7]].tolist() == [0.0] * 4
    assert float(scales(layer, 300, draws=30)[:, [0, 3, 5, 7]].abs().max()) == 0
    for k in range(1, 9):
        kept = {int(j) for s in range(40) for j in coreset_of_layer(layer, units=k, generator=seeded(s)).indices}
        assert not kept & {0, 3, 5, 7}


def test_removing_only_useless_units_costs_nothing():
    layer = with_useless_units()
    coreset = coreset_of_layer(layer, units=8, generator=seeded(0))
    x = in_ball(500, 4, layer.radius)
    torch.testing.assert_close(coreset.apply(layer, x), layer(x), rtol=1e-13, atol=1e-13)


def test_useless_units_fill_up_what_is_asked_for_and_weigh_nothing():
    layer = with_useless_units()
    coreset = coreset_of_layer(layer, units=10, generator=seeded(0))
    assert coreset.units == 10
    assert int((coreset.mix == 0).sum()) == 2
    x = in_ball(100, 4, layer.radius)
    torch.testing.assert_close(coreset.apply(layer, x), layer(x))


@pytest.mark.parametrize("size", [{"draws": 6}, {"units": 4}], ids=str)
def test_a_layer_that_matters_to_nobody(size):
    layer = random_layer()
    layer.outgoing.zero_()
    coreset = coreset_of_layer(layer, **size, generator=seeded(0))
    assert bool((coreset.apply(layer, in_ball(10, 4, 1.0)) == 0).all())
    assert bool(torch.isfinite(coreset.mix).all())


def test_signed_is_the_difference_of_its_parts_for_draws():
    layer = random_layer(n=30, p=1)
    points, w = torch.cat([layer.incoming, layer.bias[:, None]], 1), layer.outgoing[0]
    signed = coreset_of_neuron(points, w, layer.activation, 1.0, draws=9, generator=seeded(5))
    g = seeded(5)
    plus, minus = (
        coreset_of_neuron(points, part, layer.activation, 1.0, draws=9, generator=g)
        for part in (w.clamp(min=0), (-w).clamp(min=0))
    )
    assert torch.equal(signed, plus - minus)
    assert bool((plus != 0).any()) and bool((minus != 0).any())


def test_signs_do_not_matter_to_a_sample_without_replacement():
    layer = random_layer(n=30, p=1)
    points, w = torch.cat([layer.incoming, layer.bias[:, None]], 1), layer.outgoing[0]
    signed = coreset_of_neuron(points, w, layer.activation, 1.0, units=9, generator=seeded(5))
    positive = coreset_of_neuron(points, w.abs(), layer.activation, 1.0, units=9, generator=seeded(5))
    assert torch.equal(signed, positive * w.sign())


@semantics
def test_a_positive_neuron_is_a_layer_of_one_output(size):
    layer = random_layer(p=1)
    layer.outgoing.abs_()
    points = torch.cat([layer.incoming, layer.bias[:, None]], 1)
    u = coreset_of_neuron(points, layer.outgoing[0], layer.activation, 1.5, **size, generator=seeded(2))
    coreset = coreset_of_layer(layer, **size, generator=seeded(2))
    torch.testing.assert_close(u[coreset.indices], coreset.outgoing(layer.outgoing)[0], rtol=1e-14, atol=0)
    assert int((u != 0).sum()) == coreset.units


@semantics
def test_seed_decides(size):
    layer = random_layer(n=100)
    one, again, other = (coreset_of_layer(layer, **size, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one.indices, again.indices)
    assert torch.equal(one.mix, again.mix)
    assert not torch.equal(one.indices, other.indices)


@semantics
def test_global_random_state_is_neither_used_nor_moved(size):
    layer = random_layer(n=100)
    before = torch.get_rng_state()
    coreset_of_layer(layer, **size, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), before)


def seconds(work) -> float:
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def test_a_million_units_cost_a_few_sorts():
    """Measured against one sort of a million numbers in the same run, so that a slow machine does not matter."""
    layer = random_layer(n=1_000_000, d=2, p=1)
    sort = seconds(lambda: sensitivity(layer).sort())
    assert seconds(lambda: coreset_of_layer(layer, draws=10_000, generator=seeded(0))) < 20 * sort
    assert seconds(lambda: coreset_of_layer(layer, units=10_000, generator=seeded(0))) < 20 * sort
    assert coreset_of_layer(layer, units=10_000, generator=seeded(0)).indices.unique().numel() == 10_000


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sensitivity_covers_every_contribution_on_the_ball(case):
    layer = random_layer(phi=case.name, **case.parameters)
    x = in_ball(2000, 4, layer.radius)
    most = (layer.hidden(x).abs()[:, None] * layer.outgoing.abs()).amax((0, 1))
    assert bool((most <= sensitivity(layer) * (1 + 1e-12)).all())


def test_expected_units_is_the_mean_number_of_survivors():
    layer = random_layer()
    found = (scales(layer, 1000, draws=9) > 0).double().sum(1, keepdim=True)
    assert_mean(found, torch.tensor([expected_units(sensitivity(layer), 9)], dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 2, 6, 11])
def test_draws_for_units_is_the_smallest_that_rounds_to_k(k):
    s = sensitivity(random_layer())
    m = draws_for_units(s, k)
    assert expected_units(s, m) >= k - 0.5
    assert m == k or expected_units(s, m - 1) < k - 0.5


@pytest.mark.parametrize("request_", [{}, {"draws": 3, "units": 3}, {"draws": 0}, {"units": 0}, {"units": 13}], ids=str)
def test_impossible_sizes_are_refused(request_):
    with pytest.raises(InvalidInputError):
        coreset_of_layer(random_layer(), **request_, generator=seeded(0))
