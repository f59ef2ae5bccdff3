"""What the code fixes is not cut, and networks are not taken for others."""

from __future__ import annotations

import pytest
import torch
from helpers import lenet_like
from torch import nn

import coreprune as cp
from coreprune.errors import CheckpointError, InvalidInputError, UnsupportedModelError


class Shaped(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.a, self.b, self.shape = nn.Linear(8, 64), nn.Linear(64, 3), shape

    def forward(self, x):
        return self.b(self.shape(torch.relu(self.a(x))))


@pytest.mark.parametrize(
    "shape",
    [lambda h: h.view(-1, 64), lambda h: h.view(-1, 8, 8).reshape(-1, 64), lambda h: h.reshape((-1, 64))],
    ids=["view", "twice", "tuple"],
)
@pytest.mark.parametrize("given", [True, False], ids=["with an example", "without"])
def test_a_width_that_the_code_holds_is_not_cut(shape, given):
    with pytest.raises(UnsupportedModelError):
        cp.prune(Shaped(shape).eval(), torch.randn(4, 8) if given else None, remove=0.5)


@pytest.mark.parametrize(
    "shape", [lambda h: h.view(h.size(0), -1), lambda h: h.flatten(1), lambda h: h.view(-1, h.shape[1])]
)
def test_what_only_flattens_is_cut(shape):
    net, x = Shaped(shape).eval(), torch.randn(4, 8)
    small = cp.prune(net, x, remove=0.5)
    assert small.model(x).shape == (4, 3)


def test_a_network_is_not_verified_against_itself():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    small = cp.prune(net, torch.zeros(2, 3, 8, 8), remove=0.3, prior="noise", inplace=True)
    with pytest.raises(InvalidInputError, match="one network twice"):
        cp.verify(net, small)


def test_a_plan_knows_the_readers_it_was_made_for():
    net = lenet_like()
    plan = cp.plan(net, units={"2": 4})
    with torch.no_grad():
        net[4].weight[0, 0] += 1
    with pytest.raises(CheckpointError, match=r"4\.weight"):
        cp.apply(net, plan)


@pytest.mark.parametrize("std", [-1.0, torch.tensor([1.0, -0.5])])
def test_a_negative_deviation_is_refused(std):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with pytest.raises(InvalidInputError, match="not negative"):
        cp.plan(net, torch.zeros(2, 3, 8, 8), remove=0.3, prior=cp.Gaussian(std=std))


def test_another_radius_is_of_the_worst_case_and_not_of_the_prior():
    net = lenet_like()
    small = cp.prune(net, units={"0": 6})
    plain, wide = (cp.verify(net, small, radius=r, worst=False, samples=500) for r in (None, 9.0))
    assert (plain.prior, plain.end_predicted) == (wide.prior, wide.end_predicted)
