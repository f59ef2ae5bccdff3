"""First two moments of a stream of vectors, in one pass and bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError

__all__ = ["Stream", "finite", "squared"]

#: columns from which a matrix is squared in halves
WIDE = 256


class Stream:
    """Running mean and covariance of vectors that come in batches (Chan, Golub & LeVeque 1983).

    Example:
        >>> stream = Stream(2)
        >>> stream.add(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
        >>> stream.moments()[1].tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    def __init__(self, features: int) -> None:
        """Start with nothing seen; vectors have `features` entries."""
        self.count = 0
        self._mean = torch.zeros(features, dtype=torch.float64)
        self._scatter: Tensor | None = None

    def add(self, batch: Tensor) -> None:
        """Take in a batch, (N, features)."""
        new = batch.detach().double().cpu()
        if not len(new):
            return
        mean = new.mean(0)
        centred = new - mean
        self._take(squared(centred), mean, len(new))

    def _take(self, scatter: Tensor, mean: Tensor, new: int, off: Tensor | None = None) -> None:
        """Take in `new` vectors with their mean and their scatter about it, or about the mean less `off`."""
        gap, total = mean - self._mean, self.count + new
        ends, weights = gap[None], [self.count * new / total]
        if off is not None:
            ends, weights = torch.stack([gap, off]), [*weights, -new]
        self._scatter = scatter.double() if self._scatter is None else self._scatter.add_(scatter)
        self._scatter.addmm_(ends.T * torch.tensor(weights, dtype=torch.float64), ends)
        self._mean += gap * (new / total)
        self.count = total

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance (divided by the count), float64.

        Raises:
            InvalidInputError: nothing, or something not finite, was seen.
        """
        if self._scatter is None:
            raise InvalidInputError("the data yielded no inputs: give a loader with at least one batch")
        covariance = self._scatter / self.count
        finite(covariance)
        return self._mean.clone(), covariance


def finite(values: Tensor) -> None:
    """Raise InvalidInputError where one of many values is NaN or infinite: their sum is then, too."""
    if not bool(torch.isfinite(values.sum())):
        raise InvalidInputError("the data lead to NaN or infinite activations: check the inputs")


def squared(A: Tensor) -> Tensor:
    """AᵀA for A of shape (N, n): of a large one each block off the diagonal once.

    Example:
        >>> squared(torch.tensor([[1.0, 2.0]])).tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """
    n = A.shape[1]
    if n < WIDE:
        product = A.T @ A  # which need not be symmetric to the last bit
        return (product + product.T) / 2
    result, half = A.new_empty(n, n), n // 2
    left, right = A[:, :half], A[:, half:]
    result[:half, :half], result[half:, half:] = squared(left), squared(right)
    result[:half, half:] = left.T @ right
    result[half:, :half] = result[:half, half:].T
    return result
