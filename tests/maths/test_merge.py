"""Merging baselines: every unit goes to one cluster, copies cost nothing, and keeping all changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import in_ball, random_layer, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.merge import folding, neuron_merging

METHODS = {"folding": folding, "merging": neuron_merging}
methods = pytest.mark.parametrize("name", METHODS)


def run(name: str, layer: Layer, k: int, seed: int = 0) -> Coreset:
    return METHODS[name](layer, k, seeded(seed))


def points(layer: Layer) -> torch.Tensor:
    return torch.cat([layer.incoming, layer.bias[:, None]], 1)


@settings(max_examples=40)
@given(k=st.integers(1, 12), seed=st.integers(0, 1000))
def test_clusters_of_folding(k, seed):
    """Every unit is in one cluster, none is empty, centroids are means, and each has the name of one of its members."""
    layer = random_layer(seed=seed)
    coreset = run("folding", layer, k, seed)
    T, Q = coreset.mix, coreset.incoming
    assert T.shape == Q.shape == (12, k)
    assert bool(((T == 0) | (T == 1)).all())
    assert T.sum(1).tolist() == [1.0] * 12
    assert bool((T.sum(0) >= 1).all())
    torch.testing.assert_close(Q, T / T.sum(0))
    kept = coreset.indices.tolist()
    assert kept == sorted(set(kept))
    assert T[coreset.indices, torch.arange(k)].tolist() == [1.0] * k
    assert coreset.shift is None or float(coreset.shift.abs().max()) == 0
    centres = Q.T @ points(layer)
    own = (points(layer) - T @ centres).norm(dim=1)
    nearest = torch.cdist(points(layer), centres).min(1).values
    alone = T[:, :].sum(0)[T.argmax(1)] == 1  # where an empty cluster was filled, its one member stays
    assert bool(((own <= nearest + 1e-9) | alone).all())


@methods
def test_keeping_all_is_the_identity(name):
    layer = random_layer()
    coreset = run(name, layer, 12)
    assert coreset.indices.tolist() == list(range(12))
    assert torch.equal(coreset.matrix(12), torch.eye(12, dtype=torch.float64))
    x = in_ball(100, 4, 1.5)
    torch.testing.assert_close(coreset.apply(layer, x), layer(x))


@methods
@pytest.mark.parametrize("seed", range(5))
def test_exact_duplicates_cost_nothing(name, seed):
    layer = random_layer(n=5)
    order = torch.randperm(15, generator=seeded(seed)) % 5
    layer = replace(layer, incoming=layer.incoming[order], bias=layer.bias[order], outgoing=layer.outgoing.repeat(1, 3))
    if name == "merging":  # which keeps the largest: let no copy be among them
        size = torch.ones(15, 1, dtype=torch.float64)
        first = torch.tensor([order.tolist().index(j) for j in range(5)])
        size[first] = 100
        layer = replace(layer, incoming=size * layer.incoming, bias=size[:, 0] * layer.bias)
    coreset = run(name, layer, 5, seed)
    x = in_ball(200, 4, 1.5)
    torch.testing.assert_close(coreset.apply(layer, x), layer(x), rtol=1e-9, atol=1e-9)


@methods
@pytest.mark.parametrize("k", [1, 4, 11])
def test_shapes_and_order(name, k):
    coreset = run(name, random_layer(), k)
    kept = coreset.indices.tolist()
    assert len(kept) == k
    assert kept == sorted(set(kept))
    assert coreset.matrix(12).shape == (12, k)


def test_neuron_merging_is_its_description():
    """Largest norms stay as they are; others become ‖p_j‖/‖p_s‖ times the kept one of largest cosine ≥ 0.45."""
    layer = random_layer(n=12)
    coreset = run("merging", layer, 5)
    p = points(layer).tolist()
    norm = [sum(v * v for v in row) ** 0.5 for row in p]
    kept = sorted(sorted(range(12), key=lambda j: -norm[j])[:5])
    assert coreset.indices.tolist() == kept
    for j in range(12):
        expected = [0.0] * 5
        if j in kept:
            expected[kept.index(j)] = 1.0
        else:
            cosines = [sum(a * b for a, b in zip(p[j], p[s], strict=True)) / norm[j] / norm[s] for s in kept]
            best = max(range(5), key=lambda i: cosines[i])
            if cosines[best] >= 0.45:
                expected[best] = norm[j] / norm[kept[best]]
        assert coreset.matrix(12)[j].tolist() == pytest.approx(expected)


def test_folding_draws_from_the_generator_alone():
    layer = random_layer(n=40)
    assert torch.equal(run("folding", layer, 9, 3).mix, run("folding", layer, 9, 3).mix)
    state = torch.random.get_rng_state()
    run("folding", layer, 9, 4)
    assert torch.equal(state, torch.random.get_rng_state())


@methods
@pytest.mark.parametrize("k", [1, 3, 6])
def test_units_that_are_all_the_same_or_zero(name, k):
    layer = random_layer(n=6)
    for value in (0.0, 1.0):
        flat = replace(layer, incoming=torch.full_like(layer.incoming, value), bias=torch.full_like(layer.bias, value))
        coreset = run(name, flat, k)
        assert len(set(coreset.indices.tolist())) == k
        assert bool(torch.isfinite(coreset.matrix(6)).all())
        x = in_ball(20, 4, 1.5)
        torch.testing.assert_close(coreset.apply(flat, x), flat(x), rtol=1e-9, atol=1e-9)
