"""Take, Mix and Add against plain loops, wherever the units lie."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import seeded

from coreprune.model.site import Location
from coreprune.surgery.edits import Add, Mix, Take, constant, edited

#: shape, location, units: rows, columns, channels of a convolution (in and out), a flattened convolution, a slice
PLACES = [
    ((4, 3), Location("w", 0), 4),
    ((3, 4), Location("w", 1), 4),
    ((4,), Location("w", 0), 4),
    ((4, 3, 2, 2), Location("w", 0), 4),
    ((3, 4, 2, 2), Location("w", 1), 4),
    ((3, 12), Location("w", 1, span=3), 4),
    ((3, 9), Location("w", 1, start=2), 4),
    ((15, 2), Location("w", 0, start=1, span=3), 4),
    ((2, 11, 2, 1), Location("w", 1, start=2, span=2), 4),
]
places = pytest.mark.parametrize(("shape", "at", "units"), PLACES, ids=str)


def rows_of(value: torch.Tensor, at: Location) -> list[torch.Tensor]:
    """Slices along the axis, one for each entry."""
    return [value.select(at.axis, i) for i in range(value.shape[at.axis])]


def unit(rows, at, j, r):
    return rows[at.start + j * at.span + r]


@places
@pytest.mark.parametrize("kept", [[0, 2], [3], [2, 0, 3], [0, 1, 2, 3]], ids=str)
def test_take_keeps_units_in_the_order_given(shape, at, units, kept):
    value = torch.randn(shape, generator=seeded(0))
    rows = rows_of(value, at)
    expected = rows[: at.start]
    expected += [unit(rows, at, j, r) for j, r in itertools.product(kept, range(at.span))]
    expected += rows[at.start + units * at.span :]
    found = Take(at, torch.tensor(kept), units)(value)
    assert torch.equal(found, torch.stack(expected, at.axis))
    assert found.is_contiguous()


@places
def test_mix_is_the_product_with_T(shape, at, units):
    value = torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    T = torch.randn(units, 2, generator=seeded(1), dtype=torch.float64)
    rows = rows_of(value, at)
    expected = rows[: at.start]
    for s, r in itertools.product(range(2), range(at.span)):
        expected.append(sum(T[j, s] * unit(rows, at, j, r) for j in range(units)))
    expected += rows[at.start + units * at.span :]
    torch.testing.assert_close(Mix(at, T)(value), torch.stack(expected, at.axis), rtol=1e-13, atol=1e-13)


def test_mix_of_a_matrix_is_W_T():
    W, T = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [10.0, 100.0]])
    assert Mix(Location("w", 1), T)(W).tolist() == [[31.0, 302.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_mix_computes_in_the_precision_of_T_and_rounds_once(dtype):
    W = torch.randn(5, 40, generator=seeded(0)).to(dtype)
    T = torch.randn(40, 7, generator=seeded(1), dtype=torch.float64)
    found = Mix(Location("w", 1), T)(W)
    assert found.dtype == dtype
    assert torch.equal(found, (W.double() @ T).to(dtype))


def test_add_to_a_bias_and_to_none():
    v = torch.tensor([0.5, -1.0], dtype=torch.float64)
    assert Add("b", v)(torch.tensor([1.0, 1.0]), torch.float32).tolist() == [1.5, 0.0]
    made = Add("b", v)(None, torch.float16)
    assert made.tolist() == [0.5, -1.0]
    assert made.dtype == torch.float16


def test_add_keeps_the_dtype_of_the_bias():
    found = Add("b", torch.ones(2, dtype=torch.float64))(torch.zeros(2, dtype=torch.bfloat16), torch.float32)
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(("shape", "at", "units"), [place for place in PLACES if place[1].axis == 1], ids=str)
def test_constant_is_the_reader_applied_to_a_constant(shape, at, units):
    weight = torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    t = torch.randn(units, generator=seeded(1), dtype=torch.float64)
    rows = rows_of(weight, at)
    expected = [
        sum(
            float(t[j]) * float(unit(rows, at, j, r)[i].sum())
            for j, r in itertools.product(range(units), range(at.span))
        )
        for i in range(shape[0])
    ]
    assert constant(weight, at, t).tolist() == pytest.approx(expected, rel=1e-12)


def test_edits_are_carried_out_in_order():
    w = torch.arange(8.0).reshape(2, 4)
    at = Location("w", 1)
    T = torch.tensor([[1.0], [1.0]])
    found = edited([Take(at, torch.tensor([3, 1]), 4), Mix(at, T)], {"w": w})["w"]
    assert found.tolist() == [[4.0], [12.0]]


def test_edited_leaves_its_input_alone_and_returns_only_what_changed():
    tensors = {"w": torch.ones(3, 4), "v": torch.ones(2), "a.weight": torch.ones(2, 2, dtype=torch.float64)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    edits = [
        Take(Location("w", 1), torch.tensor([0]), 4),
        Mix(Location("w", 0), torch.full((3, 3), 2.0)),
        Add("a.bias", torch.ones(2)),
    ]
    changed = edited(edits, tensors)
    assert set(changed) == {"w", "a.bias"}
    assert set(tensors) == set(before)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    assert changed["w"].data_ptr() != tensors["w"].data_ptr()


def test_a_bias_that_is_made_has_the_dtype_of_its_weight():
    changed = edited([Add("a.bias", torch.ones(2, dtype=torch.float64))], {"a.weight": torch.ones(2, 2).bfloat16()})
    assert changed["a.bias"].dtype == torch.bfloat16


def test_no_edits_change_nothing():
    assert edited([], {"w": torch.ones(2)}) == {}
