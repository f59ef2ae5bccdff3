"""Merging baselines from the weights alone: every unit that goes is handed to one that stays.

*Folding* clusters the units by k-means and keeps the centroids; *neuron merging* keeps the units of
largest norm and adds each other unit, scaled, to the kept one of most similar direction.

Sources: Theus et al. 2025, "Model folding"; Kim et al., "Neuron Merging", NeurIPS 2020.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from coreprune.maths.layer import Coreset, Layer

__all__ = ["centres_of", "folding", "lloyd", "neuron_merging"]

ROUNDS = 100


def folding(layer: Layer, units: int, generator: Generator) -> Coreset:
    """k-means over the points p_j: centroids compute, and the outgoing weights of a cluster add up.

    Args:
        layer: the layer. units: k. generator: draws the first centroids (k-means++).
    """
    points = torch.cat([layer.incoming, layer.bias[:, None]], 1)
    label = _k_means(points, units, generator)
    n = layer.units
    T = torch.zeros(n, units, dtype=points.dtype, device=points.device)
    T[torch.arange(n, device=points.device), label] = 1
    centroid = T / T.sum(0).clamp(min=1)
    nearest = torch.cdist(points, centroid.T @ points)
    first = torch.where(T > 0, nearest, torch.inf).argmin(0)  # a member of each cluster names it
    order = torch.argsort(first)
    return Coreset(first[order], T[:, order], None, centroid[:, order].contiguous(), points.new_zeros(units))


def neuron_merging(layer: Layer, units: int, generator: Generator | None = None, *, threshold: float = 0.45) -> Coreset:
    """Largest norms stay; unit j is ‖p_j‖/‖p_s‖ times the kept unit s of largest cosine if it reaches threshold."""
    points = torch.cat([layer.incoming, layer.bias[:, None]], 1)
    norms = layer.norms
    kept = torch.sort(torch.argsort(norms, descending=True, stable=True)[:units]).values
    unit = points / norms.clamp(min=1e-300)[:, None]
    cosine, to = (unit @ unit[kept].T).max(1)
    T = torch.zeros(layer.units, units, dtype=points.dtype, device=points.device)
    scale = torch.where(cosine >= threshold, norms / norms[kept][to].clamp(min=1e-300), 0.0)
    T[torch.arange(layer.units, device=points.device), to] = scale
    T[kept] = torch.eye(units, dtype=points.dtype, device=points.device)
    return Coreset(kept, T)


def _k_means(points: Tensor, k: int, generator: Generator) -> Tensor:
    """Lloyd's iterations from a k-means++ start; every cluster keeps at least one point, (n,) labels."""
    n = len(points)
    chosen = [int(torch.randint(n, (1,), generator=generator))]
    gap = (points - points[chosen[0]]).square().sum(1)
    for _ in range(1, k):
        at = torch.rand((), generator=generator, dtype=torch.float64) * gap.double().sum()
        pick = int(torch.searchsorted(gap.double().cumsum(0), at).clamp(max=n - 1))
        if pick in chosen:
            pick = next(i for i in range(n) if i not in chosen)
        chosen.append(pick)
        gap = torch.minimum(gap, (points - points[pick]).square().sum(1))
    return lloyd(points, points[chosen], ROUNDS)


def lloyd(points: Tensor, centres: Tensor, rounds: int) -> Tensor:
    """Lloyd's iterations, `rounds` at most, from given centres; every cluster keeps at least one point, (n,) labels."""
    k, label = len(centres), torch.full((len(points),), -1)
    for _ in range(rounds):
        distance = torch.cdist(points, centres)
        new = distance.argmin(1)
        for empty in (torch.bincount(new, minlength=k) == 0).nonzero()[:, 0]:
            crowded = torch.bincount(new, minlength=k)[new] > 1
            far = torch.where(crowded, distance.gather(1, new[:, None])[:, 0], -1.0).argmax()
            new[far] = empty
        if torch.equal(new, label):
            break
        label, centres = new, centres_of(points, new, k)
    return label


def centres_of(points: Tensor, label: Tensor, k: int) -> Tensor:
    """Mean of every cluster, (k, d); zero of one without points."""
    count = torch.bincount(label, minlength=k).to(points.dtype).clamp(min=1)
    return points.new_zeros(k, points.shape[1]).index_add_(0, label, points) / count[:, None]
