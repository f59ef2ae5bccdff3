"""What operators give on shapes, against PyTorch's own word."""

from __future__ import annotations

import itertools

import pytest
import torch

from coreprune.model import shapes
from coreprune.model.shapes import shaped

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def agree(operator, args, quick=True):
    """The same as the operator says, and by itself where `quick`."""
    own = shapes._QUICK[operator](*args)
    assert (own is not None) == quick
    found, expected = shaped(operator, args), operator(*args)
    assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)


SIZES = [(1, 1), (3, 3), (1, 7)]


@pytest.mark.parametrize("kernel", SIZES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(kernel, groups):
    weight = meta(6, 4 // groups, *kernel)
    for stride, padding, dilation in itertools.product([[1, 1], [2, 3]], [[0, 0], [1, 3]], [[1, 1], [2, 1]]):
        for bias in (None, meta(6)):
            agree(aten.conv2d.default, (meta(2, 4, 17, 19), weight, bias, stride, padding, dilation, groups))
    agree(aten.conv2d.default, (meta(2, 4, 17, 19), weight, None, [2], [1], [1], groups))
    if groups == 1:
        agree(aten.conv2d.default, (meta(2, 4, 17, 19, dtype=torch.float64), weight.double()))


def test_a_convolution_that_does_not_fit_raises_as_ever():
    for x, weight, more in [
        (meta(2, 5, 9, 9), meta(6, 4, 3, 3), ()),
        (meta(2, 4, 2, 9), meta(6, 4, 3, 3), ()),
        (meta(2, 4, 9, 9), meta(6, 4, 3, 3), (None, [0, 1])),
    ]:
        assert shapes._QUICK[aten.conv2d.default](x, weight, *more) is None
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            shaped(aten.conv2d.default, (x, weight, *more))
    agree(aten.conv2d.default, (meta(4, 9, 9), meta(6, 4, 3, 3)), quick=False)  # one image without a batch
    agree(aten.conv2d.default, (meta(2, 4, 9, 9), meta(6, 4, 3, 3), meta(5)), quick=False)  # PyTorch does not look


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_concatenations(axis):
    parts = [[2, 3, 4], [2, 3, 4]]
    parts[1][axis] += 5
    agree(aten.cat.default, ([meta(*part) for part in parts], axis))
    agree(aten.cat.default, ([meta(2, 3)] * 3,))


def test_concatenations_of_several_types_or_sizes_are_left_to_pytorch():
    agree(aten.cat.default, ([meta(2, 3), meta(2, 3, dtype=torch.float64)], 0), quick=False)
    agree(aten.cat.default, ([meta(2), meta(3)], 0), quick=False)
    with pytest.raises(RuntimeError):
        shaped(aten.cat.default, ([meta(2, 3), meta(3, 4)], 0))


def test_norms_and_activations():
    vectors = [meta(3) for _ in range(4)]
    agree(aten.batch_norm.default, (meta(2, 3, 5, 5), *vectors, False, 0.1, 1e-5, False))
    agree(aten.batch_norm.default, (meta(2, 3), None, None, *vectors[2:], False, 0.1, 1e-5, False))
    for operator in (aten.relu.default, aten.silu.default, aten.hardtanh.default):
        agree(operator, (meta(2, 3),))
    agree(aten.relu.default, (meta(2, 3, dtype=torch.int64),), quick=False)
    with pytest.raises(RuntimeError):
        shaped(aten.batch_norm.default, (meta(2, 4, 5, 5), *vectors, False, 0.1, 1e-5, False))
