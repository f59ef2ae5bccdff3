"""Small matrices of one size beside each other, (R, …), worked on in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["BESIDE", "columns_at", "in_parts", "others", "rows_at", "stacked"]

#: entries of matrices that lie beside each other: they stay in the processor's cache
BESIDE = 2**18
T = TypeVar("T")


def in_parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Several at a time, so that their matrices of `size` rows and columns, which lie beside each other, are not large.

    Example:
        >>> [len(part) for part in in_parts(range(5), 362)]
        [2, 2, 1]
    """
    many = max(1, BESIDE // size**2)
    yield from (values[low : low + many] for low in range(0, len(values), many))


def stacked(values: Sequence[Tensor]) -> Tensor:
    """Several tensors as one, without a copy if it is one or they lie beside each other."""
    first, step = values[0], values[0].numel() * values[0].element_size()
    memory = first.untyped_storage().data_ptr()
    for i, value in enumerate(values):
        beside = value.data_ptr() == first.data_ptr() + i * step and value.untyped_storage().data_ptr() == memory
        if not (beside and value.is_contiguous() and value.shape == first.shape):
            return torch.stack(list(values))
    return first.as_strided((len(values), *first.shape), (first.numel(), *first.stride()))


def rows_at(A: Tensor, at: Tensor) -> Tensor:
    """Rows of one matrix or of several, (…, m, k): `at` are their indices, (m,), or (R, m) where each has its own.

    Example:
        >>> rows_at(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1], [0]])).flatten().tolist()
        [2.0, 3.0]
    """
    if at.dim() == 1:
        return A.index_select(-2, at)
    first = torch.arange(0, A.shape[0] * A.shape[1], A.shape[1], device=at.device)
    rows: Tensor = A.flatten(0, 1).index_select(0, (at + first[:, None]).flatten()).unflatten(0, at.shape)
    return rows


def columns_at(A: Tensor, at: Tensor) -> Tensor:
    """Columns of each of several matrices, (R, k, m), by the same indices as `rows_at`."""
    if at.dim() == 1:
        return A.index_select(-1, at)
    return A.gather(2, at[:, None].expand(-1, A.shape[1], -1))


def others(at: Tensor, size: int) -> Tensor:
    """Those of `size` indices that are not among some, (m,), or of each that has its own, (R, m).

    Example:
        >>> others(torch.tensor([[0, 2], [1, 2]]), 3).tolist()
        [[1], [0]]
    """
    left = torch.ones(*at.shape[:-1], size, dtype=torch.bool, device=at.device).scatter_(-1, at, False)
    return left.nonzero()[:, -1].reshape(*at.shape[:-1], -1)
