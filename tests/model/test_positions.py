"""Multiply-adds out of a captured graph, against PyTorch's own counter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import coreprune as cp
from coreprune.model.positions import positions


def counted(model: nn.Module, x: torch.Tensor) -> float:
    """Floating operations of one input."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() / len(x)


def pictures() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 24, 1),
        nn.ReLU(), nn.ConvTranspose2d(24, 12, 2, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
def test_multiply_adds_are_those_that_pytorch_counts(batch):
    model, x = pictures(), torch.randn(batch, 3, 20, 20)
    found = cp.inspect(model, x)
    times = positions(found.graphs)
    assert set(times) == {name for name in found.shapes if name.endswith("weight")}
    assert 2 * sum(math.prod(found.shapes[name]) * count for name, count in times.items()) == counted(model, x)


def test_half_the_multiply_adds_are_half_of_them():
    model, x = pictures(), torch.randn(2, 3, 20, 20)
    small = cp.prune(model, x, budget={"flops": "50%"}, prior="noise").model
    assert 0.4 < counted(small, x) / counted(model, x) <= 0.5


def test_tables_that_are_looked_up_cost_nothing_and_tied_ones_what_their_product_does():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 20), nn.Linear(20, 6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.down(self.up(self.table(ids)).relu())[:, -1:])

    found = cp.inspect(Tied().eval(), torch.zeros(2, 7, dtype=torch.long))
    assert positions(found.graphs) == {"up.weight": 7, "down.weight": 7, "table.weight": 1}
