from __future__ import annotations

import pytest
import torch
from helpers import lenet_like, sizes
from torch import nn

from coreprune.surgery.apply import attributes, install, spared_copy


def test_install_sets_tensors_and_sizes():
    model = lenet_like()
    w, b = torch.randn(5, 6), torch.randn(5)
    install(model, {"0.weight": w, "0.bias": b, "2.weight": torch.ones(12, 5)})
    assert sizes(model) == [(6, 5), (5, 12), (12, 4)]
    assert torch.equal(model[0].weight, w)
    assert model(torch.ones(3, 6)).shape == (3, 4)


@pytest.mark.parametrize("frozen", [True, False])
def test_install_keeps_requires_grad(frozen):
    model = lenet_like().requires_grad_(not frozen)
    install(model, {"0.weight": torch.ones(5, 6), "0.bias": torch.ones(5)})
    assert isinstance(model[0].weight, nn.Parameter)
    assert model[0].weight.requires_grad == model[0].bias.requires_grad == (not frozen)


@pytest.mark.parametrize("frozen", [True, False])
def test_install_makes_a_bias_that_was_not_there(frozen):
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).requires_grad_(not frozen)
    weight = model[0].weight
    install(model, {"0.bias": torch.tensor([1.0, 2.0])})
    assert model[0].bias.requires_grad == (not frozen)
    torch.testing.assert_close(model(torch.zeros(1, 3)), torch.tensor([[1.0, 2.0]]))
    assert model[0].weight is weight


def test_install_replaces_buffers_as_buffers():
    model = nn.Sequential(nn.BatchNorm1d(4))
    install(model, {"0.running_mean": torch.ones(3)})
    assert "running_mean" in dict(model[0].named_buffers())
    assert model[0].running_mean.shape == (3,)


def test_spared_copy_copies_all_but_what_is_named():
    model = lenet_like()
    copy = spared_copy(model, {"0.weight": torch.ones(1)})
    shared = {name for name, p in copy.named_parameters() if p is dict(model.named_parameters())[name]}
    assert shared == {"0.weight"}
    assert type(copy) is type(model)


def test_attributes_follow_the_tensors():
    layer = nn.Linear(3, 5)
    layer.weight = nn.Parameter(torch.ones(2, 7))
    assert attributes(layer) == {"in_features": 7, "out_features": 2}
    assert attributes(nn.ReLU()) == {}
