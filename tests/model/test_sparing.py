"""A model whose code writes into its buffers has, after whatever was done, the buffers that it had."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune.model.untouched import sparing

X = torch.randn(3, 12)


class Counting(nn.Module):
    """Counts its calls, and lays its inputs by."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(8, 12))

    def forward(self, x):
        self.calls.add_(1)
        self.cache[: len(x)] = x.detach()
        return self.c(x + self.b(self.a(x).relu()))


def made():
    torch.manual_seed(0)
    return Counting().eval()


def unchanged(model):
    return float(model.calls) == 0 and not bool(model.cache.any())


@pytest.mark.parametrize("how", ["auto", "export"])
def test_nothing_that_is_done_leaves_a_trace(how):
    model = made()
    own = [id(buffer) for buffer in model.buffers()]
    cp.inspect(model, X, capture=how)
    assert unchanged(model)
    small = cp.prune(model, X, units={"a": 12}, prior="noise", capture=how)
    assert unchanged(model) and unchanged(small.model)
    cp.apply(model, cp.plan(model, X, units={"a": 12}, prior="noise", capture=how))
    cp.verify(model, small)
    assert unchanged(model) and unchanged(small.model)
    assert own == [id(buffer) for buffer in model.buffers()]


def test_buffers_are_put_back_where_it_fails_too_and_only_where_they_were_written():
    model = made()

    @sparing
    def fails(model, other):
        model.calls.add_(3)
        other.calls.add_(5)
        raise ZeroDivisionError

    other = made()
    with pytest.raises(ZeroDivisionError):
        fails(model, other)
    assert unchanged(model) and unchanged(other)
    assert model.cache._version == 0  # which nobody wrote into


def test_what_one_step_writes_is_gone_before_the_next():
    """Of functions within each other the inner one puts back too, whether the outer one has held the buffer or not."""

    @sparing
    def inner(model):
        model.calls.add_(5)
        return float(model.calls)

    @sparing
    def outer(model):
        first, between = inner(model), float(model.calls)
        model.calls.add_(1)
        return first, between, inner(model), float(model.calls)

    model = made()
    assert outer(model) == (5, 0, 6, 1)
    assert unchanged(model)
