"""The vectorised code against the algorithms as the paper writes them, in plain Python numbers."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import CASES, brute_range, random_layer, seeded

from coreprune.maths.sampling import coreset_of_layer, coreset_of_neuron, inclusion_probabilities, sensitivity

monotone_positive = pytest.mark.parametrize("name", ["relu", "softplus", "sigmoid", "binary_step", "relu6"])


def algorithm_1(points, weights, phi, radius):
    """[M19], Algorithm 1, line 2: pr(p) = w(p) φ(β‖p‖) / Σ w(q) φ(β‖q‖), with the strict norm of a query."""
    R = math.sqrt(1 + radius**2)
    terms = []
    for p, w in zip(points, weights, strict=True):
        z = R * math.sqrt(sum(v * v for v in p))
        terms.append(w * float(phi(torch.tensor(z, dtype=torch.float64))))
    return [t / sum(terms) for t in terms]


def draw(pr, uniforms):
    """How often each index comes up, by walking along the cumulated probabilities."""
    counts = [0] * len(pr)
    for u in uniforms:
        j, left = 0, u
        while left >= pr[j]:
            left -= pr[j]
            j += 1
        counts[j] += 1
    return counts


@monotone_positive
def test_one_neuron_is_algorithm_1(name):
    layer = random_layer(n=9, p=1, phi=name, radius=3.0)
    assert not layer.dead().any()
    w = layer.outgoing[0].abs()
    points = torch.cat([layer.incoming, layer.bias[:, None]], 1)
    pr = algorithm_1(points.tolist(), w.tolist(), layer.activation, 3.0)
    uniforms = torch.rand(6, generator=seeded(11), dtype=torch.float64).tolist()
    expected = [c * v / (6 * p) for c, v, p in zip(draw(pr, uniforms), w.tolist(), pr, strict=True)]
    found = coreset_of_neuron(points, w, layer.activation, 3.0, draws=6, generator=seeded(11))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


@monotone_positive
def test_one_layer_takes_the_largest_weight_of_each_unit(name):
    layer = random_layer(n=9, phi=name, radius=3.0)
    assert not layer.dead().any()
    strongest = [max(abs(layer.outgoing[i, j].item()) for i in range(3)) for j in range(9)]
    points = torch.cat([layer.incoming, layer.bias[:, None]], 1)
    pr = algorithm_1(points.tolist(), strongest, layer.activation, 3.0)
    s = sensitivity(layer)
    assert (s / s.sum()).tolist() == pytest.approx(pr, rel=1e-12)
    uniforms = torch.rand(6, generator=seeded(3), dtype=torch.float64).tolist()
    counts = draw(pr, uniforms)
    coreset = coreset_of_layer(layer, draws=6, generator=seeded(3))
    assert coreset.indices.tolist() == [j for j in range(9) if counts[j]]
    expected = [
        [w * counts[j] / (6 * pr[j]) for j, w in enumerate(row) if counts[j]] for row in layer.outgoing.tolist()
    ]
    torch.testing.assert_close(coreset.outgoing(layer.outgoing), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_signed_and_bent_activations_use_the_largest_magnitude(case):
    layer = random_layer(n=6, phi=case.name, radius=2.0, **case.parameters)
    s = sensitivity(layer).tolist()
    for j in range(6):
        reach = math.sqrt(5) * math.hypot(*layer.incoming[j].tolist(), float(layer.bias[j]))
        largest = max(abs(v) for v in brute_range(case.reference, -reach, reach))
        strongest = max(abs(float(w)) for w in layer.outgoing[:, j])
        assert s[j] == pytest.approx(strongest * largest, rel=1e-6)


def capped(s, k):
    """π = min(1, c·s): give everyone the share, fix those above 1, share out the rest again."""
    certain: set[int] = set()
    while True:
        rest = sum(v for j, v in enumerate(s) if j not in certain)
        c = (k - len(certain)) / rest
        over = {j for j, v in enumerate(s) if j not in certain and c * v > 1}
        if not over:
            return [1.0 if j in certain else c * v for j, v in enumerate(s)]
        certain |= over


@pytest.mark.parametrize("k", range(1, 30))
@pytest.mark.parametrize("power", [0.5, 3.0, 12.0])
def test_inclusion_probabilities_by_repeated_sharing(k, power):
    s = torch.rand(30, generator=seeded(k), dtype=torch.float64) ** power
    assert inclusion_probabilities(s, k).tolist() == pytest.approx(capped(s.tolist(), k), rel=1e-9)
