"""Stack or network, and what is refused before anything is captured."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers import lenet_like
from torch import nn

import coreprune as cp
from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.model.discover import discover
from coreprune.model.network import plain_module


def test_a_stack_is_followed_and_needs_no_example():
    for example in (None, torch.zeros(2, 6)):
        found = discover(lenet_like(), example)
        assert found.chain and not found.graphs and found.features == 6


@pytest.mark.parametrize("how", ["export", "blocks"])
def test_a_stack_is_captured_if_asked(how):
    found = discover(lenet_like(), torch.zeros(2, 6), how)
    assert found.graphs and not found.chain and not found.features
    if how == "export":
        assert [(s.name, s.units) for s in found.sites] == [("0", 16), ("2", 12)]


@pytest.mark.parametrize("form", [(torch.zeros(2, 6),), {"input": torch.zeros(2, 6)}], ids=["tuple", "dict"])
def test_a_stack_with_arguments_that_are_no_tensor_is_captured(form):
    found = discover(lenet_like(), form)
    assert found.graphs and [s.name for s in found.sites] == ["0", "2"]


def test_both_ways_find_the_same_places():
    stack, network = (discover(lenet_like(), torch.zeros(2, 6), how) for how in ("auto", "export"))
    for a, b in zip(stack.sites, network.sites, strict=True):
        assert (a.name, a.units, a.activation, set(a.locations)) == (b.name, b.units, b.activation, set(b.locations))
        assert a.readers == b.readers


@pytest.mark.parametrize(
    "between", [nn.LayerNorm(6), nn.Softmax(-1), nn.BatchNorm1d(6)], ids=lambda m: type(m).__name__
)
def test_a_stack_that_is_not_understood_all_the_way_is_captured_where_there_is_an_example(between):
    model = nn.Sequential(nn.Linear(5, 6), between, nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2)).eval()
    found = discover(model, torch.zeros(3, 5))
    assert found.graphs and "2" in {s.name for s in found.sites}


def test_any_other_network_needs_an_example():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(
        UnsupportedModelError, match="to have any other network captured, pass example_inputs: one batch"
    ):
        discover(model)
    with pytest.raises(UnsupportedModelError, match=r"has to be captured; .*pass example_inputs"):
        discover(lenet_like(), None, "export")
    assert [s.name for s in discover(model, torch.zeros(1, 3, 8, 8)).sites] == ["0"]


def test_recurrent_layers_keep_their_sizes():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.rnn, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.LSTM(5, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.c(self.rnn(self.b(self.a(x).relu()))[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = discover(Recurrent().eval(), torch.zeros(2, 3, 4))
    assert [s.name for s in found.sites] == ["a"]
    assert any(r.name == "b" or "rnn" in r.name for r in found.refused)


# ---------------------------------------------------------------- refusals


class Quantised(nn.Module):
    """Stands for a layer of torch.ao.nn.quantized, which may not be built on every machine."""

    __module__ = "torch.ao.nn.quantized.modules.linear"


class Linear4bit(nn.Module):
    pass


class FSDPModule(nn.Module):
    pass


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(lenet_like())


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))


def lazy_buffer():
    return nn.Sequential(nn.LazyBatchNorm1d(affine=False), nn.Linear(4, 2))


def complex_buffer():
    model = lenet_like()
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    return model


REFUSED = {
    "scripted": (scripted, "TorchScript module.*pass the Python module"),
    "compiled": (
        lambda: torch.compile(lenet_like(), backend="eager"),
        "wrapped by torch.compile: pass the module inside, model._orig_mod",
    ),
    "parallel": (lambda: nn.DataParallel(lenet_like()), "wrapped by DataParallel: pass the plain module"),
    "a parallel part": (lambda: nn.Sequential(nn.DataParallel(lenet_like())), "^0 is wrapped by DataParallel"),
    "fully sharded": (lambda: nn.Sequential(FSDPModule()), "wrapped by FSDPModule"),
    "quantised": (lambda: nn.Sequential(Quantised()), "^0 is quantised .Quantised.: cut the network in floating point"),
    "four bits": (lambda: nn.Sequential(Linear4bit()), "quantised .Linear4bit"),
    "complex": (lambda: nn.Linear(3, 2, dtype=torch.complex64), "weight is complex: only real"),
    "a complex buffer": (complex_buffer, "phase is complex"),
    "lazy": (lazy, "0.weight has no shape yet .a lazy module.: run the model once"),
    "a lazy buffer": (lazy_buffer, "0.running_mean has no shape yet"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_is_no_plain_module_is_refused_with_what_to_do(name):
    make, reason = REFUSED[name]
    model = make()
    for call in (plain_module, discover, lambda m: cp.plan(m, torch.zeros(1, 6), remove=0.5)):
        with pytest.raises(UnsupportedModelError, match=reason):
            call(model)


@pytest.mark.parametrize(
    "thing", [None, 3, "model.pt", {"weight": torch.zeros(2)}, lenet_like, nn.Linear], ids=lambda v: type(v).__name__
)
def test_what_is_no_module_is_told(thing):
    with pytest.raises(InvalidInputError, match=r"a torch\.nn\.Module was expected, but this is a"):
        discover(thing)


def test_a_plain_module_passes():
    plain_module(lenet_like())
    plain_module(copy.deepcopy(lenet_like()).half())
