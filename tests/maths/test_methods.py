from __future__ import annotations

import pytest
import torch
from helpers import METHODS, random_layer, seeded

from coreprune.errors import UnknownNameError
from coreprune.maths.methods import METHODS as TABLE
from coreprune.maths.methods import method
from coreprune.maths.sampling import sensitivity


def test_table_holds_the_methods_of_the_paper():
    assert set(METHODS) <= set(TABLE)
    assert all(TABLE[name].name == name and TABLE[name].about for name in TABLE)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("k", [1, 5, 12])
def test_keeps_exactly_k_units_in_order(name, k):
    coreset = method(name).select(random_layer(), k, seeded(0))
    kept = coreset.indices.tolist()
    assert len(kept) == k
    assert kept == sorted(set(kept))
    assert coreset.indices.dtype == torch.int64
    assert set(kept) <= set(range(12))


@pytest.mark.parametrize("name", METHODS)
def test_keeping_every_unit_is_the_identity(name):
    coreset = method(name).select(random_layer(), 12, seeded(0))
    torch.testing.assert_close(coreset.matrix(12), torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("name", METHODS)
def test_random_exactly_if_it_says_so(name):
    layer = random_layer(n=40)
    kept = [method(name).select(layer, 10, seeded(seed)).indices.tolist() for seed in range(6)]
    assert method(name).random == (len({tuple(k) for k in kept}) > 1)


@pytest.mark.parametrize("name", METHODS)
def test_layer_is_left_alone(name):
    layer, twin = random_layer(), random_layer()
    method(name).select(layer, 4, seeded(0))
    assert torch.equal(layer.incoming, twin.incoming)
    assert torch.equal(layer.outgoing, twin.outgoing)


def test_magnitude_keeps_the_largest_points_as_they_are():
    layer = random_layer()
    norms = [(layer.incoming[j].square().sum() + layer.bias[j] ** 2).item() for j in range(12)]
    coreset = method("magnitude").select(layer, 4, seeded(0))
    assert coreset.indices.tolist() == sorted(sorted(range(12), key=lambda j: -norms[j])[:4])
    assert coreset.mix.tolist() == [1.0] * 4


def test_sensitivity_keeps_the_most_sensitive_as_they_are():
    layer = random_layer()
    s = sensitivity(layer).tolist()
    coreset = method("sensitivity").select(layer, 4, seeded(0))
    assert coreset.indices.tolist() == sorted(sorted(range(12), key=lambda j: -s[j])[:4])
    assert coreset.mix.tolist() == [1.0] * 4


def test_uniform_is_unbiased():
    """Each unit is kept with probability k/n: 3000 trials, a deviation of 6 σ would come once in 10^8."""
    layer = random_layer()
    total = sum(method("uniform").select(layer, 3, g).matrix(12).sum(1) for g in [seeded(0)] for _ in range(3000))
    sigma = (4 * 0.25 * 0.75 * 4 / 3000) ** 0.5
    assert float((total / 3000 - 1).abs().max()) < 6 * sigma


def test_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'magic'.*sampling"):
        method("magic")
