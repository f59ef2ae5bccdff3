"""First two moments of a stream of vectors, in one pass and bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.products import product, quick

__all__ = ["Stream", "add_squared", "finite", "mirrored", "squared"]

#: columns from which a matrix is squared in strips, and squares are summed up where they are, in their own precision
WIDE = 256
_STRIP = 64  # the fewest columns of a strip


class Stream:
    """Running mean and covariance of vectors that come in batches (Chan, Golub & LeVeque 1983), or of several at once.

    Example:
        >>> stream = Stream(2)
        >>> stream.add(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
        >>> stream.moments()[1].tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    def __init__(self, features: int, *beside: int) -> None:
        """Start with nothing seen; vectors have `features` entries, and of several lie in axes of sizes `beside`."""
        self.count, self.features = 0, features
        self._mean = torch.zeros(*beside, features, dtype=torch.float64)
        self._scatter: Tensor | None = None
        self._ends: list[tuple[float, Tensor]] = []  # w, v of the terms w·vvᵀ that the scatter lacks

    def add(self, batch: Tensor) -> None:
        """Take in a batch, (…, N, features)."""
        new = batch.detach().double().cpu()
        if not new.numel():
            return
        mean = new.mean(-2)
        self._take(new - mean[..., None, :], mean)

    def _take(self, centred: Tensor, mean: Tensor, off: Tensor | None = None) -> None:
        """Take in vectors less their mean, or less their mean less `off`, and that mean."""
        new, features = centred.shape[-2:]
        gap, total = mean - self._mean, self.count + new
        if features < WIDE:
            scatter = (centred.mT @ centred).double()
            self._scatter = scatter if self._scatter is None else self._scatter.add_(scatter)
        else:
            self._scatter = centred.new_zeros(features, features) if self._scatter is None else self._scatter
            add_squared(self._scatter, centred)
        self._ends.append((self.count * new / total, gap))
        if off is not None:
            self._ends.append((-float(new), off))
        if len(self._ends) >= features:
            self._end()
        self._mean += gap * (new / total)
        self.count = total

    def _end(self) -> None:
        """Add the terms that the scatter lacks."""
        if self._ends and self._scatter is not None:
            vectors = torch.stack([vector for _, vector in self._ends], -2)
            weights = torch.tensor([weight for weight, _ in self._ends], dtype=vectors.dtype)
            n, terms = self.features, len(weights)
            left, right = (vectors.mT * weights).reshape(-1, n, terms), vectors.reshape(-1, terms, n)
            self._scatter.view(-1, n, n).baddbmm_(left.to(self._scatter), right.to(self._scatter))
        self._ends = []

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean, float64, and covariance (divided by the count), in the precision that its terms were summed up in.

        Raises:
            InvalidInputError: nothing, or something not finite, was seen.
        """
        self._end()
        if self._scatter is None:
            raise InvalidInputError("the data yielded no inputs: give a loader with at least one batch")
        covariance = mirrored(self._scatter) / self.count
        finite(covariance)
        return self._mean.clone(), covariance


def finite(values: Tensor) -> None:
    """Raise InvalidInputError where one of many values is NaN or infinite: their sum is then, too."""
    if not math.isfinite(values.sum()) and not bool(torch.isfinite(values).all()):  # sums may run over
        raise InvalidInputError("the data lead to NaN or infinite activations: check the inputs")


def squared(A: Tensor) -> Tensor:
    """AᵀA for A of shape (N, n): of a large one little more than what is on and above the diagonal.

    Example:
        >>> squared(torch.tensor([[1.0, 2.0]])).tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """
    if A.shape[1] < WIDE:
        return mirrored(A.T @ A)
    result = A.new_empty(A.shape[1], A.shape[1])
    add_squared(result, A, beta=0)
    return mirrored(result)


def add_squared(total: Tensor, A: Tensor, *, beta: Literal[0, 1] = 1) -> None:
    """β·total + AᵀA into `total`, (n, n), strip by strip from the diagonal on; for what is below see `mirrored`."""
    for start, stop in _strips(A.shape[1]):
        _add_product(total[start:stop, start:], A[:, start:stop], A[:, start:], beta)


def _strips(n: int) -> Iterator[tuple[int, int]]:
    """Where strips of the rows of an (n, n) matrix start and stop; one strip is all that a small one has."""
    size = n if n < WIDE else max(_STRIP, n // 8)
    return ((start, min(start + size, n)) for start in range(0, n, size))


def _add_product(total: Tensor, A: Tensor, B: Tensor, beta: Literal[0, 1]) -> None:
    """β·total + AᵀB into `total`."""
    if not quick(A.T, B.T):
        total.addmm_(A.T, B, beta=beta)
    elif beta:
        total.add_(product(A.T, B.T))
    else:
        total.copy_(product(A.T, B.T))


def mirrored(total: Tensor) -> Tensor:
    """The matrix with the strips' part below the diagonal that above it, and symmetric to the last bit.

    One of WIDE columns or more is worked on in place. Of smaller ones there may be several, which stay as they are.

    Example:
        >>> mirrored(torch.tensor([[1.0, 2.0], [2.0, 5.0]])).tolist()
        [[1.0, 2.0], [2.0, 5.0]]
    """
    n = total.shape[-1]
    if n < WIDE:
        return (total + total.mT).div_(2)  # a product need not be symmetric
    for start, stop in _strips(n):
        block = total[start:stop, start:stop]
        block.copy_((block + block.T).div_(2))
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total
