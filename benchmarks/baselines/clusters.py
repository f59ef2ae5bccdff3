"""k-means, as several folding methods need it: Lloyd's iterations from several k-means++ starts, the best kept."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from coreprune.maths.merge import centres_of, lloyd

__all__ = ["inertia", "k_means", "membership"]

ROUNDS = 300


def k_means(points: Tensor, k: int, generator: Generator, starts: int = 10) -> Tensor:
    """Labels 0 … k−1 of the points, (n,), every cluster with one at least.

    Args:
        points: (n, d). k: clusters. generator: of the starts. starts: how many.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> label = k_means(points, 2, torch.Generator().manual_seed(0))
        >>> bool(label[0] == label[1]), bool(label[2] == label[3]), bool(label[0] == label[2])
        (True, True, False)

    Source: Lloyd 1982; Arthur & Vassilvitskii, "k-means++", SODA 2007.
    """
    if k == len(points):
        return torch.arange(k)
    if points.shape[1] > len(points):  # coordinates in the span of the points: the same distances
        points = torch.linalg.qr(points.T, mode="r").R.T.contiguous()
    runs = [lloyd(points, _seeds(points, k, generator), ROUNDS) for _ in range(starts)]
    return min(runs, key=lambda label: inertia(points, label))


def inertia(points: Tensor, label: Tensor) -> float:
    """Σ of squared distances to the centroids."""
    centre = centres_of(points, label, int(label.max()) + 1)
    return float((points - centre[label]).square().sum())


def membership(points: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Which unit names each cluster, the member nearest to its centroid, and U.

    Returns:
        Names, (k,) ascending, and U, (n, k) of 0 and 1, its columns in the same order.

    Example:
        >>> kept, U = membership(torch.tensor([[4.0], [0.0], [1.0], [0.4]]), torch.tensor([0, 1, 1, 1]))
        >>> kept.tolist(), U.tolist()
        ([0, 3], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    """
    k = int(label.max()) + 1
    U = torch.nn.functional.one_hot(label, k).to(points.dtype)
    gap = (points - centres_of(points, label, k)[label]).square().sum(1)
    first = torch.where(U > 0, gap[:, None], torch.inf).argmin(0)
    order = torch.argsort(first)
    return first[order], U[:, order]


def _seeds(points: Tensor, k: int, generator: Generator) -> Tensor:
    """k-means++: each next start with a probability in proportion to its squared distance to the nearest before."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    gap = (points - points[chosen[0]]).square().sum(1)
    for _ in range(1, k):
        gap[chosen] = 0.0
        if float(gap.sum()) > 0:
            chosen.append(int(torch.multinomial(gap.double(), 1, generator=generator)))
        else:  # all that is left are duplicates
            chosen.append(next(i for i in range(len(points)) if i not in chosen))
        gap = torch.minimum(gap, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]
