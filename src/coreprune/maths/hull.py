"""The lower convex hull of an error curve: all that a price per unit can make best."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve"]


@dataclass(frozen=True)
class Curve:
    """Numbers of units to choose from, and the error of each.

    Attributes:
        choices: ascending.
        errors: err(k) for each.
        vertices: the choices on the lower convex hull, and `slopes` those of its edges, ascending.
    """

    choices: NDArray[np.int64]
    errors: NDArray[np.float64]
    vertices: tuple[int, ...]
    slopes: tuple[float, ...]

    @classmethod
    def of(cls, choices: NDArray[np.int64], errors: NDArray[np.float64]) -> Curve:
        """The hull by Andrew's monotone chain.

        Example:
            >>> Curve.of(np.array([1, 2, 3, 4]), np.array([8.0, 7.0, 2.0, 0.0])).vertices
            (1, 3, 4)
        """
        hull: list[tuple[int, float]] = []
        for point in zip(choices.tolist(), errors.tolist(), strict=True):
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
                hull.pop()
            hull.append(point)
        return cls(choices, errors, tuple(k for k, _ in hull), tuple(_slope(a, b) for a, b in pairwise(hull)))

    def cheapest(self, price: float) -> int:
        """argmin_k err(k) + price·k, the least of them.

        Example:
            >>> Curve.of(np.array([1, 2, 3, 4]), np.array([8.0, 7.0, 2.0, 0.0])).cheapest(2.5)
            3
        """
        return self.vertices[bisect_left(self.slopes, -price)]

    def at(self, kept: int) -> float:
        """err(kept), for a choice."""
        return float(self.errors[self.index(kept)])

    def index(self, kept: int) -> int:
        """Which of the choices it is."""
        return int(np.searchsorted(self.choices, kept))


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
