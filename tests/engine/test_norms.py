"""BatchNorms on the statistics of what they get: against float64, however the values lie in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coreprune.engine.norms import POSITIONS, normalised


def given(lies, *, off=0.0, side=16):
    """Images whose channels have different means and deviations, and what a BatchNorm holds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, side, side, generator=generator) * torch.linspace(0.5, 3, 6)[:, None, None] + off
    norm = nn.BatchNorm2d(6, eps=0.5).eval()
    for value in norm.parameters():
        nn.init.uniform_(value, 0.5, 2, generator=generator)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.5, 2, generator=generator)
    return x.contiguous(memory_format=lies), norm


@torch.no_grad()
def through(x, norm, take=None):
    return normalised((x, norm.weight, norm.bias, norm.running_mean, norm.running_var), norm.eps, take)


@pytest.mark.parametrize("lies", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("off", [0.0, 100.0])
def test_statistics_are_those_of_the_batch_to_rounding(lies, off):
    x, norm = given(lies, off=off)
    taken = []
    y = through(x, norm, lambda *each: taken.append(each))
    wide = x.double()
    mean, variance = wide.mean((0, 2, 3)), wide.var((0, 2, 3), correction=0)
    ((m, v, count),) = taken
    assert count == 8 * 16 * 16
    # summing in float32 leaves rounding of the mean, some hundredth of it times the precision
    assert ((m - mean).abs() <= 1e-5 * variance.sqrt() + 1e-6 * mean.abs()).all()
    torch.testing.assert_close(v.double(), variance, rtol=2e-5, atol=0)
    share = (norm.running_var / (norm.running_var + norm.eps)).double().sqrt() * norm.weight.double()
    wanted = share[:, None, None] * (wide - mean[:, None, None]) / variance.sqrt()[:, None, None]
    torch.testing.assert_close(y.double(), wanted + norm.bias.double()[:, None, None], rtol=0, atol=1e-4 + 1e-6 * off)


@pytest.mark.parametrize("lies", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("value", [7.0, 0.1])  # sums of the second are rounded
def test_channels_that_are_constant_and_small_batches_keep_the_running_statistics(lies, value):
    x, norm = given(lies, side=64)
    x[:, 2] = value
    with torch.no_grad():
        torch.testing.assert_close(through(x, norm)[:, 2], norm(x)[:, 2], rtol=1e-5, atol=1e-5)
        few = x[:1, :, :2, :2].contiguous(memory_format=lies)
        assert few[:, 0].numel() < POSITIONS
        torch.testing.assert_close(through(few, norm), norm(few), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_variance_may_be_beyond_the_range_of_half_precision():
    x, norm = given(torch.contiguous_format)
    wanted = through(x * 3000, norm)
    found = through((x * 3000).half(), norm.half())
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=2e-2)
