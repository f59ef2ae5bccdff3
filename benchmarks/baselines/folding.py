"""Model folding: units are clustered by k-means, a cluster computes with its centroid, and its readers add up.

With U the 0/1 membership and M = (UᵀU)⁻¹Uᵀ the mean, the writer becomes M P and the readers become W U. Averaging
filters that are not the same shrinks the variance of what they give, which two more steps repair where a BatchNorm
γ (a − μ)/σ + β lies between (*Fold-AR*, approximate repair, without data). Clustered is [W ᵀ | P/σ | γ], the normalised
rows P/σ are averaged, and the mean of N_c unit-variance outputs with mean correlation E has variance
(N_c + (N_c² − N_c) E)/N_c², so that γ of the cluster is multiplied by

    N_c / √(N_c + (N_c² − N_c) E),      E = mean over i ≠ j in the cluster of cos(P_i, P_j),

the correlation that uncorrelated inputs would give. γ and β of the cluster are means. Without a BatchNorm (language
models) the paper repairs nothing and clusters [Wᵀ | P | b].

`fold` is the plain form: the BatchNorm is folded into row and bias first, these points are clustered, and nothing is
repaired. Clusters of one unit change nothing in either.

Source: Wang et al., "Forget the Data and Fine-Tuning! Just Fold the Network to Compress", ICLR 2025, arXiv:2502.10216,
sections 3 and 4.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from baselines.clusters import k_means, membership
from baselines.units import Choice, Merge, Norm, Units, selected

__all__ = ["fold", "fold_ar", "mean_correlation", "repair"]


def fold(units: Units, k: int, generator: Generator, starts: int = 10) -> Choice:
    """Clusters of the rows with bias and BatchNorm folded in; nothing is repaired."""
    kept, U = membership(units.points, k_means(units.points, k, generator, starts))
    M = U / U.sum(0)
    if units.norm is None:
        return selected(units, kept, U, merge=Merge(M))
    old = units.norm
    constant = M.T @ (old.beta - old.mean * old.scale)
    rows = M * old.scale[:, None]
    return selected(units, kept, U, merge=Merge(rows, _plain(torch.ones_like(constant), constant, None, old.eps)))


def fold_ar(units: Units, k: int, generator: Generator, starts: int = 10) -> Choice:
    """The paper's clusters, and its variance repair where there is a BatchNorm."""
    old = units.norm
    if old is None:
        points = torch.cat([units.columns, units.points], 1)
        kept, U = membership(points, k_means(points, k, generator, starts))
        return selected(units, kept, U, merge=Merge(U / U.sum(0)))
    points = torch.cat([units.columns, units.rows / old.deviation[:, None], old.gamma[:, None]], 1)
    kept, U = membership(points, k_means(points, k, generator, starts))
    M = U / U.sum(0)
    gamma = (M.T @ old.gamma) * repair(units.rows, U)
    new = _plain(gamma, M.T @ old.beta, M.T @ (old.mean / old.deviation), old.eps)
    return selected(units, kept, U, merge=Merge(M / old.deviation[:, None], new))


def repair(rows: Tensor, U: Tensor) -> Tensor:
    """N_c/√(N_c + (N_c² − N_c) E[c]) of every cluster, (k,).

    Args:
        rows: P, (n, d). U: membership, (n, k).

    Example:
        >>> repair(torch.eye(4), torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).round(decimals=4)
        tensor([1.7321, 1.0000])
    """
    count = U.sum(0)
    spread = count + (count.square() - count) * mean_correlation(rows, U)
    return count / spread.clamp(min=1e-12).sqrt()


def mean_correlation(rows: Tensor, U: Tensor) -> Tensor:
    """Mean cosine of different rows of a cluster, (k,); 0 where there is only one.

    Σ_{i≠j} cos = ‖Σ_i p_i/‖p_i‖‖² − Σ_i ‖p_i/‖p_i‖‖².
    """
    unit = normalize(rows, dim=1, eps=1e-300)
    count = U.sum(0)
    pairs = (U.T @ unit).square().sum(1) - U.T @ unit.square().sum(1)
    return pairs / (count.square() - count).clamp(min=1)


def _plain(gamma: Tensor, beta: Tensor, mean: Tensor | None, eps: float) -> Norm:
    """A BatchNorm whose σ is 1."""
    return Norm(gamma, beta, torch.zeros_like(beta) if mean is None else mean, torch.full_like(beta, 1 - eps), eps)
