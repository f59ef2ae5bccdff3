"""Several matrices beside each other: without a copy where they lie so, and never other values."""

from __future__ import annotations

import pytest
import torch

from coreprune.maths.reading import in_parts, stacked

WHOLE = torch.arange(4 * 3 * 3, dtype=torch.float64).reshape(4, 3, 3)


def test_what_lies_beside_each_other_is_not_copied():
    found = stacked(list(WHOLE.unbind()))
    assert torch.equal(found, WHOLE) and found.data_ptr() == WHOLE.data_ptr()
    inner = stacked(list(WHOLE[1:3].unbind()))
    assert torch.equal(inner, WHOLE[1:3]) and inner.data_ptr() == WHOLE[1].data_ptr()
    assert stacked([WHOLE[2]]).data_ptr() == WHOLE[2].data_ptr()


@pytest.mark.parametrize(
    "values",
    [
        [WHOLE[1], WHOLE[0]],  # in another order
        [WHOLE[0], WHOLE[2]],  # with something between
        [WHOLE[0].T, WHOLE[1].T],  # each across
        [WHOLE[0], WHOLE[1].clone()],  # elsewhere
        [WHOLE[0], WHOLE[1].T],
        [WHOLE[0], WHOLE[0]],
    ],
)
def test_all_else_is(values):
    assert torch.equal(stacked(values), torch.stack(values))


def test_parts_are_all_of_them_in_order():
    for size in (1, 200, 512, 5000):
        assert [one for part in in_parts(range(7), size) for one in part] == list(range(7))
    assert len(next(iter(in_parts(range(1000), 32)))) == 256
