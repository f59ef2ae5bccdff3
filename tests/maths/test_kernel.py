"""The kernel method, alone and through the public interface: exact where it must be, its reported error measured."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from helpers import CASES, METHODS, equal_states, lenet_like, random_layer, seeded
from torch import Tensor, nn

import coreprune as cp
from coreprune.errors import InvalidInputError
from coreprune.maths import kernel as kernel_module
from coreprune.maths.kernel import kernel, select
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.methods import method
from coreprune.maths.propagate import Component, Law, Pair, law_of
from coreprune.maths.reweight import replacement, residual_energy
from coreprune.priors.gaussian import Gaussian

F64 = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def with_law(layer: Layer, std: float = 1.0) -> Layer:
    d = layer.incoming.shape[1]
    x = Pair((Component(1.0, torch.zeros(d, dtype=F64), torch.full((d,), std**2, dtype=F64)),))
    return replace(layer, law=law_of(x.linear(layer.incoming, layer.bias), layer.activation))


def energy(layer: Layer, coreset: Coreset) -> float:
    return float(residual_energy(layer.outgoing, layer.law, coreset)[0].sum())


def one_hidden(
    n: int = 24, d: int = 6, p: int = 4, seed: int = 0, function: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, n), function(), nn.Linear(n, p)).double()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("k", [1, 5, 12])
def test_keeps_exactly_k_units_in_order(case, k):
    layer = with_law(random_layer(phi=case.name, **case.parameters))
    coreset = kernel(layer, k)
    kept = coreset.indices.tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == k
    assert coreset.matrix(12).shape == (12, k)


def test_needs_a_law():
    with pytest.raises(InvalidInputError, match="prior"):
        kernel(random_layer(), 3)


@pytest.mark.parametrize("k", range(1, 8))
def test_close_to_the_best_of_all_subsets(k):
    for seed in range(4):
        layer = with_law(random_layer(n=8, seed=seed))
        best = min(
            energy(layer, replacement(layer.law, Coreset(torch.tensor(kept), torch.ones(k, dtype=F64))))
            for kept in combinations(range(8), k)
        )
        assert best * (1 - 1e-9) <= energy(layer, kernel(layer, k)) <= 2 * best + 1e-9


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("k", [2, 6, 10])
def test_never_worse_than_another_method_on_the_units_it_chose(name, k):
    layer = with_law(random_layer(n=12))
    theirs = method(name).select(layer, k, seeded(0))
    best = replacement(layer.law, theirs)
    assert torch.equal(best.indices, theirs.indices)
    assert energy(layer, best) <= energy(layer, theirs) + 1e-9


@pytest.mark.parametrize("name", METHODS)
def test_reweight_through_the_public_interface(name):
    """Same units, never a larger error; and the kernel's own units are better on average over seeds."""
    prior, ours, theirs = Gaussian(std=0.7), 0.0, 0.0
    for seed in range(5):
        model = one_hidden(seed=seed)
        plain, better = (cp.plan(model, units={"0": 8}, method=name, prior=prior, reweight=r) for r in (False, True))
        a, b = plain.cuts[0], better.cuts[0]
        assert torch.equal(a.coresets[0].indices, b.coresets[0].indices)
        assert b.evidence["relative_error"] <= a.evidence["relative_error"] * (1 + 1e-9)
        theirs += b.evidence["relative_error"]
        ours += cp.plan(model, units={"0": 8}, prior=prior).cuts[0].evidence["relative_error"]
    assert ours < theirs


@pytest.mark.parametrize("request_", [{"units": {"0": 16, "2": 12}}, {"remove": 0.0}, {"units": {"0": 16}}], ids=str)
@pytest.mark.parametrize("method_", ["kernel", "refined"])
def test_keeping_all_is_identical_through_the_public_interface(method_, request_):
    model = lenet_like()
    small = cp.prune(model, method=method_, **request_)
    assert equal_states(small.model, model)


@pytest.mark.parametrize("function", [nn.ReLU, nn.GELU, nn.Tanh, nn.Hardswish, nn.Sigmoid])
@pytest.mark.parametrize("k", [6, 18])
def test_reported_error_is_the_measured_one(function, k):
    """200,000 inputs of the prior; the interval is 5 σ, so one false alarm in 10⁶ runs; its width is below 4 %."""
    model, count = one_hidden(function=function), 200_000
    prior = Gaussian(mean=0.2, std=0.8)
    small = cp.prune(model, units={"0": k}, prior=prior)
    known = small.plan.cuts[0].evidence
    x = 0.2 + 0.8 * normal(1, count, 6)
    with torch.no_grad():
        y = model(x)
        square = (y - small.model(x)).square().sum(1)
    noise = 5 * float(square.std()) / count**0.5
    measured, variance = float(square.mean()), float(y.var(0).sum())
    assert noise < 0.04 * measured
    assert abs(measured - known["mean_square"]) <= noise + 1e-4 * measured
    assert known["output_variance"] == pytest.approx(variance, rel=0.02)
    assert known["relative_error"] == pytest.approx((measured / variance) ** 0.5, rel=0.02)
    each = (y - small.model(x).detach()).abs()
    assert float((each > known["chebyshev_error"]).double().mean(0).max()) <= known["chebyshev_delta"]


@pytest.mark.parametrize("k", [3, 10, 20])
def test_rescaled_units_are_the_same_units(k):
    """c·p, W/c with c > 0 is the same ReLU network: the same units stay, and the cut one computes the same."""
    model = one_hidden()
    other = copy.deepcopy(model)
    c = 10 ** (4 * torch.rand(24, generator=seeded(1), dtype=F64) - 2)
    with torch.no_grad():
        other[0].weight.mul_(c[:, None])
        other[0].bias.mul_(c)
        other[2].weight.div_(c)
    one, two = (cp.prune(m, units={"0": k}) for m in (model, other))
    assert torch.equal(one.plan.cuts[0].coresets[0].indices, two.plan.cuts[0].coresets[0].indices)
    x = normal(2, 500, 6)
    torch.testing.assert_close(one.model(x), two.model(x), rtol=1e-6, atol=1e-6)
    a, b = (s.plan.cuts[0].evidence["relative_error"] for s in (one, two))
    assert a == pytest.approx(b, rel=1e-6)


def test_rescaled_outputs_are_the_same_choice():
    layer = with_law(random_layer())
    assert torch.equal(kernel(layer, 5).indices, kernel(replace(layer, outgoing=1e-9 * layer.outgoing), 5).indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64], ids=str)
def test_every_precision_of_the_weights_is_handled_and_kept(dtype):
    model = one_hidden(32).to(dtype)
    small = cp.prune(model, units={"0": 20}, prior=Gaussian(std=0.5))
    assert {t.dtype for t in small.model.state_dict().values()} == {dtype}
    double = cp.prune(copy.deepcopy(model).double(), units={"0": 20}, prior=Gaussian(std=0.5))
    assert torch.equal(small.plan.cuts[0].coresets[0].indices, double.plan.cuts[0].coresets[0].indices)
    x = 0.5 * normal(0, 2000, 6)
    with torch.no_grad():
        y, exact, cut = model.double()(x), double.model(x), small.model.double()(x)
    step = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6, F64: 1e-9}[dtype]
    assert float((cut - exact).norm() / y.norm()) <= 4 * step


@pytest.mark.parametrize("d", [1, 6])
def test_one_unit(d):
    model = one_hidden(1, d)
    assert equal_states(cp.prune(model, units={"0": 1}).model, model)
    layer = with_law(random_layer(n=1, d=d))
    assert torch.equal(kernel(layer, 1).mix, torch.eye(1, dtype=F64))


def test_no_unit_is_refused_or_left_alone():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0] = nn.Linear(6, 8)
    with torch.no_grad():
        model[0].weight = nn.Parameter(torch.zeros(0, 6))
        model[0].bias = nn.Parameter(torch.zeros(0))
        model[2].weight = nn.Parameter(torch.zeros(3, 0))
    model[0].out_features = model[2].in_features = 0
    try:
        small = cp.prune(model, remove=0.0)
    except cp.CorepruneError:
        return
    assert equal_states(small.model, model)


@pytest.mark.parametrize("k", [1, 5, 11])
def test_units_that_explain_nothing_go_first(k):
    """Readers do not see units 0 … 3: those go before any other."""
    layer = random_layer()
    W = layer.outgoing.clone()
    W[:, :4] = 0
    layer = with_law(replace(layer, outgoing=W, incoming=torch.eye(12, dtype=F64), bias=torch.zeros(12, dtype=F64)))
    kept = set(kernel(layer, k).indices.tolist())
    assert not kept & {0, 1, 2, 3} if k <= 8 else kept >= set(range(4, 12))


@pytest.mark.parametrize("k", [2, 5, 9])
def test_the_path_tells_the_error_of_the_replacement(k):
    layer = with_law(random_layer(n=12))
    path = select(layer, k)
    total = float(residual_energy(layer.outgoing, layer.law, kernel(layer, 1))[1].sum())
    assert float(path.curve(12, total)[k]) == pytest.approx(energy(layer, kernel(layer, k)), rel=1e-6, abs=1e-8 * total)


@pytest.mark.parametrize("k", [3, 8])
def test_target_of_moved_units_is_the_dense_network(k):
    """Sequential correction: the units are as earlier cuts left them, what is reproduced is the dense output."""
    layer = random_layer(n=12)
    P, b = layer.incoming + 0.3 * normal(5, 12, 4), layer.bias + 0.3 * normal(6, 12)
    x = Pair((Component(1.0, torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64)),))
    law = law_of(x.linear(layer.incoming, layer.bias, P, b), layer.activation)
    now = replace(layer, incoming=P, bias=b, law=law)
    aware = energy(now, kernel(now, k))
    naive = kernel(replace(now, law=Law(law.moments)), k)  # reproduces the moved units instead
    assert aware <= energy(now, naive) + 1e-9
    measured = (layer(normal(7, 200_000, 4)) - kernel(now, k).apply(now, normal(7, 200_000, 4))).square().sum(1)
    assert abs(float(measured.mean()) - aware) <= 5 * float(measured.std()) / 200_000**0.5 + 1e-3 * aware


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64], ids=str)
def test_the_tensors_are_the_formula_rounded_once(dtype):
    """P_S, b_S, W' = W T and c' = c + W t, computed in float64 and rounded to the stored precision at the end."""
    model = one_hidden(32).to(dtype)
    plan = cp.plan(model, units={"0": 20}, prior=Gaussian(mean=0.4, std=0.5))
    coreset, small = plan.cuts[0].coresets[0], cp.apply(model, plan).model
    assert torch.equal(small[0].weight, model[0].weight[coreset.indices])
    assert torch.equal(small[0].bias, model[0].bias[coreset.indices])
    with torch.no_grad():
        W, c = model[2].weight.double(), model[2].bias.double()
        expected = W @ coreset.matrix(32).double(), c + W @ coreset.offset.double()
        half = 0.5 * torch.finfo(dtype).eps if dtype != F64 else 1e-12
        for found, exact in zip((small[2].weight, small[2].bias), expected, strict=True):
            assert bool(((found.double() - exact).abs() <= 1.001 * half * exact.abs() + 1e-7 * half).all())


@pytest.mark.parametrize("n, k", [(40, 7), (40, 39), (1100, 60)])
def test_wide_layers_get_their_weights_from_the_factor_of_the_selection(monkeypatch, n, k):
    """Beyond SMALL units the greedy goes forward, and leaves a factor behind: against the normal equations, unit by unit."""
    if n < kernel_module.SMALL:
        monkeypatch.setattr(kernel_module, "SMALL", 4)
    layer = with_law(random_layer(n=n, d=8, phi="softplus", seed=3))
    assert select(layer, k).factor is not None
    coreset = kernel(layer, k)
    kept, mean, G = coreset.indices, layer.law.moments.mean, layer.law.moments.covariance
    deviation = G.diagonal().sqrt()
    R = G / deviation[:, None] / deviation
    ridged = R[kept][:, kept] + 1e-10 * torch.eye(k, dtype=F64)
    T = torch.linalg.solve(ridged, R[kept]).T * deviation[:, None] / deviation[kept]
    T[kept] = torch.eye(k, dtype=F64)
    torch.testing.assert_close(coreset.mix, T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(coreset.offset, mean - coreset.mix @ mean[kept], rtol=1e-10, atol=1e-10)
    assert energy(layer, coreset) <= energy(layer, Coreset(kept, T, mean - T @ mean[kept])) * (1 + 1e-6) + 1e-9
