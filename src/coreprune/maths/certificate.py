"""What can be said of a coreset afterwards, whoever chose it: mean square, Chebyshev, and counted samples.

Nothing here calls a selector. The worst case over a domain is in `coreprune.maths.worst_case`.
"""

from __future__ import annotations

import math

import torch
from scipy.special import betaincinv
from torch import Tensor

from coreprune.errors import InvalidInputError

__all__ = ["Spread", "chebyshev", "clopper_pearson", "relative_error"]


def chebyshev(mean_square: float, probability: float) -> float:
    """The ε that |y − ŷ| exceeds with at most this probability: ε = √(E(y − ŷ)² / probability).

    Args:
        mean_square: E (y − ŷ)² under some law of the inputs.
        probability: in (0, 1].

    Example:
        >>> chebyshev(0.04, 0.01)
        2.0
    """
    if not 0 < probability <= 1:
        raise InvalidInputError(f"a probability of {probability} was asked: give one above 0 and at most 1")
    return math.sqrt(mean_square / probability)


def relative_error(mean_square: Tensor, variance: Tensor) -> float:
    """√(Σ E(y_i − ŷ_i)² / Σ Var y_i): root mean square error over all outputs against their own spread.

    Args:
        mean_square: (p,). variance: (p,).
    """
    total = float(variance.sum())
    error = float(mean_square.sum())
    return math.sqrt(error / total) if total > 0 else (0.0 if error == 0 else math.inf)


class Spread:
    """Σ ‖y − ȳ‖² of vectors that come in batches, ȳ their mean: of those of one length, and summed over lengths.

    Two sets of n and m vectors with means a and b have together Σ_n + Σ_m + ‖a − b‖² n m / (n + m).

    Example:
        >>> spread = Spread()
        >>> spread.add(torch.tensor([[1.0, 100.0]]))
        >>> spread.add(torch.tensor([[3.0, 100.0]]))
        >>> spread.total
        2.0

    Source: Chan, Golub & LeVeque 1979.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._known: dict[int, tuple[int, Tensor]] = {}

    def add(self, rows: Tensor) -> None:
        """Take in vectors, (N, p)."""
        if not len(rows):
            return
        mean = rows.mean(0, dtype=torch.float64)
        n, before = self._known.get(rows.shape[1], (0, mean))
        m = len(rows)
        self.total += float((rows - mean).square().sum()) + float((mean - before).square().sum()) * n * m / (n + m)
        self._known[rows.shape[1]] = n + m, before + (mean - before) * (m / (n + m))


def clopper_pearson(failures: int, trials: int, delta: float) -> float:
    """Upper bound on a probability: with confidence 1 − δ the true one is at most this.

    The p with P(Binomial(n, p) ≤ failures) = δ, a quantile of the Beta law. Exact for independent trials.

    Args:
        failures: how many of the trials failed. trials: n ≥ 1. delta: δ.

    Example:
        >>> round(clopper_pearson(0, 1000, 0.05), 6)            # the "rule of three": about 3/n
        0.002991

    Source: Clopper & Pearson 1934.
    """
    if not 0 <= failures <= trials or trials < 1:
        raise InvalidInputError(f"{failures} failures in {trials} trials were given: count them again")
    if not 0 < delta < 1:
        raise InvalidInputError(f"delta={delta} is not a probability of failure: give one between 0 and 1")
    return float(betaincinv(failures + 1, trials - failures, 1 - delta)) if failures < trials else 1.0
