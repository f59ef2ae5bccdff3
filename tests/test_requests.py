"""What can be asked of a network that is no stack: widths, sites, budgets, data; and units that cost nothing."""

from __future__ import annotations

import pytest
import torch
from test_networks import HALF, call, close, network
from torch import nn

import coreprune as cp
from coreprune.errors import InvalidInputError, UnknownNameError
from zoo import suite

# ---------------------------------------------------------------- units that cost nothing


def images(*shape, seed=1):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)),)


def convolutions(padding=0, norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(8)] if norm else []
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=padding), *middle, nn.ReLU(), nn.Conv2d(8, 4, 3, padding=padding))
    return suite.families.lively(net)


def doubled_channels():
    net = convolutions(padding=1, norm=True)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.startswith(("0.", "1.")) and tensor.dim():
                tensor[4:] = tensor[:4]
    return net, images(2, 3, 8, 8), {"0": 4}


def doubled_neurons():
    model, given = network("bert")
    layer = model.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        layer.weight[24:], layer.bias[24:] = layer.weight[:24].clone(), layer.bias[:24].clone()
    return model, given, {"bert.encoder.layer.0.intermediate.dense": 24}


@pytest.mark.parametrize("make", [doubled_channels, doubled_neurons])
def test_of_exact_duplicates_little_is_lost(make):
    model, given, units = make()
    small = cp.prune(model, given, units=units)
    assert close(call(small.model, given), call(model, given), 0.05)
    assert small.plan.cuts[0].evidence["relative_error"] < 0.1


@pytest.mark.parametrize("make", [doubled_channels, doubled_neurons])
def test_exact_duplicates_cost_nothing(make):
    model, given, units = make()
    small = cp.prune(model, given, units=units)
    (half,) = units.values()
    assert sorted(int(i) % half for i in small.plan.cuts[0].kept) == list(range(half))
    assert small.plan.cuts[0].evidence["relative_error"] < 1e-4
    assert close(call(small.model, given), call(model, given), 1e-5)


def test_a_dead_channel_goes_first_and_costs_nothing():
    net, given = convolutions(padding=1), images(2, 3, 8, 8)
    with torch.no_grad():
        net[0].weight[5], net[0].bias[5] = 0, -1
    small = cp.prune(net, given, units={"0": 7})
    assert 5 not in small.plan.cuts[0].kept
    assert close(call(small.model, given), call(net, given), 1e-6)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_channel_is_a_bias_unless_padding_cuts_it_off(padding):
    net, given = convolutions(padding=padding), images(2, 3, 8, 8)
    with torch.no_grad():
        net[0].weight[5], net[0].bias[5] = 0, 0.7
    small = cp.prune(net, given, units={"0": 7})  # passes the check against the dense network either way
    if padding:
        inner = {k: v[..., 2:-2, 2:-2] for k, v in call(small.model, given).items()}
        assert inner["0"].shape[-1] == 4
    else:
        assert 5 not in small.plan.cuts[0].kept
        assert close(call(small.model, given), call(net, given), 1e-6)


# ---------------------------------------------------------------- what can be asked


def kept(name, **asked):
    model, given = network(name)
    return cp.plan(model, given, **asked).kept


def test_exact_widths_by_name_and_by_pattern():
    assert kept("conv", units={"one.0": 3}) == {"one.0": 3}
    assert kept("conv", units={"*.0": 5, "one.0": 3}) == {"one.0": 3, "two.0": 5}
    with pytest.raises(UnknownNameError, match=r"the sites are: one\.0"):
        kept("conv", units={"three": 3})
    with pytest.raises(InvalidInputError, match="9"):
        kept("conv", units={"one.0": 9})


def test_sites_to_leave_whole_and_kinds_to_cut():
    assert set(kept("conv", remove=HALF, ignore="*.0")) == {"hidden"}
    assert set(kept("conv", remove=HALF, ignore=["hidden", "re:^one"])) == {"two.0"}
    assert set(kept("conv", remove=HALF, kinds="linear")) == {"hidden"}
    assert set(kept("conv", remove=HALF, kinds=["conv"])) == {"one.0", "two.0"}
    with pytest.raises(InvalidInputError, match="there are sites of kind conv, linear"):
        kept("conv", remove=HALF, kinds="heads")


def test_widths_are_rounded_and_made_equal():
    widths = kept("bert", remove=0.3, kinds="linear", round_to=8)
    assert widths
    assert all(width % 8 == 0 for width in widths.values())
    inner = [w for k, w in kept("bert", remove=0.3, uniform=True).items() if "intermediate" in k]
    assert len(inner) in {0, 2}
    assert len(set(inner)) <= 1


@pytest.mark.parametrize("name", ["conv", "resnet"])
def test_a_budget_of_parameters_is_held_and_used(name):
    model, given = network(name)
    small = cp.prune(model, given, budget={"params": "60%"})
    share = small.parameters / small.dense_parameters
    assert 0.5 < share <= 0.6
    assert small.parameters == sum(t.numel() for t in small.model.state_dict().values())


def low_rank(count, seed=3):
    """Images with little variety, unlike noise."""
    g = torch.Generator().manual_seed(7)
    basis = torch.randn(3, 3 * 16 * 16, generator=g)
    weights = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return (weights @ basis).reshape(count, 3, 16, 16)


def test_data_make_convolutions_better_on_such_data():
    model, given = network("conv")
    loader = [(low_rank(16, seed), torch.zeros(16)) for seed in range(4)]
    free, fitted = (cp.prune(model, given, remove=HALF, **asked) for asked in ({}, {"data": loader}))
    assert fitted.plan.recipe["data_used"] and not free.plan.recipe["data_used"]
    x = (low_rank(64, 99),)
    truth = call(model, x)["0"]
    errors = [float((call(one.model, x)["0"] - truth).norm() / truth.norm()) for one in (free, fitted)]
    assert errors[1] < 0.7 * errors[0]
    predicted = [sum(cut.evidence["relative_error"] for cut in one.plan.cuts) for one in (free, fitted)]
    assert predicted[1] < predicted[0]


def few_words(count, seed):
    return {"input_ids": torch.randint(3, 9, (count, 7), generator=torch.Generator().manual_seed(seed))}


def test_data_in_dicts_make_bert_better_on_such_data():
    model, given = network("bert")
    asked = {"units": {"bert.encoder.layer.0.intermediate.dense": 24}}
    free = cp.prune(model, given, **asked)
    fitted = cp.prune(model, given, data=[few_words(2, seed) for seed in range(64)], **asked)
    x = few_words(32, 99)
    truth = call(model, x)["0"]
    errors = [float((call(one.model, x)["0"] - truth).norm()) for one in (free, fitted)]
    assert errors[1] < 0.7 * errors[0]
    assert fitted.plan.cuts[0].evidence["relative_error"] < 0.7 * free.plan.cuts[0].evidence["relative_error"]


def test_data_in_batches_of_another_size_than_the_example():
    model, given = network("bert")
    asked = {"units": {"bert.encoder.layer.0.intermediate.dense": 24}}
    assert cp.plan(model, given, data=[few_words(5, 1)], **asked).kept == asked["units"]


@pytest.mark.parametrize("turned_round", [False, True])
def test_data_need_not_say_again_what_the_example_fixes_nor_in_its_order(turned_round):
    model, _ = network("llama")
    batch = {"attention_mask": torch.ones(2, 7, dtype=torch.int64), **few_words(2, 1)}
    example = dict(reversed(batch.items())) if turned_round else batch
    plans = [cp.plan(model, example, data=[one], remove=HALF) for one in (batch, {**batch, "use_cache": False})]
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(plans[0].cuts, plans[1].cuts, strict=True))
    with pytest.raises(InvalidInputError, match="other arguments"):
        cp.plan(model, example, data=[{"input_ids": batch["input_ids"]}], remove=HALF)
