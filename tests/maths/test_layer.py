from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers import CASES, in_ball, random_layer

from coreprune.maths.activation import activation
from coreprune.maths.layer import Coreset, Layer


def test_layer_computes_its_formula_unit_by_unit():
    layer = random_layer(n=3, d=2, p=2)
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    P, b, W = layer.incoming.tolist(), layer.bias.tolist(), layer.outgoing.tolist()
    h = [max(0.0, P[j][0] * 0.3 - P[j][1] * 0.7 + b[j]) for j in range(3)]
    assert layer(x)[0].tolist() == pytest.approx([sum(W[i][j] * h[j] for j in range(3)) for i in range(2)])


def test_norms_count_the_bias_and_the_query_its_one():
    layer = Layer(torch.tensor([[3.0, 0.0]]), torch.tensor([4.0]), torch.ones(1, 1), activation("relu"), 2.0)
    assert layer.norms.item() == 5
    assert layer.query_radius == math.sqrt(5)


def test_intervals_are_reached_and_never_left():
    layer = random_layer()
    low, high = layer.intervals()
    z = in_ball(5000, 4, layer.radius) @ layer.incoming.T + layer.bias
    assert bool(((low - 1e-12 <= z) & (z <= high + 1e-12)).all())
    ends = layer.radius * torch.nn.functional.normalize(layer.incoming, dim=1)
    torch.testing.assert_close((ends * layer.incoming).sum(1) + layer.bias, high)
    torch.testing.assert_close((-ends * layer.incoming).sum(1) + layer.bias, low)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dead_units_are_zero_on_the_whole_ball(case):
    layer = random_layer(n=200, d=2, phi=case.name, radius=0.3, **case.parameters)
    h = layer.hidden(in_ball(2000, 2, 0.3))
    assert bool((h[:, layer.dead()] == 0).all())


def test_a_relu_unit_is_dead_exactly_from_its_bias_on():
    P = torch.tensor([[3.0, 4.0]] * 3)
    layer = Layer(P, torch.tensor([-10.01, -10.0, -9.99]), torch.ones(1, 3), activation("relu"), 2.0)
    assert layer.dead().tolist() == [True, True, False]


def test_diagonal_and_full_mix_say_the_same():
    layer = random_layer(n=5)
    kept, scale = torch.tensor([1, 4]), torch.tensor([2.0, 0.5], dtype=torch.float64)
    short = Coreset(kept, scale)
    full = Coreset(kept, short.matrix(5))
    x = in_ball(20, 4, 1.0)
    assert short.matrix(5).tolist() == [[0, 0], [2, 0], [0, 0], [0, 0], [0, 0.5]]
    torch.testing.assert_close(short.outgoing(layer.outgoing), full.outgoing(layer.outgoing))
    torch.testing.assert_close(short.apply(layer, x), full.apply(layer, x))


def test_mix_and_offset_replace_a_unit_by_others_and_a_constant():
    layer = random_layer(n=3)
    T, t = (
        torch.tensor([[1.0, 0], [0, 1], [2, -3]], dtype=torch.float64),
        torch.tensor([0.0, 0, 7], dtype=torch.float64),
    )
    x = in_ball(10, 4, 1.0)
    h = layer.hidden(x)
    h[:, 2] = 2 * h[:, 0] - 3 * h[:, 1] + 7
    torch.testing.assert_close(Coreset(torch.tensor([0, 1]), T, t).apply(layer, x), h @ layer.outgoing.T)


def test_keeping_all_changes_nothing():
    layer = random_layer()
    x = in_ball(10, 4, 1.0)
    assert torch.equal(Coreset(torch.arange(12), torch.ones(12, dtype=torch.float64)).apply(layer, x), layer(x))


def test_values_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        random_layer().radius = 2.0
