"""Modules that lay by what they computed are as they were after their code has been run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import coreprune as cp
from coreprune.model.tensors import tensors_of
from coreprune.model.untouched import drawing, evaluating, holding, untouched


class Biased(nn.Module):
    """Attention biases that are gathered once in eval mode, as in LeViT and its kin; the heads are fixed by the code."""

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(4))
        self.register_buffer("index", torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 0, 0]))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x + self.biases[self.index]
        if "cpu" not in self.cache:
            self.cache["cpu"] = self.biases[self.index]
        return x + self.cache["cpu"]


def network(inputs: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, 10), Biased(), nn.Linear(10, 3)).eval()


class Images(nn.Module):
    """The same behind a convolution, which makes it no stack."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 6, 3), nn.AdaptiveAvgPool2d(1))
        self.rest = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.features(x).flatten(1))


def held(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {k: dict(v) if type(v) is dict else v for k, v in vars(module).items() if not k.startswith("_")}
        for module in model.modules()
    ]


CASES = [(network, torch.randn(2, 6)), (lambda: Images().eval(), torch.randn(2, 3, 12, 12))]


@pytest.mark.parametrize(("build", "x"), CASES)
@pytest.mark.parametrize("capture", ["auto", "export", "blocks"])
def test_inspecting_lays_nothing_by(build, x, capture):
    model = build()
    before = held(model)
    cp.inspect(model, x, capture=capture)
    assert held(model) == before


@pytest.mark.parametrize(("build", "x"), CASES)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("called_before", [False, True])
def test_a_cut_network_computes_in_its_own_precision(build, x, inplace, called_before):
    """The float64 comparison gathers biases in float64, which the small network must not go on with."""
    model = build()
    with torch.no_grad():
        wanted = cp.apply(build(), cp.plan(build(), x, remove=0.5), x).model(x)
        if called_before:
            model(x)
    cached = [dict(m.cache) for m in model.modules() if isinstance(m, Biased)]
    small = cp.prune(model, x, remove=0.5, inplace=inplace)
    if not inplace:
        assert [dict(m.cache) for m in model.modules() if isinstance(m, Biased)] == cached
    y = small.model(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, wanted)


def test_containers_and_attributes_come_back_where_the_code_raises():
    model = nn.Linear(2, 2)
    model.seen, model.table, model.names = [1], {"a": 1}, {"x"}

    def code() -> None:
        assert not model.training
        model.seen.append(2)
        model.table["b"] = model.names.add("y")
        model.table, model.more = {}, 5
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), evaluating(model):
        code()
    assert model.training
    assert (model.seen, model.table, model.names) == ([1], {"a": 1}, {"x"})
    assert not hasattr(model, "more")


class Listening(nn.Linear):
    """Registers a hook once, and notes that it has."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "listens"):
            self.register_forward_hook(lambda module, given, result: result + 1)
            self.listens = True
        return super().forward(x)


def test_a_hook_goes_with_the_note_of_it():
    model, x = Listening(2, 2), torch.zeros(1, 2)
    for _ in range(3):
        with untouched(model):
            model(x)
    model(x)
    assert torch.equal(model(x), model.bias[None] + 1)


def test_what_is_no_attribute_stays_as_the_code_left_it():
    model = nn.Linear(2, 2)
    with untouched(model):
        model.register_buffer("count", torch.ones(1))
        model.weight = nn.Parameter(torch.zeros(2, 2))
    assert bool(model.count) and not model.weight.any()


class TwoNames(nn.Module):
    """One convolution and one BatchNorm under two names each, and both called twice, as CoaT has its position codes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.own = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList([self.own, self.own[0]])
        self.wide, self.head = nn.Conv2d(4, 16, 3), nn.Conv2d(16, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.blocks[0](self.own(self.stem(x)).relu())).relu())


@pytest.mark.parametrize("capture", ["auto", "export"])
def test_a_module_of_two_names_keeps_its_weights(capture):
    model, x = TwoNames().eval(), torch.randn(2, 3, 16, 16)
    tensors = {name: (tensor, tensor.clone()) for name, tensor in tensors_of(model).items()}
    y = model(x)
    small = cp.prune(model, x, units={"wide": 9}, capture=capture)
    after = tensors_of(model)
    assert after.keys() == tensors.keys()
    assert all(after[name] is own and torch.equal(own, copy) for name, (own, copy) in tensors.items())
    assert torch.equal(model(x), y)
    assert small.model(x).shape == y.shape
    assert small.model.own[0] is small.model.blocks[1]


def test_held_tensors_go_and_new_ones_with_them():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = tensors_of(model)

    def code() -> None:
        assert model[0].bias.tolist() == [1.0, 1.0]
        model[0].register_buffer("more", torch.ones(1))
        model[1].running_mean = torch.full((2,), 7.0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), holding(model, {id(model[0].bias): torch.ones(2)}):
        code()
    after = tensors_of(model)
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items())


@pytest.mark.parametrize("seed", [0, -3, 2**70])
def test_what_is_drawn_follows_the_seed_and_the_generator_is_as_it_was(seed):
    state = torch.get_rng_state()
    drawn = []
    for one in (seed, seed, seed + 1):
        with drawing(one, []):
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), state)
