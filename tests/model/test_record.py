"""Graphs that are written down while the code runs, against those that torch.export makes; and what is left to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from coreprune.model.capture import capture
from coreprune.model.network import discover_network
from coreprune.model.record import recorded


class Wired(nn.Module):
    """Every function of the tables, by module, by name and as a method."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.acts = nn.Sequential(nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-2, 2, inplace=True), nn.Hardswish())
        self.more = nn.Sequential(nn.Hardsigmoid(), nn.SiLU(inplace=True), nn.Sigmoid(), nn.ReLU6(inplace=True))
        self.pools = nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 1, padding=1))
        self.gate = nn.Conv2d(8, 8, 1)
        self.out = nn.Sequential(nn.AdaptiveAvgPool2d((None, 2)), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))
        self.head, self.unused = nn.Linear(16, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.a(x)).relu_()
        y = self.more(self.acts(self.deep(x)))
        x = torch.relu(x + y) * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        x += y
        x = self.pools(F.dropout(x, 0.1, self.training))
        assert x.shape[1] == x.size(1) == 8 and x.dim() == 4
        x = F.avg_pool2d(F.max_pool2d(x, 1), (1, 1), None)
        two = torch.cat([x, x.mul(y.mean((2, 3), keepdim=True))], 1)
        return self.out(x.add(x)), self.head(torch.flatten(two.mean([2, 3]), 1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor, more: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))) + more


def graphs(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> list[list[tuple[str, str, str, list[str]]]]:
    """The nodes of the graph and of the exporter's, a parameter by its name in the model."""
    made = [capture(model.eval(), (args, kwargs), quick=quick) for quick in (True, False)]
    with torch.no_grad():
        assert recorded(model, args, kwargs) is not None
    assert made[0].inputs == made[1].inputs
    for one in made:
        for node in one.graph.graph.nodes:
            node.target = one.states.get(node.name, node.target)
    return [
        [
            (
                n.op,
                str(n.target),
                str(getattr(n.meta.get("val"), "shape", "")),
                [str(a.target) for a in n.all_input_nodes],
            )
            for n in one.graph.graph.nodes
        ]
        for one in made
    ]


@pytest.mark.parametrize("args", [(2, 3, 16, 16), (1, 3, 17, 23)])
def test_the_graph_is_that_of_the_exporter(args):
    quick, exported = graphs(Wired(), torch.randn(args))
    assert quick == exported
    made = [capture(Wired().eval(), torch.randn(args), quick=quick).graph.graph.nodes for quick in (True, False)]
    for a, b in zip(*made, strict=True):
        assert (a.name, str(a.args)) == (b.name, str(b.args))


def test_tied_weights_and_arguments_by_name():
    quick, exported = graphs(Tied(), torch.randn(2, 4), more=torch.randn(2, 4))
    assert [node for node in quick if node in exported] == quick  # that has a placeholder for each name


def test_the_same_sites_are_found():
    model, x = Wired().eval(), torch.randn(2, 3, 16, 16)
    quick, exported = (discover_network(model, x, how) for how in ("auto", "export"))
    assert quick.sites == exported.sites and quick.refused == exported.refused and quick.sites


class Calls(nn.Module):
    """One layer and whatever is done to what it gives."""

    def __init__(self, then) -> None:
        super().__init__()
        self.a, self.then = nn.Linear(4, 4), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.a(x))


def keeps(self: Calls, x: Tensor) -> Tensor:
    self.last = x
    return x


def writes(self: Calls, x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def casts(self: Calls, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return self.a(x)


OTHER = {
    "no table": lambda self, x: torch.cumsum(x, 1),
    "a number": lambda self, x: x + 1,
    "a computed weight": lambda self, x: F.linear(x, self.a.weight * self.a.weight),
    "a constant": lambda self, x: x + torch.ones(4),
    "a value": lambda self, x: x if float(x.sum()) > 0 else x + x,
    "no tensor": lambda self, x: (x, 3),
    "keeps": keeps,
    "writes": writes,
    "autocast": casts,
    "gradients": torch.enable_grad()(lambda self, x: x.relu()),
    "indices": lambda self, x: F.max_pool2d(x[None, None], 2, return_indices=True)[0],
}


@pytest.mark.parametrize("what", OTHER)
def test_the_rest_is_left_to_the_exporter(what):
    model, x = Calls(OTHER[what]).eval(), torch.randn(2, 4)
    before = {key: id(value) for key, value in vars(model).items()}
    with torch.no_grad():
        assert recorded(model, (x,), {}) is None
    assert {key: id(value) for key, value in vars(model).items()} == before
    assert model.a.weight.device == x.device


def test_parametrised_weights_are_left_to_the_exporter():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU()).eval()
    with torch.no_grad():
        assert recorded(model, (torch.randn(2, 4),), {}) is None


def test_inputs_that_are_no_tensors_are_left_to_the_exporter():
    model, x = Calls(lambda self, x: x), torch.randn(2, 4)
    with torch.no_grad():
        assert recorded(model, ([x],), {}) is None and recorded(model, (x, 3), {}) is None


def test_the_graph_computes_what_the_network_does_when_it_is_called():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        graph, states, (name,) = recorded(model, (x,), {})
        tensors = model.state_dict() | {name: x}
        held = [tensors[states.get(n.name, n.name)] for n in graph.graph.nodes if n.op == "placeholder"]
        for _ in range(2):  # the first call writes the code
            assert torch.equal(graph(*held)[0], model(x))
