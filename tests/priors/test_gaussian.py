"""The Gaussian prior: scalars, vectors, mixtures, refusals, and its walk through two networks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import lenet_like, random_layer, seeded

import coreprune as cp
from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Layer
from coreprune.maths.propagate import difference_energy
from coreprune.priors.gaussian import Gaussian, Propagation

F64 = torch.float64


def test_default_is_the_ball_at_its_radius():
    """std = β/√d: inputs whose squared norm is β² on average."""
    (part,) = Gaussian().inputs(16, 8.0).components
    assert part.mean.tolist() == [0.0] * 16
    assert part.covariance.tolist() == [4.0] * 16
    assert float(part.covariance.sum()) == pytest.approx(64)


def test_numbers_and_vectors_say_the_same():
    one = Gaussian(mean=0.5, std=2.0).inputs(3, 1.0).components[0]
    other = Gaussian(mean=torch.full((3,), 0.5), std=torch.full((3,), 2.0)).inputs(3, 1.0).components[0]
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.covariance, other.covariance)
    assert one.mean.dtype == one.covariance.dtype == F64


def test_every_feature_has_its_own():
    part = Gaussian(torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [0.0]])).inputs(2, 1.0).components[0]
    assert part.mean.tolist() == [1.0, 2.0]
    assert part.covariance.tolist() == [9.0, 0.0]


def test_scales_are_a_mixture_of_equal_weights():
    pair = Gaussian(mean=1.0, std=2.0, scales=(0.5, 1.0, 3.0)).inputs(2, 1.0)
    assert [c.covariance.tolist() for c in pair.components] == [[1.0] * 2, [4.0] * 2, [36.0] * 2]
    assert len({c.weight for c in pair.components}) == 1
    assert pair.split is None


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (Gaussian(mean=torch.zeros(5)), "mean has 5 entries.*4 features"),
        (Gaussian(std=torch.ones(3)), "std has 3 entries.*4 features"),
        (Gaussian(mean=math.nan), "mean is not finite"),
        (Gaussian(std=math.inf), "std is not finite"),
        (Gaussian(std=torch.tensor([1.0, 1.0, math.nan, 1.0])), "std is not finite"),
        (Gaussian(std=-1.0), "negative"),
        (Gaussian(std=torch.tensor([1.0, -1e-9, 1.0, 1.0])), "negative"),
        (Gaussian(scales=()), "scales="),
        (Gaussian(scales=(1.0, -1.0)), "scales="),
        (Gaussian(scales=(math.nan,)), "scales="),
        (Gaussian(scales=(math.inf,)), "scales="),
    ],
)
def test_refusals(prior, message):
    with pytest.raises(InvalidInputError, match=message):
        prior.inputs(4, 1.0)


@pytest.mark.parametrize("prior", [Gaussian(mean=torch.zeros(5)), Gaussian(std=-1.0), Gaussian(mean=math.nan)])
def test_refusals_reach_the_public_interface_and_change_nothing(prior):
    model = lenet_like()
    with pytest.raises(InvalidInputError):
        cp.prune(model, units={"0": 3}, prior=prior, inplace=True)
    assert model[0].out_features == 16


def test_inputs_that_never_vary_leave_one_constant():
    """std = 0: every unit is constant, so one unit and a bias are the network."""
    model = lenet_like(dtype=F64)
    small = cp.prune(model, units={"0": 1, "2": 1}, prior=Gaussian(mean=0.5, std=0.0)).model
    x = torch.full((1, 6), 0.5, dtype=F64)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)


def test_a_name_in_words():
    assert Gaussian().named(16, 8.0) == "gaussian inputs, mean 0, std 2"
    assert "per feature" in Gaussian(torch.zeros(2), torch.ones(2)).named(2, 1.0)
    assert "0.5, 2" in Gaussian(scales=(0.5, 2.0)).named(2, 1.0)
    assert not Gaussian().data_used


# --- the walk --------------------------------------------------------------------------------------------------------


def chain() -> tuple[Layer, Layer]:
    first = random_layer(n=10, d=4, p=6, seed=1)
    g = seeded(2)
    second = Layer(
        first.outgoing,
        torch.randn(6, generator=g, dtype=F64),
        torch.randn(3, 6, generator=g, dtype=F64),
        first.activation,
        1.0,
    )
    return first, second


def test_the_dense_network_has_one_law():
    first, second = chain()
    walk = Propagation(Gaussian().inputs(4, 2.0))
    law = walk.law(first, first)
    assert law.target is None
    law = walk.beyond(first, first).law(second, second)
    assert law.moments.covariance.shape == (6, 6)


def test_behind_a_cut_the_two_networks_part():
    """Half of the first layer scaled down in the cut network: means and variances of what follows are each its own."""
    first, second = chain()
    small = replace(first, incoming=first.incoming[:5], bias=first.bias[:5], outgoing=first.outgoing[:, :5])
    now = replace(second, incoming=small.outgoing)
    walk = Propagation(Gaussian(std=0.8).inputs(4, 1.0)).beyond(first, small)
    law = walk.law(second, now)
    for found, (layer, after) in zip((law.target, law.moments.mean), ((first, second), (small, now)), strict=True):
        alone = Propagation(Gaussian(std=0.8).inputs(4, 1.0)).beyond(layer, layer).law(after, after)
        torch.testing.assert_close(found, alone.moments.mean)
    assert law.cross.shape == law.own.shape == (6, 6)
    assert float((law.cross - law.own).abs().max()) > 1e-3


def test_a_cut_that_changes_nothing_leaves_no_difference():
    first, second = chain()
    twin = replace(first, incoming=first.incoming.clone())
    walk = Propagation(Gaussian().inputs(4, 2.0)).beyond(first, twin)
    none = torch.zeros(3, dtype=F64)
    last = walk.beyond(second, replace(second, incoming=second.incoming.clone())).inputs
    gap = difference_energy(last.linear(second.outgoing, none, second.outgoing, none))
    assert float(gap.abs().max()) <= 1e-8 * float(last.overall()[1].diagonal().max())


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 2.0)], ids=str)
def test_pruning_under_a_mixture_tells_the_error_of_the_mixture(scales):
    """One hidden layer, 200,000 inputs from each radius, 6 σ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).double()
    small = cp.prune(model, units={"0": 7}, prior=Gaussian(std=1.0, scales=scales))
    x = torch.cat([s * torch.randn(200_000, 5, generator=seeded(i), dtype=F64) for i, s in enumerate(scales)])
    with torch.no_grad():
        square = (model(x) - small.model(x)).square().sum(1)
    told = small.plan.cuts[0].evidence["mean_square"]
    assert abs(float(square.mean()) - told) <= 6 * float(square.std()) / len(x) ** 0.5 + 1e-4 * told
