"""Arguments of Python calls that cannot be meant, and networks without biases."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune.errors import CorepruneError, InvalidInputError


def stack(*widths: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("method", ["kernel", "refined", "folding", "sampling"])
def test_networks_without_biases_are_cut_whole(method, tmp_path):
    torch.manual_seed(0)
    model = stack(20, 40, 30, 5, bias=False)
    small = cp.prune(model, units={"0": 20, "2": 10}, method=method)
    x = torch.randn(50, 20)
    y = small.model(x)
    assert y.shape == (50, 5)
    small.save(tmp_path / "small")
    assert torch.equal(cp.load(tmp_path / "small", lambda: stack(20, 40, 30, 5, bias=False))(x), y)
    assert cp.verify(model, small, samples=200).end_bound > 0


@pytest.mark.parametrize("remove", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("widths", [(8, 20, 3), (20, 40, 30, 5)])
def test_the_bias_that_a_cut_makes_counts(remove, widths):
    torch.manual_seed(0)
    small = cp.prune(stack(*widths, bias=False), remove=remove)
    assert small.parameters <= (1 - remove) * small.dense_parameters


REQUESTS = [
    {"units": 5},
    {"units": {}},
    {"units": [("0", 3)]},
    {"units": {1: 3}},
    {"remove": {}},
    {"budget": "60%"},
    {"units": {"0": 3}, "radius": "5"},
    {"units": {"0": 3}, "data": 5},
    {"remove": 0.5, "data": [torch.randn(1, 6)]},
    {"units": {"0": 3}, "prior": "x"},
    {"units": {"0": 3}, "prior": cp.Gaussian(std="x")},
    {"remove": 0.5, "prior": cp.Gaussian(std=0.0)},
    {"units": {"0": 3}, "seed": 1.5},
]


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_one_sentence_for_what_cannot_be_meant(request_):
    with pytest.raises(InvalidInputError):
        cp.prune(stack(6, 8, 3), **request_)


@pytest.mark.parametrize("box", [5, (0,), "0,1", ("a", "b")], ids=str)
def test_a_box_is_two_numbers(box):
    model = stack(6, 8, 3)
    with pytest.raises(InvalidInputError, match="lowest"):
        cp.verify(model, cp.prune(model, units={"0": 3}), box=box)


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        model = stack(6, 8, 3)
    with pytest.raises(CorepruneError, match="meta"):
        cp.prune(model, units={"0": 3})


def test_inputs_that_are_not_numbers_are_refused():
    model = stack(6, 8, 3)
    with pytest.raises(InvalidInputError, match="NaN"):
        cp.verify(model, cp.prune(model, units={"0": 3}), inputs=torch.full((200, 6), torch.nan), worst=False)


def test_a_softplus_that_falls_is_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.Softplus(beta=-1.0), nn.Linear(8, 3))
    assert cp.inspect(model).sites == ()


def test_a_name_has_the_last_word_over_a_glob():
    assert cp.plan(stack(6, 8, 7, 3), units={"0": 3, "*": 4}).kept == {"0": 3, "2": 4}


def test_one_pattern_to_ignore_needs_no_list():
    assert cp.plan(stack(6, 8, 7, 3), remove={"*": 0.5}, ignore="0").kept == {"2": 3}
