"""Products in bfloat16: as float32 to their rounding, only of Linear layers, and only where all is float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coreprune.engine import precision
from coreprune.engine.precision import product, reduced
from coreprune.engine.runner import run
from coreprune.model.capture import capture
from coreprune.model.site import Tap
from coreprune.model.tensors import tensors_of


class Small(nn.Module):
    """A tied table, a norm, and products as networks write them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)
        self.matrix, self.offset = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))

    def forward(self, ids):
        x = self.norm(self.table(ids))
        x = x + self.down(self.up(x).relu())
        x = torch.addmm(self.offset, x.flatten(0, 1), self.matrix) + torch.mm(x.flatten(0, 1), self.matrix)
        return x @ self.table.weight.T


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(precision, "narrow", lambda device: True)
    torch.manual_seed(0)
    model, ids = Small().eval(), torch.randint(11, (4, 5))
    return model, ids, capture(model, (ids,))


def test_products_are_rounded_and_nothing_else_is(small):
    model, ids, captured = small
    dense = tensors_of(model)
    held = reduced(captured, dense)
    changed = {name for name in dense if held[name].dtype is torch.bfloat16}
    assert changed == {"up.weight", "down.weight", "matrix"}  # a table is looked up too
    assert all(held[name] is dense[name] for name in dense if name not in changed)
    (exact,), (rounded,) = (run(captured, tensors, ((ids,), {})) for tensors in (dense, held))
    assert rounded.dtype is torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 2**-6 * float(exact.abs().max())


def test_a_network_in_another_precision_is_left_as_it_is(small):
    model, ids, _ = small
    for kind in (torch.float64, torch.bfloat16):
        other = tensors_of(model.to(kind))
        assert reduced(capture(model, (ids,)), other) is other


def test_nothing_changes_without_the_instructions(small, monkeypatch):
    model, _, captured = small
    monkeypatch.setattr(precision, "narrow", lambda device: False)
    dense = tensors_of(model)
    assert reduced(captured, dense) is dense


def test_kernels_are_rounded_and_what_is_constant_is_not(small):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4)
    )
    x = torch.randn(2, 3, 10, 10)
    with torch.no_grad():
        net[0].weight[5], net[0].bias[5] = 0, 0.7
    captured, dense = capture(net.eval(), (x,)), tensors_of(net)
    held = reduced(captured, dense, images=True)
    assert {name for name in dense if held[name].dtype is torch.bfloat16} == {"0.weight", "3.weight"}
    seen = []
    tap = next(n for n in captured.graph.graph.nodes if str(n.target).startswith("aten.max_pool2d"))
    look = Tap(0, tap.name, tap.args[0].name, 1, torch.arange(8).reshape(8, 1, 1))
    (exact,), (rounded,) = (
        run(captured, tensors, ((x,), {}), taps=[look], hook=lambda _, value: seen.append(value))
        for tensors in (dense, held)
    )
    assert seen[1].dtype is torch.float32 and not torch.equal(seen[0], seen[1])
    assert bool((seen[1][:, 5] == dense["0.bias"][5]).all())
    assert rounded.dtype is torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 2**-6 * float(exact.abs().max())


def test_other_operators_are_not_products():
    assert product(torch.ops.aten.add.Tensor, (torch.ones(2), torch.ones(2))) is None
    assert product(torch.ops.aten.mm.default, (torch.ones(2, 2), torch.ones(2, 2))) is None
