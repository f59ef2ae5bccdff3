from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from helpers import CASES, in_ball, random_layer, seeded, worst_error

from coreprune.errors import InvalidInputError
from coreprune.maths.bounds import (
    error_of_draws,
    lipschitz_sensitivity,
    output_variance,
    size_for_error,
    total_sensitivity,
)
from coreprune.maths.layer import Layer
from coreprune.maths.sampling import coreset_of_layer, sensitivity

lipschitz = pytest.mark.parametrize("case", [c for c in CASES if c.name != "binary_step"], ids=str)


def test_error_is_the_theorems_expression():
    assert error_of_draws(3.0, 50, 0.1, 4) == pytest.approx(3 * (2 + math.sqrt(2 * math.log(2 * 4 / 0.1))) / 50**0.5)


@pytest.mark.parametrize("error", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("outputs", [1, 10])
@pytest.mark.parametrize("delta", [0.5, 1e-6])
def test_size_and_error_invert_each_other(error, outputs, delta):
    m = size_for_error(7.0, error, delta, outputs)
    assert error_of_draws(7.0, m, delta, outputs) <= error
    assert m == 1 or error_of_draws(7.0, m - 1, delta, outputs) > error


@lipschitz
def test_twice_the_weights_twice_the_error(case):
    layer = random_layer(phi=case.name, **case.parameters)
    double = Layer(layer.incoming, layer.bias, 2 * layer.outgoing, layer.activation, layer.radius)
    assert total_sensitivity(double) == pytest.approx(2 * total_sensitivity(layer), rel=1e-14)
    assert error_of_draws(total_sensitivity(double), 9, 0.1) == pytest.approx(
        2 * error_of_draws(total_sensitivity(layer), 9, 0.1), rel=1e-14
    )


def test_dimension_does_not_enter():
    layer = random_layer()
    wide = Layer(
        torch.nn.functional.pad(layer.incoming, (0, 100)), layer.bias, layer.outgoing, layer.activation, layer.radius
    )
    assert total_sensitivity(wide) == pytest.approx(total_sensitivity(layer))


def test_total_sensitivity_by_hand():
    layer = random_layer(n=2, p=2, phi="sigmoid")
    W, R = layer.outgoing.tolist(), math.sqrt(1 + 1.5**2)
    by_hand = sum(
        max(abs(W[0][j]), abs(W[1][j]))
        * (0.5 + 0.25 * R * math.hypot(*layer.incoming[j].tolist(), float(layer.bias[j])))
        for j in range(2)
    )
    assert total_sensitivity(layer) == pytest.approx(by_hand)


def test_equals_the_papers_sensitivity_for_relu():
    layer = random_layer(radius=3.0)
    assert not layer.dead().any()
    torch.testing.assert_close(lipschitz_sensitivity(layer), sensitivity(layer))


@lipschitz
def test_never_smaller_than_the_sampling_sensitivity(case):
    layer = random_layer(n=100, phi=case.name, **case.parameters)
    assert bool((sensitivity(layer) <= lipschitz_sensitivity(layer) * (1 + 1e-12)).all())


@lipschitz
def test_other_probabilities_take_the_largest_ratio(case):
    layer = random_layer(phi=case.name, **case.parameters)
    pr = sensitivity(layer) / sensitivity(layer).sum()
    s, alive = lipschitz_sensitivity(layer), ~layer.dead()
    assert total_sensitivity(layer, pr) == pytest.approx(float((s / pr)[alive].max()))
    assert total_sensitivity(layer, s / s.sum()) == pytest.approx(total_sensitivity(layer))
    assert total_sensitivity(layer, pr) >= float(s[alive].sum()) * (1 - 1e-12)


@lipschitz
def test_gradient_ascent_never_breaks_the_bound(case):
    """δ = 0.5 would let half of the draws fail; the theorem is loose, so none may."""
    for seed in range(4):
        layer = random_layer(n=8, d=3, p=2, phi=case.name, seed=seed, radius=2.0, **case.parameters)
        coreset = coreset_of_layer(layer, draws=4, generator=seeded(seed))
        s = sensitivity(layer)
        alive = s > 0
        worst = float((lipschitz_sensitivity(layer)[alive] / s[alive]).max() * s.sum())
        found = worst_error(layer, partial(coreset.apply, layer), starts=4, steps=25)
        assert 0 < found <= error_of_draws(worst, 4, 0.5, outputs=2)


def test_the_bound_is_within_a_factor_of_its_target_where_it_is_nearly_tight():
    """Equal orthogonal units: the error at the mean of those kept is of the order of B/√m, so a 12th of the bound."""
    n, m = 400, 25
    eye = torch.eye(n, dtype=torch.float64)
    W = torch.ones(1, n, dtype=torch.float64)
    layer = Layer(eye, torch.zeros(n, dtype=torch.float64), W, random_layer().activation, 1.0)
    coreset = coreset_of_layer(layer, draws=m, generator=seeded(0))
    x = torch.zeros(n, dtype=torch.float64)
    x[coreset.indices] = 1 / coreset.units**0.5
    gap = float((layer(x[None]) - coreset.apply(layer, x[None])).abs())
    bound = error_of_draws(total_sensitivity(layer), m, 0.5)
    assert bound / 12 < gap <= bound


def test_variance_by_enumerating_every_outcome():
    """n = 4 units, m = 3 draws: all 64 outcomes with their probabilities."""
    layer = random_layer(n=4, p=2)
    x = in_ball(3, 4, 1.5)
    pr = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    one = layer.hidden(x)[:, None] * layer.outgoing / pr  # (batch, p, n)
    mean, second = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    for outcome in itertools.product(range(4), repeat=3):
        chance = math.prod(float(pr[j]) for j in outcome)
        value = sum(one[..., j] for j in outcome) / 3
        mean += chance * value
        second += chance * value**2
    torch.testing.assert_close(mean, layer(x))
    torch.testing.assert_close(output_variance(layer, pr, 3, x)[0], second - mean**2)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("law", ["sensitivity", "uniform"])
def test_variance_stays_below_bernsteins_expression(case, law):
    layer = random_layer(n=30, phi=case.name, **case.parameters)
    weight = sensitivity(layer) if law == "sensitivity" else torch.ones(30, dtype=torch.float64)
    variance, bound = output_variance(layer, weight / weight.sum(), 5, in_ball(200, 4, layer.radius))
    assert bool((variance >= -1e-9).all())
    assert bool((variance <= bound).all())


def test_bernsteins_expression_for_the_papers_law():
    layer = random_layer(radius=3.0)
    s = sensitivity(layer)
    x = in_ball(5, 4, 3.0)
    expected = s.sum() * (layer.hidden(x) @ layer.outgoing.abs().T) / 5
    torch.testing.assert_close(output_variance(layer, s / s.sum(), 5, x)[1], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_variance_with_units_that_are_never_drawn(dtype):
    layer = random_layer()
    layer.outgoing[:, 0] = 0
    layer = Layer(
        layer.incoming.to(dtype), layer.bias.to(dtype), layer.outgoing.to(dtype), layer.activation, layer.radius
    )
    s = sensitivity(layer)
    variance, bound = output_variance(layer, s / s.sum(), 5, in_ball(5, 4, 1.0).to(dtype))
    assert bool(torch.isfinite(variance).all())
    assert bool(torch.isfinite(bound).all())


def test_a_jump_is_refused():
    with pytest.raises(InvalidInputError, match="binary_step"):
        total_sensitivity(random_layer(phi="binary_step"))


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_delta_must_be_a_probability(delta):
    with pytest.raises(InvalidInputError, match="delta"):
        error_of_draws(1.0, 10, delta)


@pytest.mark.parametrize("error", [0.0, -1.0, math.nan])
def test_the_error_asked_for_must_be_positive(error):
    with pytest.raises(InvalidInputError):
        size_for_error(1.0, error, 0.1)


def test_no_draws_are_refused():
    with pytest.raises(InvalidInputError):
        error_of_draws(1.0, 0, 0.1)
