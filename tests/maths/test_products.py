"""Products by oneDNN against those in float64."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded

from coreprune.maths import products
from coreprune.maths.products import product, quick
from coreprune.maths.streaming import WIDE, squared


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def rows(m: int, k: int, seed: int) -> torch.Tensor:
    return torch.randn(m, k, generator=seeded(seed))


def close(found: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> bool:
    """As far as float32 goes: |A| |B|ᵀ √k ε bounds what rounding adds up to, nearly always."""
    exact, bound = A.double() @ B.double().T, A.double().abs() @ B.double().abs().T
    return bool(((found.double() - exact).abs() <= 4 * torch.finfo(torch.float32).eps * bound).all())


@pytest.mark.parametrize("m,k,n", [(1, 1, 1), (3, 40, 5), (17, 300, 33), (64, 1000, 65)])
def test_a_product_is_one_however_it_is_computed(m, k, n, monkeypatch, two_threads):
    A, B = rows(m, k, 0), rows(n, k, 1)
    assert not quick(A, B) and close(product(A, B), A, B)
    monkeypatch.setattr(products, "LARGE", 1)
    assert quick(A, B) == torch.backends.mkldnn.is_available()
    assert close(product(A, B), A, B)
    parts = rows(2 * m, k, 2)[m:], rows(2 * n, 2 * k, 3)[n:, k:]  # rows that lie apart
    assert close(product(*parts), *parts)


def test_only_large_float32_rows_on_several_threads_are_worth_it(monkeypatch, two_threads):
    monkeypatch.setattr(products, "LARGE", 60)
    A, B = rows(3, 4, 0), rows(5, 4, 1)
    assert quick(A, B) == torch.backends.mkldnn.is_available()
    assert not quick(A, B[:4]) and not quick(A.double(), B.double()) and not quick(rows(4, 3, 0).T, B)
    torch.set_num_threads(1)
    assert not quick(A, B)


@pytest.mark.parametrize("n", [WIDE - 1, WIDE, WIDE + 3, 2 * WIDE + 5])
@pytest.mark.parametrize("large", [1, 2**21])
def test_squares_of_transposed_rows_are_those_of_rows(n, large, monkeypatch, two_threads):
    monkeypatch.setattr(products, "LARGE", large)
    A = rows(n, 40, 4)
    found = squared(A.T)
    assert close(found, A, A) and torch.equal(found, found.T)
