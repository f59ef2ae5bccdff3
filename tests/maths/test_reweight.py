"""The optimal replacement: nobody beats it on the same units, exact cases cost nothing, its error is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import CASES, random_layer, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.activation import activation
from coreprune.maths.gram import Moments
from coreprune.maths.hermite import expand
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.merge import folding
from coreprune.maths.propagate import Component, Law, Pair, difference_energy, law_of
from coreprune.maths.reweight import RIDGE, replacement, residual_energy, solve

F64 = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def inputs(d: int, mean: float = 0.3, std: float = 0.9) -> Pair:
    return Pair((Component(1.0, torch.full((d,), mean, dtype=F64), torch.full((d,), std**2, dtype=F64)),))


def law_at(layer: Layer, x: Pair | None = None) -> Law:
    x = inputs(layer.incoming.shape[1]) if x is None else x
    return law_of(x.linear(layer.incoming, layer.bias), layer.activation)


def moved_law(layer: Layer, seed: int = 40) -> tuple[Layer, Law]:
    """The units as an earlier cut left them: another network reads other inputs, and the dense units are the target."""
    d = layer.incoming.shape[1]
    P, b = layer.incoming + 0.1 * normal(seed, layer.units, d), layer.bias + 0.1 * normal(seed + 1, layer.units)
    now = replace(layer, incoming=P, bias=b)
    return now, law_of(inputs(d).linear(layer.incoming, layer.bias, P, b), layer.activation)


def some(k: int, n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=seeded(seed))[:k].sort().values


def kept_only(law: Law, kept: Tensor) -> Coreset:
    return replacement(law, Coreset(kept, torch.ones(len(kept), dtype=F64)))


# --- optimality ------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    name=st.sampled_from(["relu", "tanh", "gelu", "sigmoid", "identity", "binary_step"]),
    k=st.integers(1, 9),
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1e-6, 1e-3, 1.0, 30.0]),
    moved=st.booleans(),
)
def test_nobody_is_better_on_the_same_units(name, k, seed, size, moved):
    """Against other T and t, near and far, and for targets that the units have moved away from."""
    layer = random_layer(n=9, phi=name, seed=seed)
    law = moved_law(layer)[1] if moved else law_at(layer)
    W, kept = layer.outgoing, some(k, 9, seed)
    best = kept_only(law, kept)
    least, variance = residual_energy(W, law, best)
    assert best.offset is not None
    for other in (
        replace(best, mix=best.mix + size * normal(seed + 1, 9, k)),
        replace(best, offset=best.offset + size * normal(seed + 2, 9)),
        Coreset(kept, torch.ones(k, dtype=F64)),
        Coreset(kept, torch.full((k,), 9 / k, dtype=F64)),
        Coreset(kept, normal(seed + 3, 9, k), normal(seed + 4, 9)),
    ):
        error = residual_energy(W, law, other)[0]
        assert bool((least <= error + 1e-8 * variance + 1e-13).all())  # every output on its own, not only their sum


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_normal_equation(case):
    """The error of each unit is uncorrelated with every kept unit and has no mean."""
    layer = random_layer(n=9, phi=case.name, **case.parameters)
    law, kept = law_at(layer), some(5, 9, 1)
    best = kept_only(law, kept)
    G = law.moments.covariance
    left = G[:, kept] - best.mix @ G[kept][:, kept]
    scale = torch.outer(G.diagonal().sqrt(), G.diagonal()[kept].sqrt())
    assert bool((left.abs() <= 1e-7 * scale + 1e-14).all())
    gap = law.moments.mean - best.mix @ law.moments.mean[kept] - best.offset
    assert float(gap.abs().max()) <= 1e-12


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), k=st.integers(1, 12))
def test_more_units_never_cost_more(seed, k):
    layer = random_layer(n=12, seed=seed)
    law, order = law_at(layer), torch.randperm(12, generator=seeded(seed))
    more, less = (
        residual_energy(layer.outgoing, law, kept_only(law, order[:m].sort().values)) for m in (k, max(1, k - 1))
    )
    assert bool((more[0] <= less[0] + 1e-8 * less[1]).all())


def test_keeping_all_is_exactly_the_identity():
    for dtype in (torch.float32, F64):
        law = law_at(random_layer())
        law = Law(Moments(law.moments.mean.to(dtype), law.moments.covariance.to(dtype)))
        coreset = kept_only(law, torch.arange(12))
        assert torch.equal(coreset.mix, torch.eye(12, dtype=dtype))
        assert coreset.offset is None or float(coreset.offset.abs().max()) == 0


# --- units that vanish -----------------------------------------------------------------------------------------------


def implied(law: Law, kept: Tensor, exact: Tensor) -> Tensor:
    """What the ridge λ allows for units that T reproduces exactly: λ Σ_s T_js² Var h_s, (n,).

    The ridge solution minimises E(h_j − ĥ_j)² + λ Σ_s T_js² Var h_s, which the exact T brings to its second term.
    """
    G = law.moments.covariance
    return RIDGE[G.dtype] * (exact.square() @ G.diagonal()[kept]) + 1e-13 * G.diagonal()


def unit_errors(law: Law, coreset: Coreset) -> Tensor:
    n = len(law.moments.mean)
    return residual_energy(torch.eye(n, dtype=F64), law, coreset)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_duplicates_cost_nothing(case):
    layer = random_layer(n=6, phi=case.name, **case.parameters)
    twice = replace(layer, incoming=layer.incoming.repeat(2, 1), bias=layer.bias.repeat(2))
    law, kept = law_at(twice), torch.arange(6)
    coreset = kept_only(law, kept)
    exact = torch.eye(6, dtype=F64).repeat(2, 1)
    assert bool((unit_errors(law, coreset) <= implied(law, kept, exact)).all())
    if case.phi.homogeneous and case.name != "identity":  # also where the copy is larger
        big = replace(
            twice,
            incoming=torch.cat([layer.incoming, 7 * layer.incoming]),
            bias=torch.cat([layer.bias, 7 * layer.bias]),
        )
        law = law_at(big)
        assert bool(
            (unit_errors(law, kept_only(law, kept)) <= implied(law, kept, torch.cat([exact[:6], 7 * exact[6:]]))).all()
        )


def test_both_copies_kept_share_the_work():
    layer = random_layer(n=6)
    twice = replace(layer, incoming=layer.incoming.repeat(2, 1), bias=layer.bias.repeat(2))
    law, kept = law_at(twice), torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    coreset = kept_only(law, kept)
    assert bool(torch.isfinite(coreset.mix).all())
    exact = torch.eye(6, dtype=F64).repeat(2, 1) @ torch.eye(6, 8, dtype=F64)
    assert bool((unit_errors(law, coreset) <= implied(law, kept, exact)).all())


def test_dead_and_constant_units_cost_nothing():
    layer = random_layer(n=8)
    P, b = layer.incoming.clone(), layer.bias.clone()
    P[5:] = 0
    b[5:] = torch.tensor([-2.0, 0.0, 3.0], dtype=F64)  # dead, dead, constant 3
    law, kept = law_at(replace(layer, incoming=P, bias=b)), torch.arange(5)
    coreset = kept_only(law, kept)
    errors = unit_errors(law, coreset)
    assert float(errors[5:].abs().max()) <= 1e-28
    assert float(coreset.mix[5:].abs().max()) == 0
    assert coreset.offset[5:].tolist() == pytest.approx([0, 0, 3.0], abs=1e-14)


def test_a_constant_unit_that_is_kept_does_no_harm():
    layer = random_layer(n=8)
    P, b = layer.incoming.clone(), layer.bias.clone()
    P[0], b[0] = 0, 1000.0
    law = law_at(replace(layer, incoming=P, bias=b))
    with_, without = kept_only(law, torch.arange(5)), kept_only(law, torch.arange(1, 5))
    torch.testing.assert_close(unit_errors(law, with_), unit_errors(law, without), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("extra", [0, 1])
def test_all_but_d_linear_units_vanish(extra):
    """ReLU far above its kink: d units (d + 1 where there were no constants t) make all others."""
    d, n = 4, 15
    layer = random_layer(n=n, d=d)
    layer = replace(layer, bias=40 * layer.incoming.norm(dim=1))
    law, kept = law_at(layer), torch.arange(d + extra)
    coreset = kept_only(law, kept)
    exact = layer.incoming @ torch.linalg.pinv(layer.incoming[kept])
    assert bool((unit_errors(law, coreset) <= implied(law, kept, exact)).all())
    one_less = unit_errors(law, kept_only(law, torch.arange(d - 1)))
    assert float((one_less / law.moments.covariance.diagonal()).max()) > 1e-2


# --- the error told is the error there is ----------------------------------------------------------------------------


def unresolved(dense: Layer, law: Law, coreset: Coreset) -> Tensor:
    """What the cut Mehler series may get wrong in E(y − ŷ)²: 2 τ_i τ_s |ρ_is|^{K+1} in every covariance, (p,)."""
    pre, n = law.pair.components[0], dense.units
    std = pre.covariance.diagonal().sqrt()
    tail = expand(dense.activation, pre.mean, std).tail
    power = (pre.covariance / torch.outer(std, std)).abs().clamp(max=1).fill_diagonal_(0) ** 25
    bound = 2 * torch.outer(tail, tail) * power
    V = torch.cat([dense.outgoing, torch.zeros(3, len(std) - n, dtype=F64)], 1)
    V[:, coreset.indices + len(std) - n] -= coreset.outgoing(dense.outgoing)
    return ((V.abs() @ bound) * V.abs()).sum(1)


def coresets(layer: Layer, law: Law, k: int) -> list[Coreset]:
    kept = some(k, layer.units, 3)
    return [
        kept_only(law, kept),
        Coreset(kept, 1 + normal(1, k)),
        Coreset(kept, normal(2, layer.units, k), normal(3, layer.units)),
        Coreset(kept, normal(2, layer.units, k)),
    ]


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "hardswish", "binary_step"])
@pytest.mark.parametrize("moved", [False, True])
def test_residual_energy_is_what_is_measured(name, moved):
    """200,000 inputs, 6 σ for each output: less than one false alarm in 10⁷ runs, were they Gaussian."""
    dense, count = random_layer(n=10, d=5, phi=name, seed=2), 200_000
    now, law = moved_law(dense) if moved else (dense, law_at(dense))
    x = 0.3 + 0.9 * normal(7, count, 5)
    for coreset in coresets(now, law, 6):
        torch.testing.assert_close(coreset.outgoing(dense.outgoing), dense.outgoing @ coreset.matrix(10))
        told, variance = residual_energy(dense.outgoing, law, coreset)
        square = (dense(x) - coreset.apply(now, x)).square()
        noise = 6 * square.std(0) / count**0.5
        assert bool(((square.mean(0) - told).abs() <= noise + unresolved(dense, law, coreset) + 1e-9 * variance).all())
        y = dense(x)
        noise = 6 * (y - y.mean(0)).square().std(0) / count**0.5
        assert bool(((y.var(0) - variance).abs() <= noise).all())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("moved", [False, True])
def test_residual_energy_is_the_difference_of_the_two_networks(case, moved):
    """`difference_energy` knows of no coreset, only of two networks side by side."""
    dense = random_layer(n=10, d=5, phi=case.name, **case.parameters)
    now, law = moved_law(dense) if moved else (dense, law_at(dense))
    before = inputs(5).linear(dense.incoming, dense.bias, now.incoming, now.bias)
    c = normal(8, 3)
    for coreset in coresets(now, law, 6):
        S, W = coreset.indices, dense.outgoing
        pre = inputs(5).linear(dense.incoming, dense.bias, now.incoming[S], now.bias[S])
        out = pre.units(dense.activation).linear(W, c, coreset.outgoing(W), c + coreset.constant(W))
        told, variance = residual_energy(W, law, coreset)
        torch.testing.assert_close(told, difference_energy(out), rtol=1e-6, atol=1e-9 * float(variance.max()))
    assert before.split == 10


# --- turned units ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_turned_units_get_their_best_weights(name):
    layer = random_layer(n=10, d=5, phi=name)
    law = law_at(layer)
    merged = folding(layer, 4, seeded(0))
    best = replacement(law, merged)
    assert torch.equal(best.incoming, merged.incoming)
    assert torch.equal(best.indices, merged.indices)

    def energy(coreset: Coreset) -> Tensor:
        Q, W = coreset.incoming.T, layer.outgoing
        pre = inputs(5).linear(layer.incoming, layer.bias, Q @ layer.incoming, Q @ layer.bias + coreset.shift)
        none = torch.zeros(3, dtype=F64)
        return difference_energy(pre.units(layer.activation).linear(W, none, coreset.outgoing(W), coreset.constant(W)))

    least = energy(best)
    assert bool((least <= energy(merged) + 1e-9).all())
    for seed in range(20):
        other = replace(
            best, mix=best.mix + 0.1 * normal(seed, 10, 4), offset=best.offset + 0.1 * normal(seed + 50, 10)
        )
        assert bool((least <= energy(other) + 1e-9).all())
    x = 0.3 + 0.9 * normal(7, 200_000, 5)
    square = (layer(x) - best.apply(layer, x)).square()
    assert bool(((square.mean(0) - least).abs() <= 6 * square.std(0) / 200_000**0.5 + 1e-4 * least).all())


def test_turned_units_of_a_measured_law_are_refused():
    layer = random_layer()
    measured = Law(law_at(layer).moments)
    with pytest.raises(InvalidInputError, match="Gaussian prior"):
        replacement(measured, folding(layer, 4, seeded(0)))


# --- solve -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_solve_is_free_of_scales(dtype):
    """Units of variance 1e-20 beside units of variance 1e20."""
    A = torch.randn(6, 9, generator=seeded(0), dtype=F64)
    B = torch.randn(4, 6, generator=seeded(1), dtype=F64)
    c = 10 ** torch.tensor([-10, -5, 0, 0, 5, 10], dtype=F64)
    plain = solve((A @ A.T).to(dtype), B.to(dtype))
    scaled = solve(((A @ A.T) * c[:, None] * c).to(dtype), (B * c).to(dtype))
    torch.testing.assert_close(scaled * c.to(dtype), plain, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-6)


def test_solve_is_the_inverse_up_to_the_ridge():
    A = normal(0, 6, 40)
    G, B = A @ A.T, normal(1, 4, 6)
    torch.testing.assert_close(solve(G, B) @ G, B, rtol=1e-7, atol=1e-8)
    assert solve(G, B, ridge=1.0).norm() < solve(G, B).norm()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_solve_never_fails_on_a_covariance(dtype):
    ones = torch.ones(50, 50, dtype=dtype)
    for G in (ones, 0 * ones, torch.diag(torch.arange(50).to(dtype)), ones * 1e-30):
        found = solve(G, G[:3])
        assert found.dtype == dtype
        assert bool(torch.isfinite(found).all())
        torch.testing.assert_close(found @ G, G[:3], rtol=1e-3, atol=1e-6)


def test_law_is_left_alone():
    layer = random_layer()
    law, twin = law_at(layer), law_at(layer)
    kept_only(law, torch.arange(4))
    residual_energy(layer.outgoing, law, kept_only(law, torch.arange(4)))
    assert torch.equal(law.moments.covariance, twin.moments.covariance)
    assert torch.equal(law.moments.mean, twin.moments.mean)
    assert law.phi == activation("relu")
