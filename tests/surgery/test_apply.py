from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import equal_states, lenet_like, sizes
from torch import nn

from coreprune.surgery.apply import install, size, spared_copy, ties, transaction
from coreprune.surgery.attributes import Followed


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight
    return model


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
    install(
        model,
        {
            "0.running_mean": torch.ones(3),
            "0.running_var": torch.ones(3),
            "0.weight": torch.ones(3),
            "0.bias": torch.ones(3),
        },
    )
    assert "running_mean" in dict(model[0].named_buffers())
    assert model[0].running_mean.shape == (3,)
    assert model[0].num_features == 3
    assert model(torch.ones(2, 3)).shape == (2, 3)


def test_install_finds_parameters_that_have_no_module_of_their_own():
    model = nn.Sequential(nn.ParameterList([torch.ones(4)]), nn.Linear(2, 2))
    model.register_parameter("scale", nn.Parameter(torch.ones(4)))
    model.register_buffer("table", torch.ones(4), persistent=False)
    install(model, {"0.0": torch.ones(3), "scale": torch.zeros(2), "table": torch.zeros(1)})
    assert model[0][0].shape == (3,)
    assert isinstance(model.scale, nn.Parameter)
    assert model.table.shape == (1,)
    assert "table" not in model.state_dict()


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_what_was_one_tensor_stays_one(name):
    model = tied()
    install(model, {name: torch.ones(7, 3), "1.weight": torch.ones(3, 3), "1.bias": torch.ones(3)})
    assert model[0].weight is model[2].weight
    assert model[0].embedding_dim == model[2].in_features == 3
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 7)
    assert ties(model) == {"0.weight": ("2.weight",)}


def test_shared_buffers_stay_shared():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[1].running_mean = model[0].running_mean
    install(model, {"0.running_mean": torch.ones(3)})
    assert model[1].running_mean is model[0].running_mean


def test_gradients_of_what_goes_go_and_others_stay():
    model = lenet_like()
    model(torch.ones(2, 6)).sum().backward()
    other = model[4].weight.grad
    install(model, {"0.weight": torch.ones(5, 6), "0.bias": torch.ones(5), "2.weight": torch.ones(12, 5)})
    assert model[0].weight.grad is None
    assert model[4].weight.grad is other


def test_hooks_and_modes_stay():
    model = lenet_like()
    model[0].eval()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    install(model, {"0.weight": torch.ones(5, 6), "0.bias": torch.ones(5), "2.weight": torch.ones(12, 5)})
    model(torch.ones(2, 6))
    assert calls == ["before", "after"]
    assert not model[0].training
    assert model[2].training


def snapshot(model: nn.Module):
    return [(module, dict(vars(module)), dict(module._parameters), dict(module._buffers)) for module in model.modules()]


def stubborn():
    """A layer whose size cannot be set."""

    class Stubborn(nn.Linear):
        def __setattr__(self, name, value):
            if name == "out_features" and hasattr(self, "weight"):
                raise RuntimeError("not me")
            super().__setattr__(name, value)

    model = lenet_like()
    model[2] = Stubborn(16, 12)
    model.register_buffer("table", torch.ones(3))
    return model


FAULTS = {
    "attribute": ({"0.weight": torch.ones(5, 6), "2.weight": torch.ones(11, 5), "table": torch.ones(2)}, ()),
    "no such module": ({"0.weight": torch.ones(5, 6), "table": torch.ones(2), "9.weight": torch.ones(1)}, ()),
    "no such module to tell": ({"0.weight": torch.ones(5, 6)}, [Followed("0", "in_features", 6, 7), Followed("8", "x", 1, 2)]),
    "name is taken": ({"0.weight": torch.ones(5, 6), "0.in_features": torch.ones(1)}, ()),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_raised_the_module_is_as_it_was(fault):
    model = stubborn()
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    with pytest.raises((RuntimeError, AttributeError, KeyError)):
        install(model, *FAULTS[fault])
    for (module, *old), (again, *new) in zip(before, snapshot(model), strict=True):
        assert module is again
        for held, holds in zip(old, new, strict=True):
            assert held.keys() == holds.keys()
            assert all(holds[name] is held[name] for name in held)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model(torch.ones(2, 6))


def test_a_transaction_around_an_install_takes_it_back():
    model, dense = lenet_like(), lenet_like()

    def change():
        install(model, {"0.weight": torch.ones(5, 6), "0.bias": torch.ones(5), "2.weight": torch.ones(12, 5)})
        model.extra = nn.Linear(2, 2)
        raise KeyError

    with pytest.raises(KeyError), transaction(model):
        change()
    assert equal_states(model, dense)
    assert sizes(model) == sizes(dense)
    assert not hasattr(model, "extra")


def test_followed_attributes_are_set_and_a_shared_object_is_not_changed():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    config = SimpleNamespace(heads=4, size=8)
    model[0].config = model[1].config = config
    model[0].heads = 4
    install(model, {}, [Followed("0", "heads", 4, 3), Followed("0", "config.heads", 4, 3)])
    assert model[0].heads == model[0].config.heads == 3
    assert model[0].config.size == 8
    assert model[1].config is config
    assert config.heads == 4


def test_spared_copy_copies_all_but_what_is_named():
    model = lenet_like()
    copied = spared_copy(model, {"0.weight": torch.ones(1)})
    shared = {name for name, p in copied.named_parameters() if p is dict(model.named_parameters())[name]}
    assert shared == {"0.weight"}
    assert type(copied) is type(model)


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_spared_copy_of_a_tied_tensor_leaves_the_original_alone(name):
    model = tied()
    dense = copy.deepcopy(model)
    small = spared_copy(model, [name])
    assert small[0].weight is small[2].weight is model[0].weight
    install(small, {name: torch.ones(7, 3)})
    assert small[0].weight is small[2].weight
    assert equal_states(model, dense)
    assert model[0].embedding_dim == 4


def test_spared_copy_spares_buffers():
    model = nn.Sequential(nn.BatchNorm1d(4))
    copied = spared_copy(model, ["0.running_mean"])
    assert copied[0].running_mean is model[0].running_mean
    assert copied[0].running_var is not model[0].running_var


def test_shared_tensors_count_once():
    assert size(tied()) == (7 * 4 + 4 * 4 + 4, 4 * (7 * 4 + 4 * 4 + 4))
    assert size(nn.BatchNorm1d(3)) == (4 * 3 + 1, 4 * 4 * 3 + 8)


def test_a_spared_copy_has_hooks_of_its_own():
    """Tables that are empty are made anew and not copied; what is registered later belongs to one of the two."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].register_forward_hook(lambda *_: None)
    small = spared_copy(model, ["0.weight"])
    assert len(small[0]._forward_hooks) == 1
    tables = [[v for m in one.modules() for v in vars(m).values() if isinstance(v, dict)] for one in (model, small)]
    assert not {id(table) for table in tables[0]} & {id(table) for table in tables[1]}
    assert len({id(table) for table in tables[1]}) == len(tables[1])
    small[1].register_forward_hook(lambda *_: None)
    assert not model[1]._forward_hooks
